/**
 * What a new stream takes from an earlier one: records that are being collected or can not be read are not relied upon, and
 * a segment that can is named again.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { type MemoryRepository, openMemoryRepository } from '../../../test/sim/memory-repository.ts'
import { failure } from '../../errors.ts'
import { windowBytes } from '../chunks/pack-windows.ts'
import { decodePackEnd, objectKeys, recordHeaderBytes, recordKinds, tocEntries } from '../format.ts'
import { plainSeal } from '../keys/seal.ts'
import { sealJson } from '../keys/sealed-json.ts'
import type { RecoveryPoint, Repository } from '../repository.ts'

const blockBytes = 64 * 1024
const chunkSizeBytes = 4 * blockBytes
const segmentBytes = 4096 * chunkSizeBytes
/** Three segments, the second of zeros; the last chunk has four blocks, of which the last is short. */
const sizeBytes = 2 * segmentBytes + 3 * chunkSizeBytes - 100
/** The chunks that hold data, two in the first segment and all of the third. */
const chunks = [0, 7, 8192, 8193, 8194]
const chunkLength = (chunk: number) => Math.min(chunkSizeBytes, sizeBytes - chunk * chunkSizeBytes)

type Disk = Map<number, Buffer>
const someDisk = (): Disk => new Map(chunks.map((chunk) => [chunk, randomBytes(chunkLength(chunk))]))

async function full(repository: Repository, disk: Disk): Promise<RecoveryPoint> {
  await using draft = await repository.beginPoint()
  await using stream = await draft.openStream('disk', sizeBytes)
  for (const [chunk, data] of disk) await stream.writeChunk(chunk, data)
  await stream.finish()
  return draft.commit({})
}

/** Changes some blocks, of the disk too, and writes what is not usable; answers the point and what that was. */
async function incremental(
  repository: Repository,
  base: RecoveryPoint,
  disk: Disk,
  changes: readonly (readonly [chunk: number, blocks: readonly number[]])[] = [],
): Promise<{ point: RecoveryPoint; unusable: number[] }> {
  await using draft = await repository.beginPoint()
  await using stream = await draft.openStream('disk', sizeBytes, { point: base, stream: 'disk' })
  const unusable: number[] = []
  for await (const chunk of stream.unusableChunks()) unusable.push(chunk)
  for (const chunk of unusable) await stream.writeChunk(chunk, disk.get(chunk) ?? Buffer.alloc(chunkLength(chunk)))
  for (const [chunk, blocks] of changes) {
    const parts = blocks.map((block) => disk.get(chunk)?.subarray(block * blockBytes, (block + 1) * blockBytes))
    for (const part of parts) part?.set(randomBytes(part.length))
    await stream.writeBlocks(chunk, blocks, Buffer.concat(parts.flatMap((part) => part ?? [])))
  }
  await stream.finish()
  return { point: await draft.commit({}), unusable }
}

async function assertHolds(point: RecoveryPoint, disk: Disk): Promise<void> {
  await using source = await point.openStream('disk')
  for (const [chunk, data] of disk) {
    const found = Buffer.alloc(data.length)
    await source.read(chunk * chunkSizeBytes, found)
    assert.ok(found.equals(data), `chunk ${chunk}`)
  }
}

const packOf = ({ backend }: MemoryRepository, { id }: RecoveryPoint): readonly [string, Buffer] => {
  const found = [...backend.objects].find(([key]) => key.startsWith(`packs/${id}/`))
  assert.ok(found !== undefined)
  return found
}

async function condemn(place: MemoryRepository, point: RecoveryPoint): Promise<void> {
  const key = objectKeys.condemned('20261122T010203Z-abcd')
  const content = { createdAt: new Date().toISOString(), packs: [packOf(place, point)[0]] }
  await place.backend.put(key, [sealJson(plainSeal, 'condemned packs', key, content)])
}

