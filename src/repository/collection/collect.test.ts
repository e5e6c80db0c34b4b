/**
 * Collection and those who work at the same time: drafts, readers, other collections. What it does with space and damage is
 * in collect-space.test.ts.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  assertAllWhole,
  assertWhole,
  isFailure,
  World,
  writeChunks,
  writePoint,
} from '../../../test/fault/collect-stress-world.ts'
import { ownProcessMark } from '../../base/process-mark.ts'
import { plainSeal } from '../keys/seal.ts'
import { sealJson } from '../keys/sealed-json.ts'

const hourMs = 3_600_000
const dayMs = 24 * hourMs

/** A world with garbage: the chunks 1 to 3 in a pack that no point needs. */
async function withGarbage(): Promise<World> {
  const world = await World.make()
  await using repository = await world.open()
  await writePoint(repository, [8, 9])
  await repository.deletePoint((await writePoint(repository, [1, 2, 3])).id)
  return world
}

/** As if the draft `id` were written by a process of another host. */
async function moveToOtherHost(world: World, id: string): Promise<void> {
  const key = `drafts/${id}.json`
  world.objects.set(key, sealJson(plainSeal, 'draft', key, { ...(await ownProcessMark()), host: 'ffffffff' }))
}

test('space comes back after the delay, not before', async () => {
  const world = await withGarbage()
  const before = world.packBytes()
  assert.equal((await world.collect()).condemned.packs, 1)
  world.nowMs += dayMs - 1
  assert.equal((await world.collect()).swept.packs, 0)
  assert.equal(world.packBytes(), before)
  world.nowMs += 1
  assert.equal((await world.collect()).swept.packs, 1)
  assert.ok(world.packBytes() < before / 2)
  assert.equal(await assertAllWhole(world), 1)
})

test('with delay 0 one run marks and sweeps', async () => {
  const world = await withGarbage()
  const report = await world.collect({ delayMs: 0 })
  assert.deepEqual([report.condemned.packs, report.swept.packs, report.waiting.length], [1, 1, 0])
  assert.deepEqual(world.keys('condemned/'), [])
  assert.deepEqual(world.keys('drafts/'), [])
})

test('a draft that began before the mark and uses a pack that is then condemned is waited for, and the pack is pardoned', async () => {
  const world = await withGarbage()
  await using repository = await world.open()
  await using draft = await repository.beginPoint()
  const marked = await world.collect({ delayMs: 0 })
  assert.deepEqual(marked.waiting[0]?.drafts, [draft.id])
  await writeChunks(draft, [1, 2])
  world.nowMs += 10 * dayMs
  assert.equal((await world.collect({ delayMs: 0 })).swept.packs, 0)
  const point = await draft.commit({ seeds: [1, 2] })
  assert.equal(point.streams[0]?.newChunks, 0)
  const swept = await world.collect({ delayMs: 0 })
  assert.deepEqual([swept.swept.packs, swept.pardoned.packs], [0, 1])
  assert.equal(await assertAllWhole(world), 2)
})

test('a draft that begins after the mark stores again what is condemned, and is not waited for', async () => {
  const world = await withGarbage()
  await world.collect()
  await using repository = await world.open()
  await using draft = await repository.beginPoint()
  await writeChunks(draft, [1, 2])
  world.nowMs += dayMs
  assert.equal((await world.collect()).swept.packs, 1)
  const point = await draft.commit({ seeds: [1, 2] })
  assert.equal(point.streams[0]?.newChunks, 2)
  assert.equal(await assertAllWhole(world), 2)
})

test('a pardoned pack is used again by later drafts', async () => {
  const world = await withGarbage()
  await using repository = await world.open()
  {
    await using draft = await repository.beginPoint()
    await world.collect()
    await writeChunks(draft, [1])
    await draft.commit({ seeds: [1] })
  }
  world.nowMs += dayMs
  assert.equal((await world.collect({ repackBelow: 0 })).pardoned.packs, 1)
  assert.equal((await writePoint(repository, [1, 2, 3])).streams[0]?.newChunks, 0)
  assert.equal(await assertAllWhole(world), 3)
})

test('a process that lives long forgets what was swept, and stores it again', async () => {
  const world = await withGarbage()
  await using repository = await world.open()
  await writePoint(repository, [7])
  await world.collect({ delayMs: 0 })
  assert.equal((await writePoint(repository, [1, 2, 3])).streams[0]?.newChunks, 3)
  assert.equal(await assertAllWhole(world), 3)
})

test('a living draft of another host is waited for however long it takes', async () => {
  const world = await withGarbage()
  await using repository = await world.open()
  await using draft = await repository.beginPoint()
  await moveToOtherHost(world, draft.id)
  await world.collect({ delayMs: 0 })
  world.nowMs += 1000 * dayMs
  const { swept, openDrafts, waiting } = await world.collect({ delayMs: 0 })
  assert.equal(swept.packs, 0)
  assert.deepEqual(openDrafts, [{ id: draft.id, writer: 'a process of another host' }])
  assert.deepEqual(waiting[0]?.drafts, [draft.id])
})

