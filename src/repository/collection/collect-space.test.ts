/**
 * What a collection removes, copies and keeps, what a dry run says of it, and what damage does to it.
 */
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import {
  assertAllWhole,
  assertWhole,
  chunkSizeBytes,
  isFailure,
  type Operation,
  seededBytes,
  seededRandom,
  World,
  writeChunks,
  writePoint,
  writeSmallPoint,
} from '../../../test/fault/collect-stress-world.ts'
import { Failure } from '../../base/failure.ts'
import { plainSeal } from '../keys/seal.ts'
import { createRepository } from '../repository.ts'

const dayMs = 24 * 3_600_000

/** Points, garbage and half garbage, as chance has it. */
async function randomWorld(seed: number): Promise<World> {
  const random = seededRandom(seed)
  const below = (limit: number) => Math.floor(random() * limit)
  const world = await World.make()
  await using repository = await world.open()
  for (let step = 0; step < 8; step += 1) {
    const seeds = Array.from({ length: 1 + below(5) }, () => 1 + below(12))
    const { id } = await writeSmallPoint(repository, seeds)
    if (random() < 0.6) await repository.deletePoint(id)
    if (random() < 0.3) await world.collect({ repackBelow: random() })
    world.nowMs += below(2 * dayMs)
  }
  world.objects.set(`packs/20261101T000000Z-aaaa/${'cd'.repeat(32)}`, Buffer.alloc(500))
  return world
}

test('a dry run writes nothing and says exactly what a run then does', async () => {
  for (let seed = 1; seed <= 60; seed += 1) {
    const world = await randomWorld(seed)
    const options = {
      delayMs: [0, 3_600_000, dayMs][seed % 3] ?? 0,
      repackBelow: (seed % 5) / 4,
      maxRepackBytes: seed % 2 === 0 ? 500 : 2 ** 30,
    }
    await using repository = await world.open()
    await using _draft =
      seed % 4 === 0 ? await repository.beginPoint() : { [Symbol.asyncDispose]: async () => undefined }
    const before = new Map(world.objects)
    const planned = await world.collect({ ...options, dryRun: true })
    assert.deepEqual(world.objects, before)
    assert.deepEqual({ ...(await world.collect(options)), dryRun: true }, planned, `world ${seed}`)
    await assertAllWhole(world)
  }
})

test('what is needed of a pack that is mostly garbage is copied, and no more than a run may copy', async () => {
  const world = await World.make()
  await using repository = await world.open()
  for (const first of [10, 20]) {
    const large = await writePoint(repository, [first, first + 1, first + 2, first + 3])
    await writePoint(repository, [first])
    await repository.deletePoint(large.id)
  }
  const limited = await world.collect({ delayMs: 0, maxRepackBytes: chunkSizeBytes + 200 })
  assert.equal(limited.repacked.packs, 1)
  assert.equal(limited.kept.find(({ reason }) => reason === 'limit')?.packs, 1)
  await world.collect({ delayMs: 0 })
  assert.ok(world.packBytes() < 2.1 * chunkSizeBytes, String(world.packBytes()))
  assert.equal(await assertAllWhole(world), 2)
})

test('a damaged record is not copied: its pack stays and is named', async () => {
  const world = await World.make()
  await using repository = await world.open()
  const large = await writePoint(repository, [1, 2, 3, 4])
  const [pack = ''] = world.keys('packs/')
  const kept = await writePoint(repository, [1, 5])
  await repository.deletePoint(large.id)
  const bytes = Buffer.from(world.objects.get(pack) ?? '')
  bytes.fill(0xee, 1000, 1010) // within the first chunk
  world.objects.set(pack, bytes)
  const { damaged, condemned } = await world.collect({ delayMs: 0 })
  assert.deepEqual(
    damaged.map(({ key }) => key),
    [pack],
  )
  assert.equal(condemned.packs, 0)
  assert.ok(world.objects.has(pack))
  await using source = await kept.openStream('disk')
  await source.read(chunkSizeBytes, Buffer.alloc(chunkSizeBytes))
})

