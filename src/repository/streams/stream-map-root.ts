/**
 * The root of a stream's map: the size of the stream and the segments of its map, by their ids. Stored as a blob of its own.
 * See docs/repository-format.md, "Stream maps". Pure.
 */
import { digestBytes } from '../chunks/blake3.ts'
import { check, chunkSizeLimits, formatVersion } from '../format.ts'
import { segmentChunks } from './map-segment.ts'

const rootMagic = 'UMBRASTR'
const rootHeaderBytes = 32
const zeroId = Buffer.alloc(digestBytes)
const partsFlag = 1

/** The longest root that is read: a stream has fewer than 2^32 chunks. */
export const rootMaxBytes = rootHeaderBytes + (2 ** 32 / segmentChunks) * digestBytes

export interface StreamMapRoot {
  readonly sizeBytes: number
  readonly chunkSizeBytes: number
  /** Some segment has places of parts, which the first programs can not read. */
  readonly hasParts: boolean
  /** The id of each segment; undefined for one that is all zeros. */
  readonly segmentIds: readonly (Buffer | undefined)[]
}

/** How many chunks a stream of `sizeBytes` has. */
export function chunkCountOf(sizeBytes: number, chunkSizeBytes: number): number {
  return Math.ceil(sizeBytes / chunkSizeBytes)
}

/** How many segments the map of such a stream has. */
export function segmentCountOf(sizeBytes: number, chunkSizeBytes: number): number {
  return Math.ceil(chunkCountOf(sizeBytes, chunkSizeBytes) / segmentChunks)
}

export function encodeRoot(root: StreamMapRoot): Buffer {
  const bytes = Buffer.alloc(rootHeaderBytes + root.segmentIds.length * digestBytes)
  bytes.write(rootMagic, 0, 'latin1')
  bytes.writeUInt16LE(formatVersion, 8)
  bytes.writeUInt16LE(root.hasParts ? partsFlag : 0, 10)
  bytes.writeUInt32LE(root.chunkSizeBytes, 12)
  bytes.writeBigUInt64LE(BigInt(root.sizeBytes), 16)
  bytes.writeUInt32LE(root.segmentIds.length, 24)
  for (const [number, id] of root.segmentIds.entries()) bytes.set(id ?? zeroId, rootHeaderBytes + number * digestBytes)
  return bytes
}

export function decodeRoot(bytes: Buffer): StreamMapRoot {
  check(bytes.length >= rootHeaderBytes, 'the root of the stream map is cut off')
  check(bytes.toString('latin1', 0, 8) === rootMagic, 'it does not begin as a stream map')
  check(bytes.readUInt16LE(8) <= formatVersion, 'a stream map of a newer format')
  const flags = bytes.readUInt16LE(10)
  check(flags === 0 || flags === partsFlag, 'unknown stream map flags')
  const chunkSizeBytes = bytes.readUInt32LE(12)
  check(isChunkSize(chunkSizeBytes), `chunks of ${chunkSizeBytes} bytes`)
  const sizeBytes = Number(bytes.readBigUInt64LE(16))
  check(Number.isSafeInteger(sizeBytes), 'a stream too large to be one')
  const count = bytes.readUInt32LE(24)
  check(count === segmentCountOf(sizeBytes, chunkSizeBytes), 'the wrong number of segments')
  check(bytes.length === rootHeaderBytes + count * digestBytes, 'the stream map has the wrong length')
  const segmentIds = Array.from({ length: count }, (_, number) => {
    const id = bytes.subarray(rootHeaderBytes + number * digestBytes, rootHeaderBytes + (number + 1) * digestBytes)
    return id.equals(zeroId) ? undefined : Buffer.from(id)
  })
  return { sizeBytes, chunkSizeBytes, hasParts: flags === partsFlag, segmentIds }
}

/** A power of two within the limits. */
export function isChunkSize(sizeBytes: number): boolean {
  const { minBytes, maxBytes } = chunkSizeLimits
  return sizeBytes >= minBytes && sizeBytes <= maxBytes && Number.isInteger(Math.log2(sizeBytes))
}