test('a draft that was given up can not commit, and what it used may be gone', async () => {
  const world = await withGarbage()
  await using repository = await world.open()
  await using draft = await repository.beginPoint()
  await writeChunks(draft, [1, 2, 20])
  await moveToOtherHost(world, draft.id)
  await world.collect()
  const { swept } = await world.collect({ delayMs: 0, giveUp: draft.id.slice(-4) })
  assert.equal(swept.packs, 1)
  await assert.rejects(draft.commit({ seeds: [1, 2, 20] }), isFailure('REPOSITORY_DRAFT_GIVEN_UP'))
  assert.equal(await assertAllWhole(world), 1)
})

test('a draft that is given up while its manifest is put withdraws it', async () => {
  const world = await withGarbage()
  let id = ''
  await using repository = await world.open({
    after({ name, key }) {
      if (name === 'put' && key === `points/${id}.json`) world.objects.delete(`drafts/${id}.json`)
    },
  })
  await using draft = await repository.beginPoint()
  id = draft.id
  await writeChunks(draft, [1])
  await assert.rejects(draft.commit({ seeds: [1] }), isFailure('REPOSITORY_DRAFT_GIVEN_UP'))
  assert.equal(await assertAllWhole(world), 1)
})

test('a living draft of this host is not given up, and one that is not there is told', async () => {
  const world = await withGarbage()
  await using repository = await world.open()
  await using draft = await repository.beginPoint()
  await assert.rejects(world.collect({ giveUp: draft.id }), isFailure('REPOSITORY_DRAFT_IN_USE'))
  await assert.rejects(world.collect({ giveUp: 'none' }), isFailure('REPOSITORY_DRAFT_NOT_FOUND'))
})

test('a draft whose marker can not be read counts as living', async () => {
  const world = await withGarbage()
  world.objects.set('drafts/20261121T000000Z-spoi.json', Buffer.from('nothing'))
  assert.equal((await world.collect({ delayMs: 0 })).swept.packs, 0)
  assert.equal((await world.collect({ delayMs: 0, giveUp: 'spoi' })).swept.packs, 1)
})

test('two collections at once: the second is told who is at work', async () => {
  const world = await withGarbage()
  let second: Promise<unknown> | undefined
  await world.collect(
    { delayMs: 0 },
    {
      async before({ key }) {
        if (!key.startsWith('packs/') || second !== undefined) return
        second = world.collect({ delayMs: 0 })
        await assert.rejects(second, isFailure('COLLECT_IN_PROGRESS'))
        await assert.rejects(world.collect({ dryRun: true }), isFailure('COLLECT_IN_PROGRESS'))
      },
    },
  )
  assert.ok(second !== undefined)
  assert.deepEqual(world.keys('drafts/'), [])
})

test('a collection that is given up while it works removes nothing more', async () => {
  const world = await withGarbage()
  const before = world.packBytes()
  const collection = world.collect(
    { delayMs: 0 },
    {
      before({ name, key }) {
        if (name === 'put' && key.startsWith('condemned/'))
          for (const one of world.keys('drafts/')) world.objects.delete(one)
      },
    },
  )
  await assert.rejects(collection, isFailure('REPOSITORY_DRAFT_GIVEN_UP'))
  assert.equal(world.packBytes(), before)
})

test('a clock that is set forward sweeps early and loses nothing', async () => {
  const world = await withGarbage()
  await using repository = await world.open()
  await using draft = await repository.beginPoint()
  await world.collect()
  await writeChunks(draft, [1])
  world.nowMs += dayMs
  await world.collect()
  await draft.commit({ seeds: [1] })
  world.nowMs += dayMs
  await world.collect()
  assert.equal(await assertAllWhole(world), 2)
})

test('a clock that is set back by a day does not make a condemnation wait for the day to come again', async () => {
  const world = await withGarbage()
  await world.collect()
  world.nowMs -= dayMs
  assert.equal((await world.collect()).swept.packs, 0)
  world.nowMs += dayMs
  assert.equal((await world.collect()).swept.packs, 1)
  assert.equal(await assertAllWhole(world), 1)
})

test('a reader of a point that is deleted gets a coded failure, never wrong bytes', async () => {
  const world = await World.make()
  await using repository = await world.open()
  // More than is read ahead.
  const point = await writePoint(
    repository,
    Array.from({ length: 200 }, (_, seed) => seed),
  )
  await using reader = await world.open()
  const opened = await reader.point(point.id)
  await using source = await opened.openStream('disk')
  const chunk = Buffer.alloc(64 * 1024)
  await source.read(0, chunk)
  await repository.deletePoint(point.id)
  await world.collect({ delayMs: 0 })
  await assert.rejects(source.read(100 * chunk.length, chunk), isFailure('REPOSITORY_CHUNK_CORRUPT'))
})

test('a reader goes on when what it reads is repacked', async () => {
  const world = await World.make()
  await using repository = await world.open()
  const large = await writePoint(repository, [1, 2, 3, 4, 5, 6])
  const kept = await writePoint(repository, [6, 7])
  await using reader = await world.open()
  const opened = await reader.point(kept.id)
  await using source = await opened.openStream('disk')
  await repository.deletePoint(large.id)
  assert.equal((await world.collect({ delayMs: 0 })).repacked.packs, 1)
  await source.read(0, Buffer.alloc(128 * 1024))
  await assertWhole(opened)
  assert.deepEqual((await reader.verify()).damage, [])
})
