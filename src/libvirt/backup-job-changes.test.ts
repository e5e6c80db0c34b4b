/**
 * Change tracking by backup jobs on the simulated host: changes are told only where nothing speaks against them, a doubtful
 * disk makes no other one full, and tracking points never pile up, whatever happened before.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import {
  backUp,
  backupJobScene,
  contentOf,
  createSet,
  findCopy,
  patched,
  stampsOf,
} from '../../test/sim/backup-job-scene.ts'
import { remember } from '../../test/sim/leftovers.ts'

describe('what has changed', () => {
  test('is not told to a requester that brings no stamps, and no point is begun', async () => {
    await using scene = await backupJobScene()
    const provider = scene.provider()
    const session = scene.session()
    const copies = await createSet(provider, session, scene.volumes)
    for (const copy of copies) assert.equal(copy.changes, undefined)
    assert.deepEqual(await scene.pointsOf('web01'), [])
    await provider.deleteSnapshots(session)
  })

  test('makes of the earlier copy the later one; a raw disk of the same VM is read whole, and says why', async () => {
    await using scene = await backupJobScene()
    const { world } = scene
    const first = await backUp(scene, 'one')
    world.guest('web01').write('sda', 128 * 1024, 'since the first')
    const provider = scene.provider()
    const session = scene.session(stampsOf('two', ['one']))
    const copies = await createSet(provider, session, scene.volumes)
    world.guest('web01').write('sda', 130 * 1024, 'after the second')
    const sda = findCopy(copies, 'web01', 'sda')
    assert.deepEqual(await patched(sda, first.contents.get(sda.volume.id) ?? new Uint8Array()), await contentOf(sda))
    const { changes } = findCopy(copies, 'web01', 'sdb')
    assert.ok(changes?.since === undefined && /raw disks have no bitmaps/.test(changes?.reason ?? ''))
    await provider.keepStamps(session)
    await provider.deleteSnapshots(session)
  })

  test('is told again after a clean stop, and not after a kill; a doubtful disk makes no other one full', async () => {
    await using scene = await backupJobScene()
    const { world } = scene
    await backUp(scene, 'one')
    await world.hypervisor.turnOff(world.vm('web01').uuid)
    await world.hypervisor.start(world.vm('web01').uuid)
    world.beginning = remember(world)
    const second = await backUp(scene, 'two', ['one'])
    assert.deepEqual(Object.fromEntries(second.changes), {
      'web01 sda': 'one',
      'web01 sdb': 'whole',
      'old95 sda': 'one',
    })
    world.killVm('web01')
    await world.hypervisor.start(world.vm('web01').uuid)
    world.beginning = remember(world)
    const third = await backUp(scene, 'three', ['two', 'one'])
    assert.deepEqual(Object.fromEntries(third.changes), {
      'web01 sda': 'whole',
      'web01 sdb': 'whole',
      'old95 sda': 'two',
    })
    assert.deepEqual([await scene.pointsOf('web01'), await scene.pointsOf('old95')], [['three'], ['three']])
  })

  test('a bitmap that breaks between the look and the instant costs its disk the changes, not the VM its backup', async () => {
    await using scene = await backupJobScene()
    const { world, volumes } = scene
    await backUp(scene, 'one')
    const provider = scene.provider()
    const session = scene.session(stampsOf('two', ['one']))
    for (const volume of volumes) await provider.beginPrepareSnapshot(session, volume)
    await provider.endPrepareSnapshots(session)
    const image = world.image('web01', 'sda')
    world.files.disk(image).top.watch.break()
    await provider.commitSnapshots(session, volumes)
    const copies = await provider.preFinalCommitSnapshots(session)
    assert.equal(findCopy(copies, 'web01', 'sda').changes?.since, undefined)
    assert.equal(findCopy(copies, 'old95', 'sda').changes?.since, 'one')
    await provider.deleteSnapshots(session)
  })
})

describe('tracking points', () => {
  test('stay only when they are kept; the older one stays until then', async () => {
    await using scene = await backupJobScene()
    await backUp(scene, 'one')
    assert.deepEqual(await scene.pointsOf('web01'), ['one'])
    await backUp(scene, 'two', ['one'], false)
    assert.deepEqual(await scene.pointsOf('web01'), ['one'])
    await backUp(scene, 'three', ['one'])
    assert.deepEqual(await scene.pointsOf('web01'), ['three'])
  })

  test('of two owners do not touch each other, nor those of other programs', async () => {
    await using scene = await backupJobScene()
    const { world, volumes } = scene
    const uuid = world.vm('old95').uuid
    const scratch = world.path('/foreign')
    const foreign = { socket: '/s', disks: [{ target: 'sda', scratch, track: true }], point: 'nightly' }
    await world.hypervisor.prepareBackupJob(uuid, foreign)
    await world.hypervisor.beginBackupJob(uuid, foreign)
    await world.hypervisor.endBackupJob(uuid, { socket: '/s', scratch: [scratch] })
    const other = 'aaaaaaaa-0000-4000-8000-000000000000'
    for (const [stamp, previous, owner] of [
      ['a1', [], other],
      ['one', [], undefined],
      ['a2', ['a1'], other],
      ['two', ['one'], undefined],
    ] as const) {
      const provider = scene.provider()
      const session = scene.session(stampsOf(stamp, previous, owner))
      const copies = await createSet(provider, session, volumes)
      assert.equal(findCopy(copies, 'old95', 'sda').changes?.since, previous[0])
      await provider.keepStamps(session)
      await provider.deleteSnapshots(session)
    }
    assert.deepEqual((await scene.pointsOf('old95')).toSorted(), ['a2', 'nightly', 'two'])
  })

  test('that a crash left go with the next backup: two of an owner at most, whatever happened', async () => {
    await using scene = await backupJobScene()
    const { volumes } = scene
    await backUp(scene, 'one')
    for (const lost of ['lost-1', 'lost-2', 'lost-3']) {
      const provider = scene.provider()
      const session = scene.session(stampsOf(lost, ['one']))
      await createSet(provider, session, volumes)
      // The session dies; only its jobs are ended.
      for (const { socket, disks } of [...scene.world.vms.values()].flatMap(({ live }) => live?.backupJob?.plan ?? []))
        for (const vm of scene.world.vms.keys())
          await scene.world.hypervisor.endBackupJob(vm, { socket, scratch: disks.map(({ scratch }) => scratch) })
      assert.ok((await scene.pointsOf('web01')).length <= 2)
    }
    const { changes } = await backUp(scene, 'two', ['one'])
    assert.equal(changes.get('web01 sda'), 'one')
    assert.deepEqual(await scene.pointsOf('web01'), ['two'])
  })

  test('that the hypervisor forgot leave bitmaps, which go as well', async () => {
    await using scene = await backupJobScene()
    const { world } = scene
    await backUp(scene, 'one')
    world.vm('web01').points = []
    const { changes } = await backUp(scene, 'two', ['one'])
    assert.equal(changes.get('web01 sda'), 'whole')
    assert.deepEqual(await scene.pointsOf('web01'), ['two'])
  })

  test('one that can not be removed fails no backup', async () => {
    await using scene = await backupJobScene()
    const { world, events } = scene
    await backUp(scene, 'one')
    world.hypervisor.removeTrackingPoint = () => Promise.reject(new Error('not today'))
    await backUp(scene, 'two', ['one'])
    assert.ok(events.includes('TrackingPointLeft'))
    assert.deepEqual(await scene.pointsOf('web01'), ['one', 'two'])
  })
})