test('nothing is removed while the needs of one point can not be known, unless it is left out by name', async () => {
  const world = await World.make()
  await using repository = await world.open()
  const point = await writePoint(repository, [1])
  await writePoint(repository, [2])
  await repository.deletePoint((await writePoint(repository, [3, 4])).id)
  const key = `points/${point.id}.json`
  world.objects.set(key, Buffer.from('{}\n{}\n'))
  const before = new Map(world.objects)
  await assert.rejects(world.collect({ delayMs: 0 }), (error) => {
    assert.ok(isFailure('COLLECT_UNSURE')(error))
    assert.match(String(error), new RegExp(point.id))
    return true
  })
  assert.deepEqual(world.objects, before)
  const report = await world.collect({ delayMs: 0, without: [point.id] })
  assert.equal(report.swept.packs, 2)
})

test('nothing is removed when a map can not be read', async () => {
  const world = await World.make()
  await using repository = await world.open()
  const large = await writePoint(repository, [1, 2])
  await repository.deletePoint((await writePoint(repository, [3, 4])).id)
  const [pack = ''] = world.keys(`packs/${large.id}/`)
  world.objects.delete(pack)
  const before = new Map(world.objects)
  await assert.rejects(world.collect({ delayMs: 0 }), isFailure('COLLECT_UNSURE'))
  assert.deepEqual(world.objects, before)
})

test('when a needed record is in no index, packs that no index names stay', async () => {
  const world = await World.make()
  await using repository = await world.open()
  const first = await writePoint(repository, [1, 2])
  await writePoint(repository, [1, 3])
  await repository.deletePoint(first.id)
  await repository.deletePoint((await writePoint(repository, [7, 8])).id)
  for (const key of world.keys(`indexes/${first.id}/`)) world.objects.delete(key)
  const { missing, condemned, kept } = await world.collect({ delayMs: 0, repackBelow: 0 })
  assert.equal(missing.records, 1)
  assert.equal(condemned.packs, 1, 'what an index names and nobody needs goes all the same')
  assert.equal(kept.find(({ reason }) => reason === 'unsure')?.packs, 1)
  await repository.repairIndex()
  assert.equal(await assertAllWhole(world), 1)
  assert.equal((await world.collect({ delayMs: 0, repackBelow: 0 })).missing.records, 0)
})

test('a damaged condemnation is told, and nothing is swept by it', async () => {
  const world = await World.make()
  await using repository = await world.open()
  await repository.deletePoint((await writePoint(repository, [1, 2])).id)
  await world.collect()
  for (const key of world.keys('condemned/')) world.objects.set(key, Buffer.from('{}\n{}\n'))
  world.nowMs += 30 * dayMs
  const { damaged, swept, condemned } = await world.collect()
  assert.equal(damaged.length, 1)
  assert.deepEqual([swept.packs, condemned.packs], [0, 1])
  world.nowMs += dayMs
  assert.equal((await world.collect()).swept.packs, 1)
})

test('a record with the bytes of a map segment is not taken for one that was read', async () => {
  const world = await World.make()
  await using repository = await world.open()
  // 512 bytes of bitmap, and the ids of the two chunks. Documents are walked before streams.
  const ids = [1, 2].map((seed) => plainSeal.idOf(seededBytes(seed, chunkSizeBytes)))
  const segment = Buffer.concat([Buffer.from([3]), Buffer.alloc(511), ...ids])
  await using draft = await repository.beginPoint()
  await draft.putDocument('segment', segment)
  await writeChunks(draft, [1, 2])
  const point = await draft.commit({ seeds: [1, 2] })
  assert.ok(world.packBytes() < 2 * chunkSizeBytes + 2000, 'the segment is stored once')
  await world.collect({ delayMs: 0, repackBelow: 1 })
  await world.collect({ delayMs: 0, repackBelow: 1 })
  await assertWhole(await repository.point(point.id))
  assert.equal(await assertAllWhole(world), 1)
})

