/**
 * Stream maps: what was set is found, in whatever order it was set; hostile maps are refused.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { blake3Digest } from './blake3.ts'
import {
  decodeRoot,
  decodeSegment,
  encodeRoot,
  StreamMapBuilder,
  segmentChunks,
  segmentMaxBytes,
} from './disk-index.ts'
import { FormatError } from './format.ts'

const chunkSizeBytes = 65536
const chunkCount = 3 * segmentChunks + 17

const idOf = (value: number) => blake3Digest(Buffer.from(String(value)))

test('the last word on every chunk is what the map says', async () => {
  const chunkNumber = fc.oneof(fc.nat(chunkCount - 1), fc.nat(20), fc.constant(chunkCount - 1))
  const step = fc.tuple(chunkNumber, fc.option(fc.nat(50), { nil: undefined }))
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 200 }), async (steps) => {
      const builder = new StreamMapBuilder(chunkCount * chunkSizeBytes - 5, chunkSizeBytes)
      const model = new Map<number, Buffer>()
      for (const [number, value] of steps) {
        builder.set(number, value === undefined ? undefined : idOf(value))
        if (value === undefined) model.delete(number)
        else model.set(number, idOf(value))
      }
      const segments = new Map<string, Buffer>()
      const { root, chunks } = await builder.finish(async (segment) => {
        const id = blake3Digest(segment)
        segments.set(id.toString('hex'), segment)
        return id
      })
      assert.equal(chunks, model.size)
      const { segmentIds, sizeBytes } = decodeRoot(root)
      assert.equal(sizeBytes, chunkCount * chunkSizeBytes - 5)
      assert.equal(segmentIds.length, 4)
      let found = 0
      for (const [number, id] of segmentIds.entries()) {
        if (id === undefined) continue
        const segment = decodeSegment(segments.get(id.toString('hex')) ?? Buffer.alloc(0))
        for (let place = 0; place < segmentChunks; place += 1) {
          const chunk = segment.idAt(place)
          assert.deepEqual(chunk, model.get(number * segmentChunks + place))
          if (chunk !== undefined) found += 1
        }
      }
      assert.equal(found, model.size)
    }),
    { numRuns: 60 },
  )
})

test('a full segment has its largest size, and one of zeros none', async () => {
  const builder = new StreamMapBuilder(2 * segmentChunks * chunkSizeBytes, chunkSizeBytes)
  for (let number = 0; number < segmentChunks; number += 1) builder.set(number, idOf(number))
  const sizes: number[] = []
  const { root } = await builder.finish(async (segment) => {
    sizes.push(segment.length)
    return blake3Digest(segment)
  })
  assert.deepEqual(sizes, [segmentMaxBytes])
  assert.equal(decodeRoot(root).segmentIds[1], undefined)
})

test('a root that does not fit its own numbers is refused', () => {
  const root = encodeRoot({ sizeBytes: 5 * chunkSizeBytes, chunkSizeBytes, segmentIds: [idOf(1)] })
  assert.equal(decodeRoot(root).segmentIds.length, 1)
  const spoil = (change: (bytes: Buffer) => unknown) => {
    const bytes = Buffer.from(root)
    change(bytes)
    assert.throws(() => decodeRoot(bytes), FormatError)
  }
  spoil((bytes) => bytes.writeUInt32LE(100_000, 12))
  spoil((bytes) => bytes.writeUInt32LE(0, 12))
  spoil((bytes) => bytes.writeBigUInt64LE(2n ** 63n, 16))
  spoil((bytes) => bytes.writeBigUInt64LE(BigInt(chunkSizeBytes * segmentChunks + 1), 16))
  spoil((bytes) => bytes.writeUInt32LE(2, 24))
  spoil((bytes) => bytes.writeUInt16LE(9, 8))
  assert.throws(() => decodeRoot(root.subarray(0, root.length - 1)), FormatError)
})

test('bytes from anywhere are no segment unless their length fits their bits', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 700 }), (bytes) => {
      try {
        const segment = decodeSegment(Buffer.from(bytes))
        for (let place = 0; place < segmentChunks; place += 1) assert.ok((segment.idAt(place)?.length ?? 32) === 32)
      } catch (error) {
        assert.ok(error instanceof FormatError)
      }
    }),
  )
})