test('nothing in a condemned pack is relied upon: chunks are asked for, segments are stored again', async () => {
  await using place = await openMemoryRepository(chunkSizeBytes)
  const disk = someDisk()
  const first = await full(place.repository, disk)
  // The second wrote a segment and one record of parts; all other chunks are in the pack of the first.
  const second = await incremental(place.repository, first, disk, [[7, [1]]])
  assert.deepEqual(second.unusable, [])
  await condemn(place, second.point)
  await using again = await place.openAgain()
  const third = await incremental(again, second.point, disk, [[8193, [0]]])
  assert.deepEqual(third.unusable, [7])
  for (const [key] of [...place.backend.objects]) {
    if (key.includes(second.point.id) || key.startsWith('condemned/')) place.backend.objects.delete(key)
  }
  await using after = await place.openAgain()
  await assertHolds(await after.point(third.point.id), disk)
  assert.deepEqual((await after.verify({ points: [third.point.id] })).damage, [])
})

test('a segment in a condemned pack is stored again even when all it names is usable', async () => {
  await using place = await openMemoryRepository(chunkSizeBytes)
  const disk = someDisk()
  await full(place.repository, disk)
  // Another disk whose chunks are all there already: its point stores a map and nothing else.
  const short = new Map([...disk].slice(0, 1))
  const second = await full(place.repository, short)
  await condemn(place, second)
  await using again = await place.openAgain()
  const third = await incremental(again, second, short)
  assert.deepEqual(third.unusable, [])
  for (const [key] of [...place.backend.objects]) {
    if (key.includes(second.id) || key.startsWith('condemned/')) place.backend.objects.delete(key)
  }
  await using after = await place.openAgain()
  await assertHolds(await after.point(third.point.id), short)
})

test('a segment that can not be read means all of its chunks, and only those', async () => {
  await using place = await openMemoryRepository(chunkSizeBytes)
  const disk = someDisk()
  const first = await full(place.repository, disk)
  const [, pack] = packOf(place, first)
  const segments = [...tocEntries(decodePackEnd(plainSeal, pack).toc)].filter(
    ({ kind }) => kind === recordKinds.segment,
  )
  assert.equal(segments.length, 2)
  const { offset } = segments[1] ?? assert.fail()
  const at = offset + recordHeaderBytes + 5
  pack[at] = (pack[at] ?? 0) ^ 1
  {
    await using again = await place.openAgain()
    const second = await incremental(again, first, disk)
    assert.deepEqual(second.unusable, [8192, 8193, 8194])
    await assertHolds(second.point, disk)
    for (const key of [...place.backend.objects.keys()])
      if (key.includes(second.point.id)) place.backend.objects.delete(key)
  }
  // The same when the disk under the repository can not read it.
  pack[at] = (pack[at] ?? 0) ^ 1
  const read = place.backend.read.bind(place.backend)
  place.backend.read = async (key, from, target) => {
    const isWindow = target.length === windowBytes && from <= offset && offset < from + windowBytes
    if (from === offset || isWindow) throw failure('REPOSITORY_IO', { path: key, reason: 'a bad sector' })
    return read(key, from, target)
  }
  await using again = await place.openAgain()
  const second = await incremental(again, first, disk)
  assert.deepEqual(second.unusable, [8192, 8193, 8194])
  await assertHolds(second.point, disk)
})

test('the last chunk, with all its blocks gathered in their places and the last one short, is not taken for a whole one', async () => {
  await using place = await openMemoryRepository(chunkSizeBytes)
  const disk = someDisk()
  const first = await full(place.repository, disk)
  const changes = [
    [8194, [0, 1]],
    [8194, [2, 3]],
    [0, [1]],
  ] as const
  const second = await incremental(place.repository, first, disk, changes)
  await assertHolds(second.point, disk)
  const third = await incremental(place.repository, second.point, disk, [[8194, [3]]])
  await assertHolds(third.point, disk)
  assert.deepEqual((await place.repository.verify()).damage, [])
})
