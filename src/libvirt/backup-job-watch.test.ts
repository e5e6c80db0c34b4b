/**
 * Room for scratch files, on the simulated host: looked at before, watched meanwhile, and no guest stands still because it is
 * being backed up.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { type BackupJobScene, backUp, backupJobScene, createSet } from '../../test/sim/backup-job-scene.ts'
import type { Volume } from '../vss/provider.ts'

describe('room for scratch files', () => {
  const setUp = async (volumes: readonly Volume[], scene: BackupJobScene, freeBytes: { now: number }) => {
    const provider = scene.provider({ freeBytes: async () => freeBytes.now, minimumFreeBytes: 1000 })
    const session = scene.session()
    await createSet(provider, session, volumes)
    return { provider, session }
  }
  const seconds = async ({ clock }: BackupJobScene, count: number) => {
    for (let second = 0; second < count; second++) {
      await clock.advance(1000)
      for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate)
    }
  }

  test('is looked at before anything is made', async () => {
    await using scene = await backupJobScene()
    const provider = scene.provider({ freeBytes: async () => 999, minimumFreeBytes: 1000 })
    const [volume] = scene.volumes
    assert.ok(volume !== undefined)
    const refused = provider.beginPrepareSnapshot(scene.session(), volume)
    await assert.rejects(refused, { code: 'VSS_INSUFFICIENT_STORAGE' })
    assert.ok(!scene.plan.calls.some((call) => /prepareBackupJob/.test(call)))
  })

  test('grows with what the guest has been writing since its last point', async () => {
    await using scene = await backupJobScene()
    const { world, clock } = scene
    await backUp(scene, 'one')
    for (let at = 0; at < 512 * 1024; at += 4096) world.guest('web01').write('sda', at, 'busy')
    await clock.advance(1000)
    const provider = scene.provider({ freeBytes: async () => 5000, minimumFreeBytes: 1 })
    const volume = scene.volumes.find(({ caption, name }) => caption === 'web01' && name === 'sda')
    assert.ok(volume !== undefined)
    const refused = provider.beginPrepareSnapshot(scene.session(), volume)
    await assert.rejects(refused, /5000 bytes free, [0-9]{4,} are needed/)
  })

  test('that runs out ends the jobs while the guests still run; the reason names directory and bytes', async () => {
    await using scene = await backupJobScene()
    const free = { now: 5000 }
    const { provider, session } = await setUp(scene.volumes, scene, free)
    await seconds(scene, 3)
    assert.deepEqual(scene.abandoned, [])
    free.now = 999
    await seconds(scene, 2)
    assert.match(scene.abandoned.map(({ message }) => message).join(), /\/scratch has 999 bytes free, 1000 are needed/)
    assert.deepEqual(scene.leftovers(), [])
    await provider.deleteSnapshots(session)
    assert.equal(scene.clock.pending, 0)
  })

  test('that ran out before anybody saw it: the VM that stands still runs on at once', async () => {
    await using scene = await backupJobScene()
    const { world } = scene
    const { provider, session } = await setUp(scene.volumes, scene, { now: 5000 })
    world.files.capacityBytes = world.files.usedBytes
    world.guest('web01').write('sda', 0, 'no room to keep what was here')
    assert.equal(await world.hypervisor.power(world.vm('web01').uuid), 'paused')
    await seconds(scene, 2)
    assert.equal(await world.hypervisor.power(world.vm('web01').uuid), 'running')
    assert.deepEqual(
      scene.abandoned.map((error) => (error as { code?: string }).code),
      ['BACKUP_JOB_LOST'],
    )
    await provider.deleteSnapshots(session)
    assert.deepEqual(scene.leftovers(), [])
  })

  test('a job whose VM was turned off ends the session: its copies are gone', async () => {
    await using scene = await backupJobScene()
    const { world } = scene
    const { provider, session } = await setUp(scene.volumes, scene, { now: 5000 })
    await world.hypervisor.turnOff(world.vm('old95').uuid)
    await seconds(scene, 2)
    assert.match(scene.abandoned[0]?.message ?? '', /backup job of old95 is over/)
    await provider.deleteSnapshots(session)
    await world.hypervisor.start(world.vm('old95').uuid)
  })
})
