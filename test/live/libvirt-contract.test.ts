/**
 * The contract of the Hypervisor port, on real VMs: the adapter of src/libvirt with a libvirtd of its own, QEMU and the
 * sample guest. On qcow2 disks; raw ones and disks behind NBD are in libvirt-overlays.test.ts.
 * Takes long: begun before the others.
 */
import { after, before, describe } from 'node:test'
import { hypervisorContract } from '../contract/hypervisor.contract.ts'
import { beginLiveWorld, contractWorld, type LiveWorld, skipLive } from './libvirt-world.ts'

describe('libvirt', { skip: skipLive }, () => {
  let world: LiveWorld
  before(async () => {
    world = await beginLiveWorld('contract', 'qcow2')
  })
  after(async () => {
    await world[Symbol.asyncDispose]()
  })
  hypervisorContract('libvirt', async () => contractWorld(world), { timeoutMs: 180_000 })
})
