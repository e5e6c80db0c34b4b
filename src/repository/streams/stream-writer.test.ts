/**
 * What an incremental backup costs and what it relies upon: only changed blocks are stored, what did not change is named
 * again by its id, what can not be relied upon is asked for.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { type MemoryRepository, openMemoryRepository } from '../../../test/sim/memory-repository.ts'
import { Failure } from '../../base/failure.ts'
import { ChunkStore } from '../chunks/chunk-store.ts'
import { decodePackEnd, objectKeys, recordKinds, tocEntries } from '../format.ts'
import { plainSeal } from '../keys/seal.ts'
import { Manifests } from '../manifests.ts'
import { recordIdsOf } from '../point-records.ts'
import type { RecoveryPoint, Repository, StreamWriter } from '../repository.ts'

const blockBytes = 64 * 1024
const blocksPerChunk = 8
const chunkSizeBytes = blocksPerChunk * blockBytes

interface Written {
  readonly point: RecoveryPoint
  readonly summary: Awaited<ReturnType<StreamWriter['finish']>>
  readonly unusable: readonly number[]
}

/** Makes a point of one stream `disk`; `write` gets the chunks of the base that are not usable. */
async function writePoint(
  repository: Repository,
  sizeBytes: number,
  base: RecoveryPoint | undefined,
  write: (stream: StreamWriter, unusable: readonly number[]) => Promise<unknown>,
): Promise<Written> {
  await using draft = await repository.beginPoint()
  await using stream = await draft.openStream('disk', sizeBytes, base && { point: base, stream: 'disk' })
  const unusable: number[] = []
  for await (const chunk of stream.unusableChunks()) unusable.push(chunk)
  await write(stream, unusable)
  const summary = await stream.finish()
  return { point: await draft.commit({}), summary, unusable }
}

async function writeAll(stream: StreamWriter, data: Buffer): Promise<void> {
  for (let at = 0; at < data.length; at += chunkSizeBytes) {
    await stream.writeChunk(at / chunkSizeBytes, data.subarray(at, at + chunkSizeBytes))
  }
}

/** Writes the block of the disk and changes `data` likewise. */
async function changeBlock(stream: StreamWriter, data: Buffer, block: number): Promise<void> {
  const bytes = data.subarray(block * blockBytes, (block + 1) * blockBytes)
  bytes.set(randomBytes(bytes.length))
  await stream.writeBlocks(Math.floor(block / blocksPerChunk), [block % blocksPerChunk], bytes)
}

async function readStream(point: RecoveryPoint): Promise<Buffer> {
  await using source = await point.openStream('disk')
  const data = Buffer.alloc(source.sizeBytes, 0xaa)
  await source.read(0, data)
  return data
}

const featuresOf = ({ backend }: MemoryRepository, { id }: RecoveryPoint): unknown =>
  JSON.parse(String(backend.objects.get(objectKeys.point(id))).split('\n')[0] ?? '').features

function recordsIn({ backend }: MemoryRepository, kind?: number): string[] {
  const packs = [...backend.objects].filter(([key]) => key.startsWith('packs/'))
  const entries = packs.flatMap(([, pack]) => [...tocEntries(decodePackEnd(plainSeal, pack).toc)])
  return entries.filter((entry) => kind === undefined || entry.kind === kind).map(({ id }) => id.toString('hex'))
}

async function needed({ backend }: MemoryRepository, { id }: RecoveryPoint): Promise<Set<string>> {
  const store = new ChunkStore(backend, plainSeal, chunkSizeBytes)
  await store.refresh()
  const [config] = String(backend.objects.get(objectKeys.config)).split('\n').slice(1)
  const manifest = await new Manifests(backend, plainSeal, JSON.parse(config ?? '').id).read(id)
  const found = new Set<string>()
  for await (const ids of recordIdsOf(store, manifest)) for (const record of ids) found.add(record.toString('hex'))
  return found
}

