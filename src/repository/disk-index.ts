/**
 * The map of one stream: which chunk stands at which place, and which places are zeros. It is stored as a tree of two
 * levels: segments of 4096 places, and a root that names them; both are records in packs, so that what did not change
 * since the last point is not stored again. See docs/repository-format.md, "Stream maps". Pure.
 */
import { invariant } from '../base/failure.ts'
import { digestBytes } from './blake3.ts'
import { check, chunkSizeLimits, formatVersion } from './format.ts'

/** Places in one segment. */
export const segmentChunks = 4096
const bitmapBytes = segmentChunks / 8
export const segmentMaxBytes = bitmapBytes + segmentChunks * digestBytes

const rootMagic = 'UMBRASTR'
const rootHeaderBytes = 32
const zeroId = Buffer.alloc(digestBytes)

export interface StreamMapRoot {
  readonly sizeBytes: number
  readonly chunkSizeBytes: number
  /** The id of each segment; undefined for one that is all zeros. */
  readonly segmentIds: readonly (Buffer | undefined)[]
}

/** How many chunks a stream of `sizeBytes` has. */
export function chunkCountOf(sizeBytes: number, chunkSizeBytes: number): number {
  return Math.ceil(sizeBytes / chunkSizeBytes)
}

export function encodeRoot(root: StreamMapRoot): Buffer {
  const bytes = Buffer.alloc(rootHeaderBytes + root.segmentIds.length * digestBytes)
  bytes.write(rootMagic, 0, 'latin1')
  bytes.writeUInt16LE(formatVersion, 8)
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
  check(bytes.readUInt16LE(10) === 0, 'unknown stream map flags')
  const chunkSizeBytes = bytes.readUInt32LE(12)
  check(isChunkSize(chunkSizeBytes), `chunks of ${chunkSizeBytes} bytes`)
  const sizeBytes = Number(bytes.readBigUInt64LE(16))
  check(Number.isSafeInteger(sizeBytes), 'a stream too large to be one')
  const count = bytes.readUInt32LE(24)
  check(count === Math.ceil(chunkCountOf(sizeBytes, chunkSizeBytes) / segmentChunks), 'the wrong number of segments')
  check(bytes.length === rootHeaderBytes + count * digestBytes, 'the stream map has the wrong length')
  const segmentIds = Array.from({ length: count }, (_, number) => {
    const id = bytes.subarray(rootHeaderBytes + number * digestBytes, rootHeaderBytes + (number + 1) * digestBytes)
    return id.equals(zeroId) ? undefined : Buffer.from(id)
  })
  return { sizeBytes, chunkSizeBytes, segmentIds }
}

/** A power of two within the limits. */
export function isChunkSize(sizeBytes: number): boolean {
  const { minBytes, maxBytes } = chunkSizeLimits
  return sizeBytes >= minBytes && sizeBytes <= maxBytes && Number.isInteger(Math.log2(sizeBytes))
}

/** A segment of a stream map as read. */
export interface Segment {
  /** The id of the chunk at `place` (0 to 4095); undefined where the stream is zeros. */
  idAt(place: number): Buffer | undefined
}

export function decodeSegment(bytes: Buffer): Segment {
  check(bytes.length >= bitmapBytes, 'the segment is cut off')
  const ranks = new Uint16Array(segmentChunks)
  let count = 0
  for (let place = 0; place < segmentChunks; place += 1) {
    if (((bytes[place >> 3] ?? 0) >> (place & 7)) & 1) ranks[place] = ++count
  }
  check(count > 0 && bytes.length === bitmapBytes + count * digestBytes, 'the segment has the wrong length')
  return {
    idAt(place) {
      const rank = ranks[place] ?? 0
      if (rank === 0) return undefined
      return bytes.subarray(bitmapBytes + (rank - 1) * digestBytes, bitmapBytes + rank * digestBytes)
    },
  }
}

const placesPerPage = 1024

/** The map of a stream that is being written: 36 bytes for each chunk that is not zeros, in any order, and a bit for each. */
export class StreamMapBuilder {
  readonly #sizeBytes: number
  readonly #chunkSizeBytes: number
  readonly #idPages: Buffer[] = []
  readonly #placePages: Uint32Array[] = []
  readonly #written: Uint8Array
  #size = 0
  #last = -1
  #ascending = true

