/** Roots of stream maps: those that do not fit their own numbers are refused. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { blake3Digest } from '../chunks/blake3.ts'
import { FormatError } from '../format.ts'
import { segmentChunks } from './map-segment.ts'
import { decodeRoot, encodeRoot } from './stream-map-root.ts'

const chunkSizeBytes = 65536
const id = blake3Digest(Buffer.from('a segment'))

test('a root is read as it was written, and bytes 10 and 11 are 0 unless some segment has parts', () => {
  const root = { sizeBytes: 5000 * chunkSizeBytes - 1, chunkSizeBytes, hasParts: false, segmentIds: [undefined, id] }
  const bytes = encodeRoot(root)
  assert.deepEqual(decodeRoot(bytes), root)
  assert.equal(bytes.readUInt16LE(10), 0)
  const withParts = encodeRoot({ ...root, hasParts: true })
  assert.deepEqual(decodeRoot(withParts), { ...root, hasParts: true })
  assert.equal(withParts.readUInt16LE(10), 1)
})

test('a root that does not fit its own numbers is refused', () => {
  const root = encodeRoot({ sizeBytes: 5 * chunkSizeBytes, chunkSizeBytes, hasParts: false, segmentIds: [id] })
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
  spoil((bytes) => bytes.writeUInt16LE(2, 10))
  assert.throws(() => decodeRoot(root.subarray(0, root.length - 1)), FormatError)
})
