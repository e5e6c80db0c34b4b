/**
 * Restores of real VMs; part of backup-restore.test.ts, whose afterEach looks for whatever a restore left behind.
 */
import assert from 'node:assert/strict'
import { lstatSync, readlinkSync } from 'node:fs'
import { mkdir, readdir, rm } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { it } from 'node:test'
import { failure } from '../../src/errors.ts'
import { rejectsWith } from '../contract/hypervisor-scene.ts'
import { around } from './hooks.ts'
import { dbMac, onlyRun, type Scene, smallMount } from './scene.ts'
import { acknowledged, agentAnswers, bootOf, verdictAtBoot, virsh, vmDirectory } from './stage.ts'
import { backUp, nothingIsLeft, restoreVm, stateOf } from './stage-session.ts'

export function restoreTests(scene: () => Scene): void {
  let point: string
  let before: number

  it('brings a VM back of which everything was lost', async () => {
    const { stage, db } = scene()
    await onlyRun(scene(), 'db')
    before = await acknowledged(stage, db)
    point = (await backUp(stage, ['db'], { policy: { require: 'filesystem' } })).recoveryPoint
    const former = await stage.hypervisor.vm(db.uuid)
    await stage.hypervisor.turnOff(db.uuid)
    await stage.hypervisor.undefine(db.uuid)
    await rm(db.directory, { recursive: true })
    const restored = await restoreVm(stage, point, 'db', { start: true })
    assert.deepEqual(restored.vms[0]?.warnings, [])
    const facts = await stage.hypervisor.vm('db')
    assert.equal(facts.uuid, db.uuid)
    assert.deepEqual(facts.nics, former.nics)
    assert.deepEqual(
      facts.disks.map(({ location }) => location),
      former.disks.map(({ location }) => location),
    )
    await agentAnswers(stage, db)
    const verdict = await verdictAtBoot(stage, db)
    assert.ok(verdict.ok && verdict.quiesced && (verdict.logs[1]?.last ?? 0) >= before, JSON.stringify(verdict))
  })

  it('refuses a restore that does not fit on the disk before anything is touched', async (t) => {
    const { stage, db } = scene()
    const [state, boot] = [await stateOf(stage, db), await bootOf(stage, db)]
    const to = join(stage.directory, smallMount)
    const events: string[] = []
    const error = await rejectsWith(
      restoreVm(stage, point, 'db', { to }, { onEvent: ({ event }) => void events.push(event) }),
    )
    t.diagnostic(`${error.code}: ${error.message}`)
    assert.equal(error.code, 'VSS_INSUFFICIENT_STORAGE')
    assert.match(error.message, /small has \d+ bytes free, \d+ are needed/, 'it says where')
    assert.ok(!events.includes('PreRestore'))
    assert.deepEqual(await readdir(to), [])
    assert.deepEqual(await stateOf(stage, db), state)
    assert.equal(await bootOf(stage, db), boot)
  })

  it('puts the former VM back when the new one can not be registered', async () => {
    const { stage, db } = scene()
    const state = await stateOf(stage, db)
    const sure = await acknowledged(stage, db)
    let refused = 0
    const hypervisor = around(stage.hypervisor, {
      define: async (call) => {
        if (refused++ === 0) throw failure('HYPERVISOR_REFUSED', { call: 'define', reason: 'by this test' })
        return call()
      },
    })
    await rejectsWith(restoreVm(stage, point, 'db', {}, { hypervisor }), 'VSS_WRITER_VETO')
    await agentAnswers(stage, db)
    assert.deepEqual(await stateOf(stage, db), state)
    const verdict = await verdictAtBoot(stage, db)
    assert.ok(
      verdict.ok && (verdict.logs[1]?.last ?? 0) >= sure,
      'on its own disks, not on those of the recovery point',
    )
  })

  it('connects a VM to what the user says, or to nothing when its network is gone', async () => {
    const { stage, db } = scene()
    virsh(stage, 'net-destroy', 'lan')
    const gone = await restoreVm(stage, point, 'db')
    assert.match(gone.vms[0]?.warnings.join() ?? '', /lan does not exist here.*umbra-unconnected/)
    assert.deepEqual(await networksOf(), ['umbra-unconnected'])
    assert.match(virsh(stage, 'net-dumpxml', 'umbra-unconnected'), /<network>/)
    assert.doesNotMatch(virsh(stage, 'net-dumpxml', 'umbra-unconnected'), /<forward/)
    await nothingIsLeft(stage, [db])
    const mapped = await restoreVm(stage, point, 'db', { networks: { lan: 'umbra-unconnected' } })
    assert.deepEqual(mapped.vms[0]?.warnings, [])
    assert.deepEqual(await networksOf(), ['umbra-unconnected'])

    async function networksOf() {
      const { nics, power } = await stage.hypervisor.vm(db.uuid)
      assert.equal(power, 'off')
      assert.deepEqual(
        nics.map(({ mac }) => mac),
        [dbMac],
      )
      return nics.map(({ source }) => source)
    }
  })

  it('restores to another directory and leaves links in the original place', async () => {
    const { stage, db } = scene()
    await rm(db.directory, { recursive: true })
    await mkdir(db.directory)
    const to = vmDirectory(stage, 'db-elsewhere')
    const networks = { lan: 'umbra-unconnected' }
    await restoreVm(stage, point, 'db', { to, start: true, networks })
    const { disks } = await stage.hypervisor.vm(db.uuid)
    for (const { location } of disks) {
      assert.equal(location, join(to, basename(location)))
      const link = join(db.directory, basename(location))
      assert.ok(lstatSync(link).isSymbolicLink())
      assert.equal(readlinkSync(link), location)
    }
    await agentAnswers(stage, db)
    const verdict = await verdictAtBoot(stage, db)
    assert.ok(verdict.ok && verdict.quiesced && (verdict.logs[1]?.last ?? 0) >= before, JSON.stringify(verdict))
    await nothingIsLeft(stage, [{ ...db, directory: to }])
  })
}
