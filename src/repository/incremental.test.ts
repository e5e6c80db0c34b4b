/**
 * Points built upon points, against a model of bytes: whatever was written how, every point restores exactly what its disk
 * was, and goes on doing so when others are deleted.
 */
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import fc from 'fast-check'
import { openMemoryRepository } from '../../test/sim/memory-repository.ts'
import { makeKeyFile } from './keys/key-secret.ts'
import type { Encryption } from './keys/unlock.ts'
import type { RecoveryPoint, Repository, StreamWriter } from './repository.ts'

const blockBytes = 64 * 1024
const blocksPerChunk = 4
const chunkSizeBytes = blocksPerChunk * blockBytes
/** Two segments; the last chunk has two blocks, of which the last is short. */
const chunkCount = 4100
const sizeBytes = (chunkCount - 1) * chunkSizeBytes + blockBytes + 777
/** The chunks that are written: both sides of a segment's border and both ends. */
const chunks = [0, 1, 4095, 4096, chunkCount - 1]

const blocksIn = (chunk: number) => (chunk === chunkCount - 1 ? 2 : blocksPerChunk)
const blockLength = (chunk: number, block: number) => (chunk === chunkCount - 1 && block === 1 ? 777 : blockBytes)

/** A value for each block of the chunks that are written; 0 is zeros. */
type Disk = ReadonlyMap<number, readonly number[]>
const emptyDisk: Disk = new Map(chunks.map((chunk) => [chunk, new Array<number>(blocksIn(chunk)).fill(0)]))

function blockOf(chunk: number, block: number, value: number): Buffer {
  const bytes = Buffer.alloc(blockLength(chunk, block))
  if (value !== 0) bytes.fill(`value ${value} `)
  return bytes
}

const chunkOf = (chunk: number, values: readonly number[]) =>
  Buffer.concat(values.map((value, block) => blockOf(chunk, block, value)))

interface Write {
  readonly kind: 'chunk' | 'blocks' | 'zeros'
  readonly chunk: number
  /** Which blocks, and what with. */
  readonly mask: number
  readonly values: readonly number[]
}

interface Round {
  /** How the point is made: from nothing, upon an earlier one, or read whole and compared with an earlier one. */
  readonly how: 'full' | 'changed' | 'compared'
  /** Chooses the earlier one. */
  readonly upon: number
  readonly writes: readonly Write[]
}

const chosen = ({ chunk, mask }: Write) =>
  Array.from({ length: blocksIn(chunk) }, (_, block) => block).filter((block) => ((mask >> block) & 1) === 1)

function applied(disk: Disk, writes: readonly Write[]): Disk {
  const next = new Map([...disk].map(([chunk, values]) => [chunk, [...values]]))
  for (const write of writes) {
    const values = next.get(write.chunk) ?? []
    const blocks = write.kind === 'chunk' ? values.map((_, block) => block) : chosen(write)
    for (const block of blocks) values[block] = write.kind === 'zeros' ? 0 : (write.values[block] ?? 0)
  }
  return next
}

async function perform(stream: StreamWriter, write: Write): Promise<void> {
  const { chunk, values } = write
  const blocks = chosen(write)
  if (write.kind === 'chunk') return stream.writeChunk(chunk, chunkOf(chunk, values.slice(0, blocksIn(chunk))))
  if (write.kind === 'zeros') return stream.zeroBlocks(chunk, blocks)
  const data = Buffer.concat(blocks.map((block) => blockOf(chunk, block, values[block] ?? 0)))
  return stream.writeBlocks(chunk, blocks, data)
}

/** Many at once; about one chunk one after the other. */
async function performAll(stream: StreamWriter, writes: readonly Write[]): Promise<void> {
  const turns = new Map<number, Promise<void>>()
  for (const write of writes) {
    turns.set(
      write.chunk,
      (turns.get(write.chunk) ?? Promise.resolve()).then(() => perform(stream, write)),
    )
  }
  await Promise.all(turns.values())
}

/** As a disk that is read whole: chunks of zeros are holes and are not written. */
async function writeWhole(stream: StreamWriter, disk: Disk): Promise<void> {
  for (const [chunk, values] of disk) {
    if (values.some((value) => value !== 0)) await stream.writeChunk(chunk, chunkOf(chunk, values))
  }
}

interface Made {
  readonly point: RecoveryPoint
  readonly disk: Disk
}