test('an incremental stores the changed blocks, eight in a record, and restores; so does every point before', async () => {
  await using place = await openMemoryRepository(chunkSizeBytes)
  const data = randomBytes(100 * chunkSizeBytes + 3 * blockBytes + 100)
  const first = await writePoint(place.repository, data.length, undefined, (stream) => writeAll(stream, data))
  const before = Buffer.from(data)
  assert.deepEqual(featuresOf(place, first.point), [])
  const bytesBefore = place.backend.putBytes
  // Every fifth chunk one block, the disk's last and short one among them.
  const changed = Array.from({ length: 20 }, (_, index) => index * 5 * blocksPerChunk + (index % blocksPerChunk))
  changed.push(Math.floor(data.length / blockBytes))
  const second = await writePoint(place.repository, data.length, first.point, (stream) =>
    Promise.all(changed.map((block) => changeBlock(stream, data, block))),
  )
  assert.deepEqual(second.unusable, [])
  const { summary } = second
  assert.equal(summary.newChunks, 3)
  assert.equal(summary.readBytes, 20 * blockBytes + 100)
  assert.ok(summary.storedBytes <= 21 * (blockBytes + 100), `${summary.storedBytes} bytes of chunks`)
  assert.equal(summary.newChunks + summary.knownChunks + summary.zeroChunks, 101)
  assert.ok(place.backend.putBytes - bytesBefore - summary.storedBytes < 16_000, 'map, index and manifest are small')
  assert.deepEqual(featuresOf(place, second.point), ['parts'])
  assert.ok((await readStream(second.point)).equals(data))
  assert.ok((await readStream(first.point)).equals(before))
  assert.deepEqual((await place.repository.verify()).damage, [])
})

test('all that is stored is needed by some point, and each point names all it needs', async () => {
  await using place = await openMemoryRepository(chunkSizeBytes)
  const data = randomBytes(12 * chunkSizeBytes)
  const { point: first } = await writePoint(place.repository, data.length, undefined, (stream) =>
    writeAll(stream, data),
  )
  const { point: second } = await writePoint(place.repository, data.length, first, async (stream) => {
    for (const block of [1, 9, 17, 18]) await changeBlock(stream, data, block)
  })
  const [ofFirst, ofSecond] = [await needed(place, first), await needed(place, second)]
  assert.deepEqual([...new Set([...ofFirst, ...ofSecond])].sort(), [...new Set(recordsIn(place))].sort())
  // The second builds upon chunks of the first, and needs them itself.
  assert.equal(recordsIn(place, recordKinds.chunk).filter((id) => ofSecond.has(id)).length, 13)
})

test('nothing changed: next to nothing is stored, and the segments are those of the base', async () => {
  await using place = await openMemoryRepository(chunkSizeBytes)
  const data = randomBytes(40 * chunkSizeBytes)
  const { point: first } = await writePoint(place.repository, data.length, undefined, (stream) =>
    writeAll(stream, data),
  )
  const before = place.backend.putBytes
  const second = await writePoint(place.repository, data.length, first, async () => undefined)
  assert.ok(place.backend.putBytes - before < 2000, `${place.backend.putBytes - before} bytes`)
  assert.deepEqual(second.summary, { ...first.streams[0], readBytes: 0, storedBytes: 0, newChunks: 0, knownChunks: 40 })
  assert.deepEqual(await needed(place, second.point), await needed(place, first))
  assert.deepEqual(featuresOf(place, second.point), [])
})

