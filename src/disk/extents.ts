/**
 * Arithmetic on extents: pure, on ascending lists without overlap, as BlockSource.extents yields them.
 */
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
