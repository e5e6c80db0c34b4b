/**
 * A stream of a recovery point as a BlockSource: reads chunks through the store, which verifies them, and knows the runs
 * of zeros from the stream's map without reading anything.
 */
import type { Extent, LendingSource } from '../../disk/block-device.ts'
import { failure } from '../../errors.ts'
import type { ChunkStore } from '../chunks/chunk-store.ts'
import { blockSizeBytes, check, FormatError } from '../format.ts'
import type { ManifestStream } from '../recovery-point.ts'
import { segmentChunks } from './map-segment.ts'
import { placeEquals, readPlace } from './place-read.ts'
import { openStreamMap, type StreamMap } from './stream-map.ts'

/** Opens the stream for reading. REPOSITORY_CHUNK_CORRUPT at offset 0 when its map's root is damaged. */
export async function openStreamSource(
  store: ChunkStore,
  pointId: string,
  stream: ManifestStream,
): Promise<LendingSource> {
  const map = await openStreamMap(store, stream).catch((error: unknown) => {
    throw chunkFailure(error, stream.name, pointId, 0)
  })
  return new StreamSource(store, map, { stream: stream.name, point: pointId })
}

/** What is wrong with a chunk, told with the stream and the offset; anything else as it is. */
export function chunkFailure(error: unknown, stream: string, point: string, offset: number): unknown {
  if (!(error instanceof FormatError)) return error
  return failure('REPOSITORY_CHUNK_CORRUPT', { stream, point, offset, reason: error.message }, error)
}

/** The first byte is zero, and each is the one before it. */
const isZero = (data: Buffer): boolean =>
  data.length === 0 || (data[0] === 0 && data.subarray(1).equals(data.subarray(0, -1)))

class StreamSource implements LendingSource {
  readonly sizeBytes: number
  readonly #store: ChunkStore
  readonly #map: StreamMap
  readonly #name: { readonly stream: string; readonly point: string }
  #open = true

  constructor(store: ChunkStore, map: StreamMap, name: { readonly stream: string; readonly point: string }) {
    this.sizeBytes = map.sizeBytes
    this.#store = store
    this.#map = map
    this.#name = name
  }

  async read(offset: number, target: Uint8Array): Promise<void> {
    this.#checkRange(offset, target.length)
    const { chunkSizeBytes } = this.#map
    const reads: Promise<void>[] = []
    for (let at = 0; at < target.length; ) {
      const chunkNumber = Math.floor((offset + at) / chunkSizeBytes)
      const skip = offset + at - chunkNumber * chunkSizeBytes
      const length = Math.min(chunkSizeBytes - skip, target.length - at)
      reads.push(this.#readChunk(chunkNumber, skip, target.subarray(at, at + length)))
      at += length
    }
    // Nothing may write to the target after this has settled.
    for (const outcome of await Promise.allSettled(reads)) if (outcome.status === 'rejected') throw outcome.reason
  }

  async withBytes(offset: number, length: number, use: (data: Uint8Array) => Promise<void>): Promise<void> {
    this.#checkRange(offset, length)
    const { chunkSizeBytes } = this.#map
    const chunkNumber = Math.floor(offset / chunkSizeBytes)
    const skip = offset - chunkNumber * chunkSizeBytes
    const place = skip + length <= chunkSizeBytes ? await this.#map.at(chunkNumber).catch(() => undefined) : undefined
    if (place === undefined || !('whole' in place)) {
      const data = Buffer.allocUnsafeSlow(length)
      await this.read(offset, data)
      return use(data)
    }
    try {
      await this.#store.withChunk(place.whole, (plain) => {
        check(skip + length <= plain.length, `a chunk of ${plain.length} bytes`)
        return use(plain.subarray(skip, skip + length))
      })
    } catch (error) {
      throw chunkFailure(error, this.#name.stream, this.#name.point, offset - skip)
    }
  }

  async holds(offset: number, data: Buffer): Promise<boolean> {
    this.#checkRange(offset, data.length)
    try {
      const place = await this.#map.at(Math.floor(offset / this.#map.chunkSizeBytes))
      if (place === undefined) return isZero(data)
      if ('whole' in place) return place.whole.equals(this.#store.seal.idOf(data))
      return await placeEquals(this.#store, place, data)
    } catch (error) {
      throw chunkFailure(error, this.#name.stream, this.#name.point, offset)
    }
  }

  async #readChunk(chunkNumber: number, skip: number, target: Uint8Array): Promise<void> {
    const { chunkSizeBytes } = this.#map
    const offset = chunkNumber * chunkSizeBytes
    try {
      const place = await this.#map.at(chunkNumber)
      await readPlace(this.#store, place, Math.min(chunkSizeBytes, this.sizeBytes - offset), skip, target)
    } catch (error) {
      throw chunkFailure(error, this.#name.stream, this.#name.point, offset)
    }
  }

  async *extents(offset: number, length: number): AsyncIterable<Extent> {
    this.#checkRange(offset, length)
    const end = offset + length
    let run: Extent | undefined
    for (let at = offset; at < end; ) {
      const piece = await this.#pieceAt(at, end)
      if (run !== undefined && run.data !== piece.data) {
        yield run
        run = undefined
      }
      run = run === undefined ? piece : { ...run, length: run.length + piece.length }
      at += piece.length
    }
    if (run !== undefined) yield run
  }

  /** The rest of a run of chunks of one kind within a segment; of a block where the chunk is made of parts. */
  async #pieceAt(offset: number, end: number): Promise<Extent> {
    const { chunkSizeBytes } = this.#map
    const chunkNumber = Math.floor(offset / chunkSizeBytes)
    const segmentNumber = Math.floor(chunkNumber / segmentChunks)
    const first = segmentNumber * segmentChunks
    const segment = await this.#map.segment(segmentNumber).catch((error: unknown) => {
      throw chunkFailure(error, this.#name.stream, this.#name.point, offset)
    })
    const upTo = (next: number, data: boolean) => ({ offset, length: Math.min(next, end) - offset, data })
    if (segment === undefined) return upTo((first + segmentChunks) * chunkSizeBytes, false)
    const place = segment.at(chunkNumber - first)
    if (place !== undefined && 'blocks' in place) {
      const block = Math.floor((offset - chunkNumber * chunkSizeBytes) / blockSizeBytes)
      return upTo(chunkNumber * chunkSizeBytes + (block + 1) * blockSizeBytes, place.blocks[block] !== undefined)
    }
    let next = chunkNumber + 1
    while (next < first + segmentChunks && segment.kindAt(next - first) === segment.kindAt(chunkNumber - first))
      next += 1
    return upTo(next * chunkSizeBytes, place !== undefined)
  }

  #checkRange(offset: number, length: number): void {
    const disk = this.#name.stream
    if (!this.#open) throw failure('DISK_READ_FAILED', { disk, offset, reason: 'it is closed' })
    const inside = Number.isSafeInteger(offset) && offset >= 0 && offset + length <= this.sizeBytes
    const reason = `${length} bytes there are not within its ${this.sizeBytes}`
    if (!inside) throw failure('DISK_READ_FAILED', { disk, offset, reason })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#open = false
  }
}
