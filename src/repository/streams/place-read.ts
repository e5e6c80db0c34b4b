/**
 * The bytes at a place of a stream's map: of a whole chunk, or of parts, each record read once for all the blocks it gives.
 */
import type { ChunkStore } from '../chunks/chunk-store.ts'
import { blockSizeBytes, check } from '../format.ts'
import type { Place } from './map-segment.ts'

/** A run of a chunk's bytes that one record holds: `length` bytes from `recordOffset` in it are those from `offset` in the chunk. */
interface HeldRun {
  readonly offset: number
  readonly recordOffset: number
  readonly length: number
}

/** Fills `target` with the bytes of a chunk of `chunkBytes` from `skip` on. FormatError. */
export async function readPlace(
  store: ChunkStore,
  place: Place | undefined,
  chunkBytes: number,
  skip: number,
  target: Uint8Array,
): Promise<void> {
  if (place === undefined || 'blocks' in place) target.fill(0)
  if (place === undefined) return
  await withRuns(store, place, chunkBytes, { skip, length: target.length }, ({ offset }, bytes) => {
    target.set(bytes, offset - skip)
    return true
  })
}

/** Whether the place holds exactly `data`, the bytes of the whole chunk. FormatError. */
export async function placeEquals(store: ChunkStore, place: Place, data: Buffer): Promise<boolean> {
  let rest = Buffer.alloc(0)
  if ('blocks' in place) {
    for (const [block, at] of place.blocks.entries()) {
      const bytes = data.subarray(block * blockSizeBytes, (block + 1) * blockSizeBytes)
      if (at !== undefined) continue
      if (rest.length === 0) rest = Buffer.alloc(blockSizeBytes)
      if (!bytes.equals(rest.subarray(0, bytes.length))) return false
    }
  }
  const whole = { skip: 0, length: data.length }
  return withRuns(store, place, data.length, whole, ({ offset }, bytes) =>
    bytes.equals(data.subarray(offset, offset + bytes.length)),
  )
}

/** Calls `use` with the bytes of each run within the range that is not zeros, until it answers false. */
async function withRuns(
  store: ChunkStore,
  place: Place,
  chunkBytes: number,
  range: { readonly skip: number; readonly length: number },
  use: (run: HeldRun, bytes: Buffer) => boolean,
): Promise<boolean> {
  if ('whole' in place) {
    return store.withChunk(place.whole, (plain) => {
      check(plain.length === chunkBytes, `a chunk of ${plain.length} bytes`)
      const end = range.skip + range.length
      return use(
        { offset: range.skip, recordOffset: range.skip, length: range.length },
        plain.subarray(range.skip, end),
      )
    })
  }
  for (const { id, runs } of runsByRecord(place, chunkBytes, range.skip, range.length)) {
    // Several blocks that stand in place are what is left of a whole chunk: no other place needs it. One may be by chance.
    const isRest = runs.length > 1 && runs.every((run) => run.recordOffset === run.offset)
    const keptAs = isRest ? 'whole' : 'parts'
    const useRuns = (plain: Buffer) =>
      runs.every((run) => {
        check(run.recordOffset + run.length <= plain.length, `parts beyond the ${plain.length} bytes of a record`)
        return use(run, plain.subarray(run.recordOffset, run.recordOffset + run.length))
      })
    const goOn = await store.withChunk(id, useRuns, keptAs)
    if (!goOn) return false
  }
  return true
}

function runsByRecord(
  place: Extract<Place, { blocks: unknown }>,
  chunkBytes: number,
  skip: number,
  length: number,
): Iterable<{ readonly id: Buffer; readonly runs: HeldRun[] }> {
  const records = new Map<string, { readonly id: Buffer; readonly runs: HeldRun[] }>()
  for (const [block, at] of place.blocks.entries()) {
    const offset = Math.max(skip, block * blockSizeBytes)
    const end = Math.min((block + 1) * blockSizeBytes, skip + length, chunkBytes)
    if (at === undefined || offset >= end) continue
    const name = at.id.toString('latin1')
    const record = records.get(name) ?? { id: at.id, runs: [] }
    records.set(name, record)
    const recordOffset = at.position * blockSizeBytes + offset - block * blockSizeBytes
    record.runs.push({ offset, recordOffset, length: end - offset })
  }
  return records.values()
}