async function makePoint(repository: Repository, round: Round, made: readonly Made[]): Promise<Made> {
  const earlier = round.how === 'full' ? undefined : made[round.upon % Math.max(1, made.length)]
  const disk = applied(round.how === 'full' ? emptyDisk : (earlier?.disk ?? emptyDisk), round.writes)
  await using draft = await repository.beginPoint()
  const base = earlier === undefined ? undefined : { point: earlier.point, stream: 'sda' }
  await using stream = await draft.openStream('sda', sizeBytes, base)
  if (round.how === 'compared') {
    stream.startEmpty()
    await writeWhole(stream, disk)
  } else {
    for await (const chunk of stream.unusableChunks()) assert.fail(`chunk ${chunk} is not usable`)
    await performAll(stream, round.writes)
  }
  const summary = await stream.finish()
  const used = [...disk.values()].filter((values) => values.some((value) => value !== 0)).length
  assert.ok(summary.zeroChunks <= chunkCount - used) // a chunk may hold zeros where others of its blocks were zeroed
  return { point: await draft.commit({}), disk }
}

async function assertHolds(point: RecoveryPoint, disk: Disk): Promise<void> {
  await using source = await point.openStream('sda')
  for (const [chunk, values] of disk) {
    const wanted = chunkOf(chunk, values)
    const found = Buffer.alloc(wanted.length, 0xaa)
    await source.read(chunk * chunkSizeBytes, found)
    assert.ok(found.equals(wanted), `chunk ${chunk}`)
    const within = Buffer.alloc(Math.min(blockBytes, wanted.length) - 20, 0xaa)
    await source.read(chunk * chunkSizeBytes + 10, within)
    assert.ok(within.equals(wanted.subarray(10, 10 + within.length)), `within chunk ${chunk}`)
  }
  let at = 0
  for await (const { offset, length, data } of source.extents(0, sizeBytes)) {
    assert.equal(offset, at)
    at += length
    for (const [chunk, values] of disk) {
      for (const [block, value] of values.entries()) {
        const start = chunk * chunkSizeBytes + block * blockBytes
        if (value !== 0 && start >= offset && start < at) assert.ok(data, `block ${block} of chunk ${chunk} is no hole`)
      }
    }
    const last = Math.floor((at - 1) / chunkSizeBytes)
    for (let chunk = Math.floor(offset / chunkSizeBytes); data && chunk <= last; chunk += 1) {
      assert.ok(chunks.includes(chunk), `chunk ${chunk} is a hole`)
    }
  }
  assert.equal(at, sizeBytes)
}

const value = fc.oneof({ weight: 3, arbitrary: fc.nat(4) }, fc.integer({ min: 5, max: 1000 }))
const write: fc.Arbitrary<Write> = fc.record({
  kind: fc.constantFrom('chunk', 'blocks', 'blocks', 'blocks', 'zeros'),
  chunk: fc.constantFrom(...chunks),
  mask: fc.integer({ min: 0, max: 15 }),
  values: fc.array(value, { minLength: blocksPerChunk, maxLength: blocksPerChunk }),
})
const round: fc.Arbitrary<Round> = fc.record({
  how: fc.constantFrom('full', 'changed', 'changed', 'changed', 'compared'),
  upon: fc.nat(),
  writes: fc.array(write, { maxLength: 8 }),
})

async function assertRestores(encryption: Encryption, numRuns: number): Promise<void> {
  await fc.assert(
    fc.asyncProperty(fc.array(round, { minLength: 1, maxLength: 6 }), fc.nat(), async (rounds, deleted) => {
      await using place = await openMemoryRepository(chunkSizeBytes, encryption)
      const { repository } = place
      const made: Made[] = []
      for (const one of rounds) made.push(await makePoint(repository, one, made))
      for (const { point, disk } of made) await assertHolds(point, disk)
      const kept = made.filter((_, index) => ((deleted >> index) & 1) === 0)
      for (const { point } of made.filter((one) => !kept.includes(one))) await repository.deletePoint(point.id)
      await using other = await place.openAgain()
      for (const { point, disk } of kept) await assertHolds(await other.point(point.id), disk)
      assert.deepEqual((await other.verify()).damage, [])
    }),
    { numRuns },
  )
}

test('every point restores what its disk was, however it was built and whichever others are deleted', async () => {
  await assertRestores('none', 40)
})

test('in an encrypted repository as well', async () => {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-incremental-'))
  try {
    const keyFile = path.join(folder, 'key')
    await makeKeyFile(keyFile)
    await assertRestores({ keyFile }, 8)
  } finally {
    await rm(folder, { recursive: true })
  }
})