test('reading everything again stores nothing twice, parts neither; what has changed is stored', async () => {
  await using place = await openMemoryRepository(chunkSizeBytes)
  const data = randomBytes(20 * chunkSizeBytes - 5)
  const { point: first } = await writePoint(place.repository, data.length, undefined, (stream) =>
    writeAll(stream, data),
  )
  const { point: second } = await writePoint(place.repository, data.length, first, async (stream) => {
    for (const block of [8, 17, 30, 159]) await changeBlock(stream, data, block)
    data.fill(0, 40 * blockBytes, 41 * blockBytes)
    await stream.zeroBlocks(5, [0])
  })
  for (const how of ['inherited', 'empty'] as const) {
    await using draft = await place.repository.beginPoint()
    await using stream = await draft.openStream('disk', data.length, { point: second, stream: 'disk' })
    if (how === 'empty') stream.startEmpty()
    else for await (const chunk of stream.unusableChunks()) assert.fail(`chunk ${chunk} is not usable`)
    await writeAll(stream, data)
    const summary = await stream.finish()
    assert.equal(summary.newChunks, 0)
    assert.equal(summary.storedBytes, 0)
    const third = await draft.commit({})
    assert.deepEqual(await needed(place, third), await needed(place, second))
    assert.ok((await readStream(third)).equals(data))
  }
  data[17 * blockBytes] = (data[17 * blockBytes] ?? 0) ^ 1 // in a chunk of parts
  data[9 * chunkSizeBytes] = (data[9 * chunkSizeBytes] ?? 0) ^ 1
  const fourth = await writePoint(place.repository, data.length, second, (stream) => writeAll(stream, data))
  assert.equal(fourth.summary.newChunks, 2)
  assert.ok((await readStream(fourth.point)).equals(data))
})

test('all blocks of a chunk are a chunk, which is stored once', async () => {
  await using place = await openMemoryRepository(chunkSizeBytes)
  const data = randomBytes(3 * chunkSizeBytes)
  const { point } = await writePoint(place.repository, data.length, undefined, (stream) => writeAll(stream, data))
  const all = Array.from({ length: blocksPerChunk }, (_, block) => block)
  const next = await writePoint(place.repository, data.length, point, async (stream) => {
    await stream.writeBlocks(0, all, data.subarray(2 * chunkSizeBytes))
    await stream.zeroBlocks(1, all)
    await stream.writeBlocks(2, [3, 4], Buffer.alloc(2 * blockBytes))
  })
  assert.equal(next.summary.newChunks, 0)
  assert.equal(next.summary.zeroChunks, 1)
  data.copyWithin(0, 2 * chunkSizeBytes)
  data.fill(0, chunkSizeBytes, 2 * chunkSizeBytes)
  data.fill(0, 2 * chunkSizeBytes + 3 * blockBytes, 2 * chunkSizeBytes + 5 * blockBytes)
  assert.ok((await readStream(next.point)).equals(data))
})

test('a repository with chunks of one block never has parts', async () => {
  await using place = await openMemoryRepository(blockBytes)
  const data = randomBytes(5 * blockBytes)
  const { point } = await writePoint(place.repository, data.length, undefined, async (stream) => {
    for (let block = 0; block < 5; block += 1)
      await stream.writeBlocks(block, [0], data.subarray(block * blockBytes, (block + 1) * blockBytes))
  })
  const next = await writePoint(place.repository, data.length, point, async (stream) => {
    await stream.zeroBlocks(1, [0])
    await stream.writeBlocks(3, [0], data.subarray(0, blockBytes))
  })
  assert.deepEqual(featuresOf(place, next.point), [])
  data.fill(0, blockBytes, 2 * blockBytes)
  data.copyWithin(3 * blockBytes, 0, blockBytes)
  assert.ok((await readStream(next.point)).equals(data))
})

