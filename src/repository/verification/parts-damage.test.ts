/**
 * Damage of records that give blocks to many places: reading refuses these blocks and no others, and verify names each of
 * them by its offset, in every point that needs it.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { type MemoryRepository, openMemoryRepository } from '../../../test/sim/memory-repository.ts'
import { Failure } from '../../base/failure.ts'
import { decodePackEnd, recordHeaderBytes, recordKinds, tocEntries } from '../format.ts'
import { plainSeal } from '../keys/seal.ts'
import type { RecoveryPoint } from '../repository.ts'

const blockBytes = 64 * 1024
const chunkSizeBytes = 4 * blockBytes
const sizeBytes = 9 * chunkSizeBytes + 100

async function incremental(
  place: MemoryRepository,
  base: RecoveryPoint,
  blocks: readonly (readonly [chunk: number, block: number])[],
): Promise<RecoveryPoint> {
  await using draft = await place.repository.beginPoint()
  await using stream = await draft.openStream('disk', sizeBytes, { point: base, stream: 'disk' })
  for await (const chunk of stream.unusableChunks()) assert.fail(`chunk ${chunk} is not usable`)
  for (const [chunk, block] of blocks) {
    await stream.writeBlocks(chunk, [block], randomBytes(chunk === 9 ? 100 : blockBytes))
  }
  await stream.finish()
  return draft.commit({})
}

async function full(place: MemoryRepository): Promise<RecoveryPoint> {
  await using draft = await place.repository.beginPoint()
  await using stream = await draft.openStream('disk', sizeBytes)
  for (let chunk = 0; chunk < 10; chunk += 1) {
    await stream.writeChunk(chunk, randomBytes(chunk === 9 ? 100 : chunkSizeBytes))
  }
  await stream.finish()
  return draft.commit({})
}

/** Flips a bit of the first chunk record that the draft of `point` wrote. */
function spoilRecord({ backend }: MemoryRepository, point: RecoveryPoint): void {
  const pack = [...backend.objects].find(([key]) => key.startsWith(`packs/${point.id}/`))?.[1]
  assert.ok(pack !== undefined)
  const record = [...tocEntries(decodePackEnd(plainSeal, pack).toc)].find(({ kind }) => kind === recordKinds.chunk)
  assert.ok(record !== undefined)
  const at = record.offset + recordHeaderBytes + 5
  pack[at] = (pack[at] ?? 0) ^ 4
}

test('each block behind a damaged record is named, in every point that needs it', async () => {
  await using place = await openMemoryRepository(chunkSizeBytes)
  const first = await full(place)
  const second = await incremental(place, first, [
    [1, 2],
    [1, 3],
    [6, 0],
    [8, 3],
  ])
  const third = await incremental(place, second, [
    [6, 0],
    [9, 0],
  ])
  spoilRecord(place, second)
  await using again = await place.openAgain()
  const { damage } = await again.verify()
  const of = (point: RecoveryPoint) =>
    damage
      .filter((one) => one.point === point.id)
      .map(({ offset, length }) => [offset / blockBytes, length / blockBytes])
  const behind = [
    [6, 2],
    [24, 1],
    [35, 1],
  ]
  assert.deepEqual(of(first), [])
  assert.deepEqual(of(second), behind)
  assert.deepEqual(
    of(third),
    behind.filter(([block]) => block !== 24),
  )
  await using source = await (await again.point(second.id)).openStream('disk')
  const block = Buffer.alloc(blockBytes)
  for (const at of [4, 5, 25, 32]) await source.read(at * blockBytes, block)
  for (const at of [6, 7, 24, 35]) {
    await assert.rejects(source.read(at * blockBytes, block), (error) => {
      assert.ok(error instanceof Failure)
      assert.equal(error.code, 'REPOSITORY_CHUNK_CORRUPT')
      assert.equal(error.context.offset, Math.floor(at / 4) * chunkSizeBytes)
      return true
    })
  }
})

test('parts that can not be read are no reason to keep them: the chunk is stored again when all is read', async () => {
  await using place = await openMemoryRepository(chunkSizeBytes)
  const first = await full(place)
  const second = await incremental(place, first, [
    [1, 2],
    [6, 0],
  ])
  await using before = await second.openStream('disk')
  const data = Buffer.alloc(sizeBytes)
  await before.read(0, data)
  spoilRecord(place, second)
  await using again = await place.openAgain()
  await using draft = await again.beginPoint()
  await using stream = await draft.openStream('disk', sizeBytes, {
    point: await again.point(second.id),
    stream: 'disk',
  })
  stream.startEmpty()
  for (let chunk = 0; chunk < 10; chunk += 1) {
    await stream.writeChunk(chunk, data.subarray(chunk * chunkSizeBytes, (chunk + 1) * chunkSizeBytes))
  }
  assert.equal((await stream.finish()).newChunks, 2)
  const third = await draft.commit({})
  await using source = await third.openStream('disk')
  const found = Buffer.alloc(sizeBytes)
  await source.read(0, found)
  assert.ok(found.equals(data))
  assert.deepEqual((await again.verify({ points: [third.id] })).damage, [])
})
