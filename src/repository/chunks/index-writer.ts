/**
 * How packs are divided among index objects: each small enough to be read in one piece by everybody.
 */
import { type PackListing, packsPerIndex } from '../format.ts'

/** Of tables of contents in one object: with chunks of 512 KiB the number of packs ends it first. */
const groupBytes = 8 * 1024 * 1024

/** `packs` in groups, in their order: at most `packsPerIndex` each and about 8 MiB of tables of contents. */
export function indexGroups(packs: readonly PackListing[]): PackListing[][] {
  const groups: PackListing[][] = []
  let group: PackListing[] | undefined
  let bytes = 0
  for (const pack of packs) {
    if (group === undefined || group.length >= packsPerIndex || bytes + pack.toc.length > groupBytes) {
      group = []
      bytes = 0
      groups.push(group)
    }
    group.push(pack)
    bytes += pack.toc.length
  }
  return groups
}
