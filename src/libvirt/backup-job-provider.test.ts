/**
 * The backup job provider on the simulated host: the contract of all providers, and what is its own: one short call for each
 * VM at the instant (law 4), undo before the deed (law 1), a begin that arrives late (law 8).
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { providerContract } from '../../test/contract/provider.contract.ts'
import { backupJobScene, createSet, findCopy, stampsOf } from '../../test/sim/backup-job-scene.ts'
import { Cleanup } from '../base/cleanup.ts'
import { backupJobUndoHandlers } from './backup-job-undo.ts'

providerContract('the backup job provider', async () => {
  const scene = await backupJobScene()
  const { world } = scene
  let changes = 0
  return {
    provider: scene.provider(),
    volumes: scene.volumes,
    undoHandlers: backupJobUndoHandlers(world.hypervisor),
    change: async ({ caption, name }) => world.guest(caption).write(name, 4096, `changed ${++changes}`),
    content: async ({ caption, name }) => world.diskBytes(caption, name),
    residue: async () => scene.leftovers(),
    [Symbol.asyncDispose]: () => scene[Symbol.asyncDispose](),
  }
})

describe('the backup job provider', () => {
  test('is more specific than the overlay provider where a job is asked for, and nothing elsewhere', async () => {
    await using scene = await backupJobScene()
    const [volume] = scene.volumes
    assert.ok(volume !== undefined)
    assert.equal(scene.provider().supports(volume), 20)
    const { backupJob: _, ...properties } = volume.properties
    assert.equal(scene.provider().supports({ ...volume, properties }), 0)
  })

  test('does at the instant one call for each VM, and nothing else (law 4)', async () => {
    await using scene = await backupJobScene()
    const { volumes, plan } = scene
    const provider = scene.provider()
    const session = scene.session(stampsOf('one'))
    for (const volume of volumes) await provider.beginPrepareSnapshot(session, volume)
    await provider.endPrepareSnapshots(session)
    const before = plan.calls.length
    await provider.preCommitSnapshots()
    const instants = await provider.commitSnapshots(session, volumes)
    await provider.postCommitSnapshots()
    const during = plan.calls.slice(before)
    assert.equal(during.length, 2)
    for (const call of during) assert.match(call, /beginBackupJob/)
    assert.equal(instants.length, 2)
    await provider.deleteSnapshots(session)
  })

  test('registers end and point of a VM before it makes its scratch files (law 1)', async () => {
    await using scene = await backupJobScene()
    const { plan, volumes, world } = scene
    const registered: string[] = []
    const log = {
      add: async ({ undo }: { undo: string }) => {
        assert.ok(!plan.calls.some((call) => /prepareBackupJob/.test(call)), 'a scratch file was made before')
        return registered.push(undo)
      },
      done: () => undefined,
    }
    const undo = new Cleanup(log, backupJobUndoHandlers(world.hypervisor))
    const session = { ...scene.session(stampsOf('one')), undo }
    const provider = scene.provider()
    const mine = volumes.filter(({ caption }) => caption === 'web01')
    await createSet(provider, session, mine)
    assert.deepEqual(registered, ['remove-stamp', 'end-backup-job'])
    await provider.abortSnapshots(session)
    assert.deepEqual(scene.leftovers(), [])
  })

  test('names every VM whose job failed, and takes back those of the others, points too', async () => {
    await using scene = await backupJobScene()
    const busy = scene.world.vm('old95')
    const provider = scene.provider()
    const session = scene.session(stampsOf('one'))
    for (const volume of scene.volumes) await provider.beginPrepareSnapshot(session, volume)
    await provider.endPrepareSnapshots(session)
    busy.busy = 'somebody else’s job'
    await assert.rejects(provider.commitSnapshots(session, scene.volumes), { code: 'VSS_PROVIDER_VETO' })
    busy.busy = undefined
    await provider.abortSnapshots(session)
    assert.deepEqual([scene.leftovers(), await scene.pointsOf('web01'), await scene.pointsOf('old95')], [[], [], []])
  })

  test('waits for a begin that is still on its way before it takes everything back (law 8)', async () => {
    await using scene = await backupJobScene()
    const { world, clock, volumes } = scene
    const late = Promise.withResolvers<void>()
    const begin = world.hypervisor.beginBackupJob.bind(world.hypervisor)
    world.hypervisor.beginBackupJob = async (...args) => {
      await late.promise
      await begin(...args)
    }
    const provider = scene.provider()
    const session = scene.session(stampsOf('one'))
    for (const volume of volumes) await provider.beginPrepareSnapshot(session, volume)
    await provider.endPrepareSnapshots(session)
    provider.commitSnapshots(session, volumes).catch(() => undefined) // the window has expired meanwhile
    const aborting = provider.abortSnapshots(session)
    await clock.advance(1000)
    late.resolve()
    await clock.drive(aborting, { idleMs: 1 })
    assert.deepEqual([scene.leftovers(), await scene.pointsOf('web01')], [[], []])
    assert.equal(clock.pending, 0)
  })

  test('does not wait for ever for a begin that never answers; what it made the undo takes back', async () => {
    await using scene = await backupJobScene()
    const { world, clock, volumes } = scene
    const begin = world.hypervisor.beginBackupJob.bind(world.hypervisor)
    world.hypervisor.beginBackupJob = async (...args) => {
      await begin(...args)
      await new Promise(() => undefined)
    }
    const provider = scene.provider()
    const session = scene.session(stampsOf('one'))
    for (const volume of volumes) await provider.beginPrepareSnapshot(session, volume)
    await provider.endPrepareSnapshots(session)
    provider.commitSnapshots(session, volumes).catch(() => undefined)
    await assert.rejects(clock.drive(provider.abortSnapshots(session), { idleMs: 1 }), { code: 'DEADLINE_EXCEEDED' })
    await session.undo[Symbol.asyncDispose]()
    assert.deepEqual([scene.leftovers(), await scene.pointsOf('web01')], [[], []])
  })

  test('closes the readers that somebody left open, then ends the job', async () => {
    await using scene = await backupJobScene()
    const provider = scene.provider()
    const session = scene.session()
    const copies = await createSet(provider, session, scene.volumes)
    const source = await findCopy(copies, 'web01', 'sda').open()
    await provider.deleteSnapshots(session)
    await assert.rejects(source.read(0, new Uint8Array(512)), { code: 'DISK_READ_FAILED' })
    await source[Symbol.asyncDispose]()
  })
})
