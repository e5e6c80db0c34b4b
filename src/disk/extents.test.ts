/**
 * Extent arithmetic compared with the same done byte by byte.
 */
import assert from 'node:assert/strict'
import { it } from 'node:test'
import fc from 'fast-check'
import type { Extent } from './block-device.ts'
import { clipRanges, mergeExtentStream, mergeExtents, type Range } from './extents.ts'

const diskBytes = 200

/** Gapless extents of a small disk. */
const extentList = fc
  .array(fc.record({ length: fc.nat({ max: 30 }), data: fc.boolean() }), { maxLength: 20 })
  .map((parts) => {
    let offset = 0
    return parts.map(({ length, data }): Extent => {
      const extent = { offset, length, data }
      offset += length
      return extent
    })
  })

/** Ascending ranges of a small disk; they may overlap. */
const rangeList = fc
  .array(fc.record({ offset: fc.nat({ max: diskBytes - 1 }), length: fc.nat({ max: 30 }) }), { maxLength: 12 })
  .map((ranges) =>
    ranges
      .map(({ offset, length }): Range => ({ offset, length: Math.min(length, diskBytes - offset) }))
      .sort((a, b) => a.offset - b.offset),
  )

function bytesOf(ranges: readonly Range[]): Set<number> {
  return new Set(ranges.flatMap(({ offset, length }) => Array.from({ length }, (_, i) => offset + i)))
}

it('merging extents keeps every byte of its kind and leaves no two neighbours of one kind', () => {
  fc.assert(
    fc.property(extentList, (extents) => {
      const merged = mergeExtents(extents)
      for (const kind of [true, false]) {
        const ofKind = (all: readonly Extent[]) => bytesOf(all.filter(({ data }) => data === kind))
        assert.deepEqual(ofKind(merged), ofKind(extents))
      }
      assert.ok(merged.every(({ data, length }, i) => length > 0 && merged[i + 1]?.data !== data))
    }),
  )
})

it('merging a stream of extents gives what merging the list gives', async () => {
  await fc.assert(
    fc.asyncProperty(extentList, async (extents) => {
      const present = extents.filter(({ length }) => length > 0)
      async function* stream() {
        yield* present
      }
      assert.deepEqual(await Array.fromAsync(mergeExtentStream(stream())), mergeExtents(extents))
    }),
  )
})

it('clipping keeps the bytes inside and no other', () => {
  fc.assert(
    fc.property(rangeList, fc.nat({ max: diskBytes }), fc.nat({ max: diskBytes }), (ranges, offset, length) => {
      const window = bytesOf([{ offset, length }])
      assert.deepEqual(bytesOf(clipRanges(ranges, offset, length)), bytesOf(ranges).intersection(window))
    }),
  )
})
