/**
 * Hot-added copies of the simulated hypervisor: one more disk in what runs, never in what is registered, with the locks
 * and the refusals of QEMU.
 */
import { failure } from '../../src/errors.ts'
import { type AttachedCopy, copySerial } from '../../src/vm/hypervisor.ts'
import { type ConfiguredDisk, readConfiguration, withDisk, withoutDisk } from './sim-configuration.ts'
import { nameOf, powerOf, refused, type SimVm } from './sim-vm.ts'
import type { SimWorld } from './sim-world.ts'

export const isCopy = ({ serial }: ConfiguredDisk): boolean => copySerial.test(serial ?? '')

/** The hot-added copies that a VM has open now. */
export const attachedCopies = (vm: SimVm): readonly ConfiguredDisk[] =>
  vm.live === undefined ? [] : readConfiguration(vm.live.configuration).disks.filter(isCopy)

export function attachCopy(world: SimWorld, vm: SimVm, { serial, image }: AttachedCopy): void {
  const wrong = (reason: string) => failure('VM_STATE', { vm: nameOf(vm), state: powerOf(vm), reason })
  if (vm.live?.power !== 'running') throw wrong('only a running VM can revert a copy')
  const { disks, hasVirtioScsi } = readConfiguration(vm.live.configuration)
  if (!hasVirtioScsi) throw wrong('it has no virtio-scsi controller')
  if (disks.some((disk) => disk.serial === serial)) throw refused('attach', `${serial} is attached already`)
  const problem = world.lockProblem(image, { writes: true })
  if (problem !== undefined) throw refused('attach', problem)
  const names = new Set(disks.map(({ target }) => target))
  const target = [...'zyxwvutsrqponmlkjihgfedcba'].map((letter) => `sd${letter}`).find((name) => !names.has(name))
  if (target === undefined) throw refused('attach', 'no free target')
  vm.live.configuration = withDisk(vm.live.configuration, {
    target,
    bus: 'scsi',
    device: 'disk',
    readOnly: false,
    shareable: false,
    transient: false,
    sourceType: 'file' in image.storage ? 'file' : 'block',
    serial,
    image,
  })
}

export async function detachCopy(world: SimWorld, vm: SimVm, serial: string): Promise<void> {
  const bySerial = (xml: string) => readConfiguration(xml).disks.find((disk) => disk.serial === serial)
  if (vm.managedSave !== undefined && bySerial(vm.managedSave.configuration) !== undefined)
    throw failure('VM_STATE', { vm: nameOf(vm), state: 'saved', reason: `its memory goes on with the copy ${serial}` })
  const live = vm.live
  const disk = live === undefined ? undefined : bySerial(live.configuration)
  if (live === undefined || disk === undefined) return
  const { detachHangs, detachLimitMs } = world.requestorOf(vm.uuid).behaviour
  if (detachHangs) {
    await world.clock.sleep(detachLimitMs)
    throw refused('detach', `the copy ${serial} is still attached after ${detachLimitMs} ms`)
  }
  live.configuration = withoutDisk(live.configuration, disk.target)
}
