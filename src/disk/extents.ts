/**
 * Arithmetic on extents: pure, on ascending lists without overlap, as BlockSource.extents yields them.
 * See docs/protocol.md, "Transfer": what is read are whole chunks, so dirty and data extents are widened to chunks.
 */
import { invariant } from '../base/failure.ts'
import type { Extent } from './block-device.ts'

/** A byte range, for lists in which only membership counts (dirty ranges, data ranges). */
export interface Range {
  readonly offset: number
  readonly length: number
}

export function endOf({ offset, length }: Range): number {
  return offset + length
}

/** `first` and `second` as one extent when they touch and are of one kind. */
export function joinExtents(first: Extent, second: Extent): Extent | undefined {
  if (first.data !== second.data || endOf(first) !== second.offset) return undefined
  return { ...first, length: first.length + second.length }
}

/** Neighbours of one kind made one, empty extents left out. */
export function mergeExtents(extents: Iterable<Extent>): Extent[] {
  const merged: Extent[] = []
  for (const extent of extents) {
    if (extent.length === 0) continue
    const last = merged.at(-1)
    const joined = last && joinExtents(last, extent)
    if (joined === undefined) merged.push(extent)
    else merged[merged.length - 1] = joined
  }
  return merged
}

/** As mergeExtents, for a stream; holds one extent back. */
export async function* mergeExtentStream(extents: AsyncIterable<Extent>): AsyncGenerator<Extent> {
  let held: Extent | undefined
  for await (const extent of extents) {
    const joined = held && joinExtents(held, extent)
    if (held !== undefined && joined === undefined) yield held
    held = joined ?? extent
  }
  if (held !== undefined) yield held
}

/** The parts of `ranges` inside [offset, offset+length). */
export function clipRanges<Part extends Range>(ranges: Iterable<Part>, offset: number, length: number): Part[] {
  const parts: Part[] = []
  for (const range of ranges) {
    const start = Math.max(range.offset, offset)
    const end = Math.min(endOf(range), offset + length)
    if (start < end) parts.push({ ...range, offset: start, length: end - start })
  }
  return parts
}

/** Ranges that overlap or touch made one; they must ascend by offset. */
export function mergeRanges(ranges: Iterable<Range>): Range[] {
  const merged: Range[] = []
  for (const { offset, length } of ranges) {
    if (length === 0) continue
    const last = merged.at(-1)
    invariant(last === undefined || offset >= last.offset, 'ranges ascend')
    if (last === undefined || endOf(last) < offset) merged.push({ offset, length })
    else merged[merged.length - 1] = { ...last, length: Math.max(endOf(last), offset + length) - last.offset }
  }
  return merged
}

/** Every range widened to whole chunks, but never beyond the disk's end; what then touches is one range. */
export function alignRanges(ranges: Iterable<Range>, chunkSizeBytes: number, sizeBytes: number): Range[] {
  const aligned: Range[] = []
  for (const range of ranges) {
    if (range.length === 0) continue
    const offset = range.offset - (range.offset % chunkSizeBytes)
    const end = Math.min(Math.ceil(endOf(range) / chunkSizeBytes) * chunkSizeBytes, sizeBytes)
    if (offset < end) aligned.push({ offset, length: end - offset })
  }
  return mergeRanges(aligned)
}

/** The ranges that both lists cover: what has changed and holds data. */
export function intersectRanges(first: readonly Range[], second: readonly Range[]): Range[] {
  const common: Range[] = []
  for (let i = 0, k = 0; ; ) {
    const a = first[i]
    const b = second[k]
    if (a === undefined || b === undefined) return mergeRanges(common)
    const start = Math.max(a.offset, b.offset)
    const end = Math.min(endOf(a), endOf(b))
    if (start < end) common.push({ offset: start, length: end - start })
    if (endOf(a) < endOf(b)) i++
    else k++
  }
}

export function totalBytes(ranges: Iterable<Range>): number {
  let total = 0
  for (const { length } of ranges) total += length
  return total
}