  constructor(sizeBytes: number, chunkSizeBytes: number) {
    this.#sizeBytes = sizeBytes
    this.#chunkSizeBytes = chunkSizeBytes
    this.#written = new Uint8Array(Math.ceil(chunkCountOf(sizeBytes, chunkSizeBytes) / 8))
  }

  /** `id` undefined says zeros. The last word on a chunk counts. */
  set(chunkNumber: number, id: Buffer | undefined): void {
    const written = this.#written[chunkNumber >>> 3] ?? 0
    if (id === undefined && ((written >> (chunkNumber & 7)) & 1) === 0) return
    this.#written[chunkNumber >>> 3] = written | (1 << (chunkNumber & 7))
    const at = this.#size % placesPerPage
    if (at === 0) {
      this.#idPages.push(Buffer.alloc(placesPerPage * digestBytes))
      this.#placePages.push(new Uint32Array(placesPerPage))
    }
    const page = Math.floor(this.#size / placesPerPage)
    this.#idPages[page]?.set(id ?? zeroId, at * digestBytes)
    const places = this.#placePages[page]
    if (places !== undefined) places[at] = chunkNumber
    this.#size += 1
    if (chunkNumber <= this.#last) this.#ascending = false
    this.#last = chunkNumber
  }

  /** Gives each segment that is not all zeros to `store`, which answers its id; then the root. */
  async finish(store: (segment: Buffer) => Promise<Buffer>): Promise<{ root: Buffer; chunks: number }> {
    const count = Math.ceil(chunkCountOf(this.#sizeBytes, this.#chunkSizeBytes) / segmentChunks)
    const segmentIds = new Array<Buffer | undefined>(count).fill(undefined)
    let chunks = 0
    for (const { number, ids } of this.#segments()) {
      invariant(number < count, 'a chunk beyond the end of its stream')
      chunks += ids.length
      segmentIds[number] = await store(encodeSegment(ids))
    }
    const root = encodeRoot({ sizeBytes: this.#sizeBytes, chunkSizeBytes: this.#chunkSizeBytes, segmentIds })
    return { root, chunks }
  }

  *#segments(): Generator<{ number: number; ids: PlacedId[] }> {
    let number = -1
    let ids: PlacedId[] = []
    for (const { chunkNumber, id } of this.#inOrder()) {
      const segment = Math.floor(chunkNumber / segmentChunks)
      if (segment !== number && ids.length > 0) yield { number, ids }
      if (segment !== number) ids = []
      number = segment
      ids.push({ place: chunkNumber % segmentChunks, id })
    }
    if (ids.length > 0) yield { number, ids }
  }

  *#inOrder(): Generator<{ chunkNumber: number; id: Buffer }> {
    const order = new Uint32Array(this.#size).map((_, index) => index)
    if (!this.#ascending) order.sort((one, other) => this.#place(one) - this.#place(other) || one - other)
    for (const [position, index] of order.entries()) {
      const chunkNumber = this.#place(index)
      const next = order[position + 1]
      if (next !== undefined && this.#place(next) === chunkNumber) continue // said again later
      const at = (index % placesPerPage) * digestBytes
      const id = this.#idPages[Math.floor(index / placesPerPage)]?.subarray(at, at + digestBytes) ?? zeroId
      if (!id.equals(zeroId)) yield { chunkNumber, id }
    }
  }

  #place(index: number): number {
    return this.#placePages[Math.floor(index / placesPerPage)]?.[index % placesPerPage] ?? 0
  }
}

interface PlacedId {
  readonly place: number
  readonly id: Buffer
}

function encodeSegment(ids: readonly PlacedId[]): Buffer {
  const bytes = Buffer.alloc(bitmapBytes + ids.length * digestBytes)
  for (const [rank, { place, id }] of ids.entries()) {
    bytes[place >> 3] = (bytes[place >> 3] ?? 0) | (1 << (place & 7))
    bytes.set(id, bitmapBytes + rank * digestBytes)
  }
  return bytes
}
