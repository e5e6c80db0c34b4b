/**
 * A stream of a recovery point as a BlockSource: reads chunks through the store, which verifies them, and knows the runs
 * of zeros from the stream's map without reading anything.
 */
import type { BlockSource, Extent } from '../disk/block-device.ts'
import { failure } from '../errors.ts'
import type { ChunkStore } from './chunk-store.ts'
import {
  chunkCountOf,
  decodeRoot,
  decodeSegment,
  type Segment,
  type StreamMapRoot,
  segmentChunks,
} from './disk-index.ts'
import { check, FormatError } from './format.ts'
import type { Blob, ManifestStream } from './recovery-point.ts'

/** Segments of the map kept decoded: 136 KiB each. */
const cachedSegments = 8

/** The bytes of a blob, each chunk verified; FormatError. */
export async function readBlob(store: ChunkStore, blob: Blob, maxBytes: number): Promise<Buffer> {
  check(blob.sizeBytes <= maxBytes, `${blob.sizeBytes} bytes are too many`)
  const bytes = Buffer.alloc(blob.sizeBytes)
  let filled = 0
  for (const id of blob.chunks) {
    filled += await store.withChunk(Buffer.from(id, 'hex'), (piece) => {
      check(filled + piece.length <= blob.sizeBytes, 'it is longer than it says')
      bytes.set(piece, filled)
      return piece.length
    })
  }
  check(filled === blob.sizeBytes, 'it is shorter than it says')
  return bytes
}

/** The map of one stream, its segments read when they are needed. */
export interface StreamMap {
  readonly sizeBytes: number
  readonly chunkSizeBytes: number
  readonly chunkCount: number
  /** Undefined when the whole segment is zeros. FormatError when it can not be read. */
  segment(number: number): Promise<Segment | undefined>
}

export async function openStreamMap(store: ChunkStore, stream: ManifestStream): Promise<StreamMap> {
  const root = decodeRoot(await readBlob(store, stream.map, 1 << 30))
  check(root.sizeBytes === stream.sizeBytes, 'the stream map has another size')
  const { sizeBytes, chunkSizeBytes } = root
  const segments = new Map<number, Promise<Segment | undefined>>()
  return {
    sizeBytes,
    chunkSizeBytes,
    chunkCount: chunkCountOf(sizeBytes, chunkSizeBytes),
    segment(number) {
      const segment = segments.get(number) ?? readSegment(store, root, number)
      segments.delete(number)
      segments.set(number, segment)
      segment.catch(() => segments.delete(number))
      const [oldest] = segments.keys()
      if (segments.size > cachedSegments && oldest !== undefined) segments.delete(oldest)
      return segment
    },
  }
}

async function readSegment(store: ChunkStore, root: StreamMapRoot, number: number): Promise<Segment | undefined> {
  const id = root.segmentIds[number]
  return id === undefined ? undefined : decodeSegment(await store.read(id))
}

/** Opens the stream for reading. REPOSITORY_CHUNK_CORRUPT at offset 0 when its map's root is damaged. */
export async function openStreamSource(
  store: ChunkStore,
  pointId: string,
  stream: ManifestStream,
): Promise<BlockSource> {
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

class StreamSource implements BlockSource {
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

  async #readChunk(chunkNumber: number, skip: number, target: Uint8Array): Promise<void> {
    const { chunkSizeBytes } = this.#map
    const offset = chunkNumber * chunkSizeBytes
    try {
      const id = await this.#idAt(chunkNumber)
      if (id === undefined) {
        target.fill(0)
        return
      }
      await this.#store.withChunk(id, (plain) => {
        check(plain.length === Math.min(chunkSizeBytes, this.sizeBytes - offset), `a chunk of ${plain.length} bytes`)
        target.set(plain.subarray(skip, skip + target.length))
      })
    } catch (error) {
      throw chunkFailure(error, this.#name.stream, this.#name.point, offset)
    }
  }

  async #idAt(chunkNumber: number): Promise<Buffer | undefined> {
    const segment = await this.#map.segment(Math.floor(chunkNumber / segmentChunks))
    return segment?.idAt(chunkNumber % segmentChunks)
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

  /** The rest of a chunk, or of a segment that is all zeros. */
  async #pieceAt(offset: number, end: number): Promise<Extent> {
    const { chunkSizeBytes } = this.#map
    const chunkNumber = Math.floor(offset / chunkSizeBytes)
    const segmentNumber = Math.floor(chunkNumber / segmentChunks)
    const segment = await this.#map.segment(segmentNumber).catch((error: unknown) => {
      throw chunkFailure(error, this.#name.stream, this.#name.point, offset)
    })
    const next = segment === undefined ? (segmentNumber + 1) * segmentChunks : chunkNumber + 1
    const data = segment?.idAt(chunkNumber % segmentChunks) !== undefined
    return { offset, length: Math.min(next * chunkSizeBytes, end) - offset, data }
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