test('what the repository has lost is asked for, and the new point is whole again', async () => {
  await using place = await openMemoryRepository(chunkSizeBytes)
  const data = randomBytes(10 * chunkSizeBytes)
  const { point: first } = await writePoint(place.repository, data.length, undefined, (stream) =>
    writeAll(stream, data),
  )
  const { point: second } = await writePoint(place.repository, data.length, first, async (stream) => {
    for (const block of [3, 44, 45]) await changeBlock(stream, data, block)
  })
  for (const key of [...place.backend.objects.keys()]) {
    if (key.startsWith(`indexes/${first.id}/`)) place.backend.objects.delete(key)
  }
  {
    await using again = await place.openAgain()
    const third = await writePoint(again, data.length, second, async (stream, unusable) => {
      await assert.rejects(stream.writeBlocks(0, [0], data.subarray(0, blockBytes)), /not usable/)
      for (const chunk of unusable) {
        await stream.writeChunk(chunk, data.subarray(chunk * chunkSizeBytes, (chunk + 1) * chunkSizeBytes))
      }
    })
    assert.deepEqual(third.unusable, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert.ok((await readStream(third.point)).equals(data))
    const report = await again.verify({ points: [third.point.id] })
    assert.deepEqual(report.damage, [])
  }
  for (const key of [...place.backend.objects.keys()]) {
    if (key.startsWith(`indexes/${second.id}/`)) place.backend.objects.delete(key)
  }
  await using last = await place.openAgain()
  await assert.rejects(
    writePoint(last, data.length, second, async () => undefined),
    /not written/,
    'a point that lacks chunks is none',
  )
})

test('only the chunks behind lost records are asked for; a lost segment means all of its chunks', async () => {
  await using place = await openMemoryRepository(chunkSizeBytes)
  const data = randomBytes(10 * chunkSizeBytes)
  const { point: first } = await writePoint(place.repository, data.length, undefined, (stream) =>
    writeAll(stream, data),
  )
  const { point: second } = await writePoint(place.repository, data.length, first, async (stream) => {
    for (const block of [3, 44, 45]) await changeBlock(stream, data, block)
  })
  const { point: third } = await writePoint(place.repository, data.length, second, async (stream) => {
    await changeBlock(stream, data, 70)
  })
  const drop = (id: string) => {
    for (const key of [...place.backend.objects.keys()])
      if (key.startsWith(`indexes/${id}/`)) place.backend.objects.delete(key)
  }
  drop(second.id) // holds the parts of chunks 0 and 5, and a segment the third does not use
  await using again = await place.openAgain()
  const fourth = await writePoint(again, data.length, third, async (stream, unusable) => {
    for (const chunk of unusable)
      await stream.writeChunk(chunk, data.subarray(chunk * chunkSizeBytes, (chunk + 1) * chunkSizeBytes))
  })
  assert.deepEqual(fourth.unusable, [0, 5])
  assert.ok((await readStream(fourth.point)).equals(data))
  drop(third.id)
  await using last = await place.openAgain()
  await using draft = await last.beginPoint()
  await using stream = await draft.openStream('disk', data.length, { point: third, stream: 'disk' })
  const unusable: number[] = []
  for await (const chunk of stream.unusableChunks()) unusable.push(chunk)
  assert.equal(unusable.length, 10)
})

test('a base must be there and of the same size, and must be looked at before anything is written', async () => {
  await using place = await openMemoryRepository(chunkSizeBytes)
  const data = randomBytes(2 * chunkSizeBytes)
  const { point } = await writePoint(place.repository, data.length, undefined, (stream) => writeAll(stream, data))
  await using draft = await place.repository.beginPoint()
  const base = { point, stream: 'disk' }
  await assert.rejects(draft.openStream('a', data.length + 1, base), /a base of/)
  const code = (wanted: string) => (error: unknown) => error instanceof Failure && error.code === wanted
  await assert.rejects(
    draft.openStream('b', data.length, { point, stream: 'other' }),
    code('RECOVERY_POINT_PART_NOT_FOUND'),
  )
  await using withoutBase = await draft.openStream('b', data.length) // the name is still free
  await withoutBase.finish()
  await using stream = await draft.openStream('c', data.length, base)
  await assert.rejects(stream.writeBlocks(0, [1], data.subarray(0, blockBytes)), /not asked for/)
  await assert.rejects(stream.finish(), /not asked for/)
  await place.repository.deletePoint(point.id)
  await assert.rejects(draft.openStream('d', data.length, base), code('RECOVERY_POINT_NOT_FOUND'))
})
