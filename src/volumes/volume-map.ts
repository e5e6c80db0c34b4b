/**
 * Where the bytes of a logical volume lie: linear and striped segments on the physical volumes of its group.
 * Reads and writes at offsets of the volume; nothing outside of it can be addressed.
 */
import { invariant } from '../base/failure.ts'
import { readStretch, type Stretch, writeStretch } from './disk-stretch.ts'

/** Stretches in a row; with several stripes, `stripeBytes` of each in turn. */
export interface MappedSegment {
  readonly start: number
  readonly sizeBytes: number
  readonly stripeBytes: number
  /** Each holds its share of the segment, and no more. */
  readonly stripes: readonly Stretch[]
}

/** The segments are ascending and without gaps. */
export interface VolumeMap {
  readonly sizeBytes: number
  readonly segments: readonly MappedSegment[]
}

export async function readVolume(map: VolumeMap, offset: number, length: number): Promise<Buffer> {
  const bytes = Buffer.alloc(length)
  for (const piece of piecesOf(map, offset, length)) {
    bytes.set(await readStretch(piece.stretch, piece.at, piece.length), piece.done)
  }
  return bytes
}

export async function writeVolume(map: VolumeMap, offset: number, data: Uint8Array): Promise<void> {
  for (const piece of piecesOf(map, offset, data.length)) {
    await writeStretch(piece.stretch, piece.at, data.subarray(piece.done, piece.done + piece.length))
  }
}

interface Piece {
  readonly stretch: Stretch
  readonly at: number
  readonly length: number
  /** How far into the range asked for. */
  readonly done: number
}

function* piecesOf(map: VolumeMap, offset: number, length: number): Generator<Piece> {
  invariant(offset >= 0 && length >= 0 && offset + length <= map.sizeBytes, 'outside of the volume')
  let index = segmentAt(map, offset)
  for (let done = 0; done < length; ) {
    const segment = map.segments[index]
    invariant(segment !== undefined, 'a volume without gaps')
    const inside = offset + done - segment.start
    if (inside === segment.sizeBytes) {
      index++
      continue
    }
    const row = Math.floor(inside / segment.stripeBytes)
    const within = inside % segment.stripeBytes
    const stretch = segment.stripes[row % segment.stripes.length]
    invariant(stretch !== undefined, 'a segment with stripes')
    const at = Math.floor(row / segment.stripes.length) * segment.stripeBytes + within
    const take = Math.min(length - done, segment.stripeBytes - within, segment.sizeBytes - inside)
    yield { stretch, at, length: take, done }
    done += take
  }
}

function segmentAt({ segments }: VolumeMap, offset: number): number {
  let low = 0
  let high = segments.length - 1
  while (low < high) {
    const middle = Math.ceil((low + high) / 2)
    if ((segments[middle]?.start ?? 0) <= offset) low = middle
    else high = middle - 1
  }
  return low
}
