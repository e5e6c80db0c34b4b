/**
 * Backup and restore of real VMs, end to end: every method, VMs that are off or many, restores in place, elsewhere, as a
 * new VM, and of VMs that were lost. Raw and qcow2 on a template, logical volumes, VHD and an NBD disk. The guests write
 * all the time, and judge by themselves what they got back.
 */
import assert from 'node:assert/strict'
import { copyFileSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { createDisks } from '../../sample-guest/sample-guest.ts'
import {
  acknowledged,
  agentAnswers,
  beginStage,
  boot,
  bootOf,
  defineVm,
  inside,
  onTemplate,
  removeVm,
  type Stage,
  type StageVm,
  serveNbd,
  skipLive,
  verdictAtBoot,
  virsh,
  vmDirectory,
  writeText,
} from './stage.ts'
import { backUp, hashOf, nothingIsLeft, restoreVm, stateOf, verdictOf } from './stage-session.ts'

const lan = '<network><name>lan</name></network>'

describe('backup and restore of real VMs', { skip: skipLive, timeout: 900_000 }, () => {
  let stage: Stage
  /** Raw disks; writes flat out. */
  let web: StageVm
  /** qcow2 disks, the root on a template; writes flat out. */
  let db: StageVm
  /** A raw root, a VHD and an NBD disk. */
  let mixed: StageVm
  let template: string
  let templateHash: string

  before(async () => {
    stage = await beginStage('backup')
    const { images } = stage
    virsh(stage, 'net-create', await writeText(stage, 'lan.xml', lan))
    web = await defineVm(stage, 'web', await createDisks(images, vmDirectory(stage, 'web'), 'raw'), { rate: 0 })

    const [, ...data] = await createDisks(images, vmDirectory(stage, 'db'), 'qcow2')
    const root = join(vmDirectory(stage, 'db'), 'root.qcow2')
    await mkdir(join(stage.directory, 'templates'))
    template = join(stage.directory, 'templates', 'base.raw')
    await onTemplate(template, images.root, `${root}.new`)
    copyFileSync(`${root}.new`, root)
    templateHash = await hashOf(template)
    const network = { name: 'lan', mac: '52:54:00:0d:0b:01' }
    db = await defineVm(stage, 'db', [{ path: root, format: 'qcow2' }, ...data], { rate: 0, network })

    const vpc = await createDisks(images, vmDirectory(stage, 'mixed'), 'vpc')
    const [raw] = await createDisks(images, vmDirectory(stage, 'mixed'), 'raw')
    const served = join(stage.directory, 'served.raw')
    copyFileSync(images.dataB, served)
    const socket = join(stage.directory, 'nbd')
    await serveNbd(stage, served, socket)
    const disks = [raw, vpc[1]].filter((disk) => disk !== undefined)
    mixed = await defineVm(stage, 'mixed', [...disks, { nbd: { socket, exportName: 'disk' } }])
    await Promise.all([web, db, mixed].map((vm) => boot(stage, vm)))
  })
  after(async () => {
    await stage?.[Symbol.asyncDispose]()
  })

  it('freezes two VMs that write flat out, and their copies boot to all they had acknowledged', async (t) => {
    const vms = [web, db]
    const [states, boots] = [
      await Promise.all(vms.map((vm) => stateOf(stage, vm))),
      await Promise.all(vms.map((vm) => bootOf(stage, vm))),
    ]
    const before = await Promise.all(vms.map((vm) => acknowledged(stage, vm)))
    const result = await backUp(stage, ['web', 'db'])
    for (const vm of result.vms) {
      t.diagnostic(`${vm.name}: frozen ${vm.freezeMs} ms, writes held ${vm.heldMs} ms; ${result.durationMs} ms in all`)
      assert.equal(vm.method, 'guest-freeze')
      assert.equal(vm.consistency, 'filesystem')
      assert.ok(vm.freezeMs > vm.heldMs && vm.freezeMs < 5_000, `frozen for ${vm.freezeMs} ms`)
      assert.ok(vm.heldMs > 0 && vm.heldMs < 500, `writes held for ${vm.heldMs} ms`)
      assert.equal(vm.disks.length, 3)
    }
    for (const [index, vm] of vms.entries()) {
      const verdict = await verdictOf(stage, result.recoveryPoint, vm)
      assert.ok(verdict.ok && verdict.crossConsistent && verdict.quiesced, JSON.stringify(verdict))
      assert.ok((verdict.logs[1]?.last ?? 0) >= (before[index] ?? 0), 'all that was acknowledged is there')
    }
    await nothingIsLeft(stage, vms)
    assert.equal(await hashOf(template), templateHash)

    const copies: StageVm[] = []
    for (const vm of vms) {
      const name = `${vm.name}-copy`
      await restoreVm(stage, result.recoveryPoint, vm.name, { as: name, to: vmDirectory(stage, name), start: true })
      const facts = await stage.hypervisor.vm(name)
      copies.push({ name, uuid: facts.uuid, directory: vmDirectory(stage, name) })
      assert.notEqual(facts.uuid, vm.uuid)
      assert.ok(facts.nics.every(({ mac }) => mac !== '52:54:00:0d:0b:01'))
      for (const disk of facts.disks) assert.deepEqual(disk.backing, [], 'a restored disk stands on its own')
    }
    for (const [index, copy] of copies.entries()) {
      await agentAnswers(stage, copy)
      const verdict = await verdictAtBoot(stage, copy)
      assert.ok(verdict.ok && verdict.crossConsistent && verdict.quiesced, JSON.stringify(verdict))
      assert.ok((verdict.logs[0]?.last ?? 0) >= (before[index] ?? 0))
      await removeVm(stage, copy)
    }
    assert.deepEqual(await Promise.all(vms.map((vm) => stateOf(stage, vm))), states)
    assert.deepEqual(await Promise.all(vms.map((vm) => bootOf(stage, vm))), boots)
    await nothingIsLeft(stage, vms)
  })
})
