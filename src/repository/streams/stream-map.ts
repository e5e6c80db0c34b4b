/**
 * The map of a stream that is read: its root at once, its segments when they are needed. A few segments are kept decoded,
 * so that memory does not grow with the disk.
 */
import type { ChunkStore } from '../chunks/chunk-store.ts'
import { check } from '../format.ts'
import { readBlob } from '../read-blob.ts'
import type { ManifestStream } from '../recovery-point.ts'
import { readSegment } from './map-pieces.ts'
import { type Place, type Segment, segmentChunks } from './map-segment.ts'
import { chunkCountOf, decodeRoot, rootMaxBytes, type StreamMapRoot } from './stream-map-root.ts'

/** Segments kept decoded: 136 KiB each without parts, 300 KiB with them when chunks have 512 KiB. */
const cachedSegments = 8

export interface StreamMap {
  readonly sizeBytes: number
  readonly chunkSizeBytes: number
  readonly chunkCount: number
  /** Undefined when the whole segment is zeros. FormatError when it can not be read. */
  segment(number: number): Promise<Segment | undefined>
  /** What stands at a chunk's place; undefined for zeros. FormatError. */
  at(chunkNumber: number): Promise<Place | undefined>
}

/** The root of the stream's map; FormatError. */
export async function readRoot(store: ChunkStore, stream: ManifestStream): Promise<StreamMapRoot> {
  const root = decodeRoot(await readBlob(store, stream.map, rootMaxBytes))
  check(root.sizeBytes === stream.sizeBytes, 'the stream map has another size')
  return root
}

/** FormatError when the root can not be read. */
export async function openStreamMap(store: ChunkStore, stream: ManifestStream): Promise<StreamMap> {
  return streamMapOf(store, await readRoot(store, stream))
}

export function streamMapOf(store: ChunkStore, root: StreamMapRoot): StreamMap {
  const { sizeBytes, chunkSizeBytes } = root
  const segments = new Map<number, Promise<Segment | undefined>>()
  const segmentOf = (number: number) => {
    const segment = segments.get(number) ?? read(store, root, number)
    segments.delete(number)
    segments.set(number, segment)
    segment.catch(() => segments.delete(number))
    const [oldest] = segments.keys()
    if (segments.size > cachedSegments && oldest !== undefined) segments.delete(oldest)
    return segment
  }
  return {
    sizeBytes,
    chunkSizeBytes,
    chunkCount: chunkCountOf(sizeBytes, chunkSizeBytes),
    segment: segmentOf,
    async at(chunkNumber) {
      const segment = await segmentOf(Math.floor(chunkNumber / segmentChunks))
      return segment?.at(chunkNumber % segmentChunks)
    },
  }
}

async function read(store: ChunkStore, root: StreamMapRoot, number: number): Promise<Segment | undefined> {
  return (await readSegment(store, root, number))?.segment
}