test('small index objects are merged, those of open drafts are left', async () => {
  const world = await World.make()
  await using repository = await world.open()
  for (let seed = 1; seed <= 66; seed += 1) await writeSmallPoint(repository, [seed])
  const { mergedIndexes } = await world.collect()
  assert.equal(mergedIndexes, 66)
  assert.equal(world.keys('indexes/').length, 1)
  assert.equal(await assertAllWhole(world), 66)
  await using reader = await world.open()
  assert.deepEqual((await reader.verify()).damage, [])
})

for (const when of ['before the collection', 'while the collection looks']) {
  test(`an open draft that has published its index ${when} finds it again when it is discarded`, async () => {
    const world = await World.make()
    await using others = await world.open()
    for (let seed = 1; seed <= 66; seed += 1) await writeSmallPoint(others, [seed])
    const published = Promise.withResolvers<void>()
    const refused = Promise.withResolvers<void>()
    const failing = await world.open({
      async before({ name, key }) {
        if (name !== 'put' || !key.startsWith('points/')) return
        published.resolve()
        await refused.promise
      },
    })
    let failed: Promise<void> | undefined
    const publish = () => {
      failed ??= assert.rejects(writePoint(failing, [101, 102]), isFailure('REPOSITORY_IO'))
      return published.promise
    }
    if (when === 'before the collection') await publish()
    // The indexes are listed after the drafts.
    const before = ({ name, key }: Operation) => (name === 'list' && key === 'indexes/' ? publish() : undefined)
    assert.ok((await world.collect({ delayMs: 0 }, { before })).mergedIndexes >= 66)
    // What the collection did not know to be a draft's it took for garbage: that is not used until it is pardoned.
    const isKnown = when === 'before the collection'
    assert.equal((await writePoint(others, [101, 102])).streams[0]?.newChunks, isKnown ? 0 : 2)
    refused.reject(new Failure('REPOSITORY_IO', 'refused'))
    await failed
    assert.deepEqual(world.keys('drafts/'), [])
    assert.equal(await assertAllWhole(world), 67)
  })
}

test('what a killed backup of this host left is cleared away', async () => {
  const world = await World.make()
  const dead = await world.open({
    before({ name, key }) {
      if (name === 'put' && key.startsWith('points/')) throw new Error('killed')
      if (name === 'delete') throw new Error('killed')
    },
  })
  await assert.rejects(writePoint(dead, [1, 2]))
  assert.equal(world.keys('drafts/').length, 1)
  const { discarded, swept } = await world.collect({ delayMs: 0 })
  assert.equal(discarded.drafts.length, 1)
  assert.equal(swept.packs, 1, 'its packs were published, and go as garbage')
  assert.deepEqual([...world.objects.keys()], ['umbra-repository.json'])
})

test('a pack that is missing and not needed leaves the indexes', async () => {
  const world = await World.make()
  await using repository = await world.open()
  const gone = await writePoint(repository, [1, 2])
  await writePoint(repository, [3])
  await repository.deletePoint(gone.id)
  for (const key of world.keys(`packs/${gone.id}/`)) world.objects.delete(key)
  await world.collect({ delayMs: 0 })
  assert.deepEqual(world.keys(`indexes/${gone.id}/`), [])
  assert.equal((await writePoint(await world.open(), [1, 2])).streams[0]?.newChunks, 2)
  assert.equal(await assertAllWhole(world), 2)
})

test('an encrypted repository in a directory is collected and repacked', async () => {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-collect-'))
  try {
    const encryption = { passphrase: 'correct horse battery staple' }
    await using repository = await createRepository(folder, { chunkSizeBytes, encryption })
    const large = await writePoint(repository, [1, 2, 3, 4])
    const kept = await writePoint(repository, [4, 5])
    await repository.deletePoint(large.id)
    const { repacked, swept } = await repository.collect({ delayMs: 0 })
    assert.deepEqual([repacked.packs, swept.packs], [1, 1])
    await assertWhole(kept)
    await assertWhole(await repository.point(kept.id))
    assert.deepEqual((await repository.verify()).damage, [])
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
})
