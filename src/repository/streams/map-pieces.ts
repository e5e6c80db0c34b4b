/**
 * Segments as records. One that is longer than a record may be is stored in pieces, with a record that lists them.
 * See docs/repository-format.md, "Stream maps".
 */
import { digestBytes } from '../chunks/blake3.ts'
import type { ChunkStore } from '../chunks/chunk-store.ts'
import { blockSizeBytes, check } from '../format.ts'
import { decodeSegment, formRest, type Segment, segmentChunks } from './map-segment.ts'
import type { StreamMapRoot } from './stream-map-root.ts'

const listMagic = 'UMBRAPCS'
/** The longest segment, every block in a record of its own, takes three records of a chunk's size. */
const mostPieces = 4

export interface StoredSegment {
  readonly segment: Segment
  /** The records that hold the segment itself, its own id first. */
  readonly ownIds: readonly Buffer[]
}

/** Reads the segment `number` of `root`; undefined for zeros. FormatError. */
export async function readSegment(
  store: ChunkStore,
  root: StreamMapRoot,
  number: number,
): Promise<StoredSegment | undefined> {
  const id = root.segmentIds[number]
  if (id === undefined) return undefined
  const first = await store.read(id)
  const pieces = first.length % digestBytes === formRest.pieces ? decodeList(first) : []
  const bytes = pieces.length === 0 ? first : Buffer.concat(await Promise.all(pieces.map((piece) => store.read(piece))))
  const segment = decodeSegment(bytes, root.chunkSizeBytes)
  check(root.hasParts || !segment.hasParts, 'a segment with parts in a map without')
  checkEnd(segment, root, number)
  return { segment, ownIds: [id, ...pieces] }
}

/** Nothing stands beyond the end of the stream. */
function checkEnd(segment: Segment, { sizeBytes, chunkSizeBytes }: StreamMapRoot, number: number): void {
  const rest = sizeBytes - number * segmentChunks * chunkSizeBytes
  const places = Math.ceil(rest / chunkSizeBytes)
  for (let place = places; place < segmentChunks; place += 1) {
    check(segment.at(place) === undefined, 'a place beyond the end of the stream')
  }
  const last = places <= segmentChunks ? segment.at(places - 1) : undefined
  if (last === undefined || 'whole' in last) return
  const blocks = Math.ceil((rest - (places - 1) * chunkSizeBytes) / blockSizeBytes)
  check(
    last.blocks.slice(blocks).every((at) => at === undefined),
    'a block beyond the end of the stream',
  )
}

/** Stores a segment by `storeRecord`, which takes no more than `maxRecordBytes` at once; answers its id. */
export async function storeSegment(
  bytes: Buffer,
  maxRecordBytes: number,
  storeRecord: (bytes: Buffer) => Promise<Buffer>,
): Promise<Buffer> {
  if (bytes.length <= maxRecordBytes) return storeRecord(bytes)
  const ids: Buffer[] = []
  for (let at = 0; at < bytes.length; at += maxRecordBytes) {
    ids.push(await storeRecord(bytes.subarray(at, at + maxRecordBytes)))
  }
  return storeRecord(Buffer.concat([Buffer.from(listMagic, 'latin1'), ...ids]))
}

function decodeList(bytes: Buffer): Buffer[] {
  check(bytes.toString('latin1', 0, 8) === listMagic, 'it does not begin as a list of pieces')
  const count = (bytes.length - listMagic.length) / digestBytes
  check(count >= 2 && count <= mostPieces, `a segment of ${count} pieces`)
  return Array.from({ length: count }, (_, number) => {
    const at = listMagic.length + number * digestBytes
    return bytes.subarray(at, at + digestBytes)
  })
}
