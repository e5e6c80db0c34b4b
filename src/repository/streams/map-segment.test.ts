/**
 * Segments of stream maps: what was encoded is found; both forms are told apart; hostile bytes are refused.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { blake3Digest } from '../chunks/blake3.ts'
import type { ChunkStore } from '../chunks/chunk-store.ts'
import { FormatError } from '../format.ts'
import { readSegment, storeSegment } from './map-pieces.ts'
import { decodeSegment, encodeSegment, type Place, type PlacedContent, segmentChunks } from './map-segment.ts'

const blocks = 8
const chunkSizeBytes = blocks * 64 * 1024
const idOf = (value: number) => blake3Digest(Buffer.from(String(value)))

const blockPlace = fc
  .tuple(fc.nat(30), fc.nat(blocks - 1))
  .map(([number, position]) => ({ id: idOf(number), position }))
const someBlocks = fc
  .array(fc.option(blockPlace, { nil: undefined }), { minLength: blocks, maxLength: blocks })
  .filter((list) => list.some((at) => at !== undefined))
const content: fc.Arbitrary<Place> = fc.oneof(
  fc.nat(50).map((number) => ({ whole: idOf(number) })),
  someBlocks.map((list) => ({ blocks: list })),
)
const places: fc.Arbitrary<PlacedContent[]> = fc
  .uniqueArray(fc.tuple(fc.oneof(fc.nat(20), fc.nat(segmentChunks - 1)), content), {
    minLength: 1,
    maxLength: 40,
    selector: ([place]) => place,
  })
  .map((list) => list.map(([place, what]) => ({ place, content: what })).sort((one, other) => one.place - other.place))

function assertIs(bytes: Buffer, wanted: readonly PlacedContent[]): void {
  const segment = decodeSegment(bytes, chunkSizeBytes)
  const byPlace = new Map(wanted.map(({ place, content: what }) => [place, what]))
  for (let place = 0; place < segmentChunks; place += 1) assert.deepEqual(segment.at(place), byPlace.get(place))
  assert.equal(segment.count, wanted.length)
  const named = wanted.flatMap(({ content: what }) =>
    'whole' in what ? [what.whole] : what.blocks.flatMap((at) => (at === undefined ? [] : [at.id])),
  )
  const hex = (ids: Iterable<Buffer>) => [...new Set([...ids].map((id) => id.toString('hex')))].sort()
  assert.deepEqual(hex(segment.recordIds()), hex(named))
}

test('every place of a segment is found again, and every record it needs is named', () => {
  fc.assert(fc.property(places, (wanted) => assertIs(encodeSegment(wanted, blocks), wanted)))
})

test('a segment without parts has the first form, one with parts is no segment of the first', () => {
  fc.assert(
    fc.property(places, (wanted) => {
      const bytes = encodeSegment(wanted, blocks)
      const hasParts = wanted.some((one) => 'blocks' in one.content)
      assert.equal(bytes.length % 32, hasParts ? 16 : 0)
      assert.equal(decodeSegment(bytes, chunkSizeBytes).hasParts, hasParts)
    }),
  )
  const whole = [{ place: 9, content: { whole: idOf(1) } }]
  const bytes = encodeSegment(whole, blocks)
  assert.equal(bytes.length, 512 + 32)
  assert.equal(bytes[1], 2)
  assert.deepEqual(bytes.subarray(512), idOf(1))
})

test('bytes from anywhere are no segment unless all of it fits', () => {
  const reads = (bytes: Buffer) => {
    try {
      const segment = decodeSegment(bytes, chunkSizeBytes)
      for (let place = 0; place < segmentChunks; place += 1) segment.at(place)
    } catch (error) {
      assert.ok(error instanceof FormatError, String(error))
    }
  }
  fc.assert(fc.property(fc.uint8Array({ maxLength: 700 }), (bytes) => reads(Buffer.from(bytes))))
  const spoiled = fc.tuple(
    places,
    fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 4 }),
    fc.nat(40),
  )
  fc.assert(
    fc.property(spoiled, ([wanted, changes, cut]) => {
      const bytes = encodeSegment(wanted, blocks)
      for (const [at, byte] of changes) bytes[at % bytes.length] = byte
      reads(bytes)
      reads(bytes.subarray(0, bytes.length - cut))
    }),
  )
})

test('a segment with parts that does not fit its own numbers is refused', () => {
  const list = Array.from({ length: blocks }, (_, block) => ({ id: idOf(1), position: block }))
  const segment = encodeSegment(
    [
      { place: 3, content: { whole: idOf(7) } },
      { place: 5, content: { blocks: list } },
    ],
    blocks,
  )
  const words = 16 + 1024 + 2 * 32
  const spoil = (reason: RegExp, change: (bytes: Buffer) => unknown, chunkBytes = chunkSizeBytes) => {
    const bytes = Buffer.from(segment)
    change(bytes)
    assert.throws(() => decodeSegment(bytes, chunkBytes), reason)
  }
  assert.ok(decodeSegment(segment, chunkSizeBytes).hasParts)
  spoil(/begin/, (bytes) => bytes.write('X', 0))
  spoil(/another size/, () => 0, chunkSizeBytes * 2)
  spoil(/another size/, () => 0, 64 * 1024)
  spoil(/number of records/, (bytes) => bytes.writeUInt32LE(0, 12))
  spoil(/number of records/, (bytes) => bytes.writeUInt32LE(blocks + 1, 12))
  spoil(/number of records/, (bytes) => bytes.writeUInt32LE(2 ** 32 - 1, 12))
  spoil(/wrong length/, (bytes) => bytes.writeUInt32LE(2, 12))
  spoil(/that is zeros/, (bytes) => bytes.writeUInt8(1, 16 + 512 + 4))
  spoil(/wrong length/, (bytes) => bytes.writeUInt8(1, 16 + 4))
  spoil(/stands nowhere/, (bytes) => bytes.writeUInt32LE(2 * 256, words))
  spoil(/stands nowhere/, (bytes) => bytes.writeUInt32LE(256 + blocks, words))
  spoil(/stands nowhere/, (bytes) => bytes.writeUInt32LE(1, words))
  spoil(/without any/, (bytes) => bytes.fill(0, words, words + 4 * blocks))
  const small = encodeSegment([{ place: 0, content: { blocks: [undefined, { id: idOf(1), position: 0 }] } }], 2)
  assert.ok(decodeSegment(small, 128 * 1024).hasParts)
  small.writeUInt8(1, small.length - 1)
  assert.throws(() => decodeSegment(small, 128 * 1024), /padded/)
})

test('a segment too long for a record is stored in pieces and read again; a list of too many is refused', async () => {
  const stored = new Map<string, Buffer>()
  const put = async (bytes: Buffer) => {
    assert.ok(bytes.length <= chunkSizeBytes)
    const id = blake3Digest(bytes)
    stored.set(id.toString('hex'), Buffer.from(bytes))
    return id
  }
  const read = async (id: Buffer) => Buffer.from(stored.get(id.toString('hex')) ?? Buffer.alloc(0))
  const store: Pick<ChunkStore, 'read'> = { read }
  // The worst there is: every block in a record of its own.
  const worst = Array.from({ length: segmentChunks }, (_, place) => ({
    place,
    content: { blocks: Array.from({ length: blocks }, (_, block) => ({ id: idOf(place * 64 + block), position: 0 })) },
  }))
  const id = await storeSegment(encodeSegment(worst, blocks), chunkSizeBytes, put)
  const root = { sizeBytes: segmentChunks * chunkSizeBytes, chunkSizeBytes, hasParts: true, segmentIds: [id] }
  const found = await readSegment(store as ChunkStore, root, 0)
  assert.equal(found?.ownIds.length, 4)
  assert.deepEqual(found.segment.at(4000), worst[4000]?.content)
  await assert.rejects(readSegment(store as ChunkStore, { ...root, hasParts: false }, 0), /in a map without/)
  const short = { ...root, sizeBytes: root.sizeBytes - 1 - chunkSizeBytes }
  await assert.rejects(readSegment(store as ChunkStore, short, 0), /a place beyond the end/)
  const shorter = { ...root, sizeBytes: root.sizeBytes - 64 * 1024 }
  await assert.rejects(readSegment(store as ChunkStore, shorter, 0), /a block beyond the end/)
  const list = Buffer.concat([Buffer.from('UMBRAPCS'), ...Array.from({ length: 5 }, () => id)])
  const many = { ...root, segmentIds: [await put(list)] }
  await assert.rejects(readSegment(store as ChunkStore, many, 0), /a segment of 5 pieces/)
})

test('a segment with parts has these very bytes', () => {
  const [whole, record, other] = [idOf(1), idOf(2), idOf(3)]
  const bytes = encodeSegment(
    [
      { place: 0, content: { whole } },
      {
        place: 9,
        content: { blocks: [{ id: record, position: 1 }, undefined, { id: other, position: 0 }, undefined] },
      },
      { place: 4095, content: { blocks: [undefined, undefined, undefined, { id: record, position: 3 }] } },
    ],
    4,
  )
  const header = Buffer.from('554d425241534547' + '04000000' + '02000000', 'hex')
  const used = Buffer.alloc(512)
  const parts = Buffer.alloc(512)
  used.set([1, 2])
  parts.set([0, 2])
  used[511] = parts[511] = 0x80
  const words = Buffer.from(`01010000000000000002000000000000${'00000000'.repeat(3)}03010000`, 'hex')
  assert.deepEqual(bytes, Buffer.concat([header, used, parts, whole, record, other, words]))
})
