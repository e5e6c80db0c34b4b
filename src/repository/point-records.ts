/**
 * Everything a recovery point needs: the id of every record behind its manifest. For those who must not take one away and
 * for those who read all of them.
 */
import type { ChunkStore } from './chunks/chunk-store.ts'
import type { Manifest } from './recovery-point.ts'
import { readSegment } from './streams/map-pieces.ts'
import { readRoot } from './streams/stream-map.ts'

/**
 * The ids of all records that `manifest` needs: of documents, roots and segments of maps, chunks, parts. In lists of at most
 * one segment's, so that memory does not grow with the point; some come more than once. `isKnown` is asked for each segment:
 * when it says yes, neither the segment nor what it names is listed (two points share what did not change between them).
 * FormatError when a map can not be read: then it is not known what the point needs.
 */
export async function* recordIdsOf(
  store: ChunkStore,
  manifest: Manifest,
  isKnown: (segmentId: Buffer) => boolean = () => false,
): AsyncGenerator<Iterable<Buffer>> {
  for (const { blob } of manifest.documents) yield blob.chunks.map((id) => Buffer.from(id, 'hex'))
  for (const stream of manifest.streams) {
    yield stream.map.chunks.map((id) => Buffer.from(id, 'hex'))
    const root = await readRoot(store, stream)
    for (const [number, id] of root.segmentIds.entries()) {
      if (id === undefined || isKnown(id)) continue
      const stored = await readSegment(store, root, number)
      if (stored === undefined) continue
      yield stored.ownIds
      yield stored.segment.recordIds()
    }
  }
}
