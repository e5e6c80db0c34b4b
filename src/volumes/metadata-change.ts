/**
 * Writing the next version of a group's metadata into its areas. A text goes behind the one that counts, never over it,
 * and then one sector, the area's header, makes it count: whenever this is cut off, either the old or the new is whole.
 * Source: lvm2's lib/format_text/format-text.c (where a text goes, how it wraps).
 */
import { flushAll, refuse, writeStretch } from './disk-stretch.ts'
import { areaHeaderBytes, areaMagic, lvmChecksum, type MetadataArea, ringPieces } from './physical-volume.ts'

export interface PlannedText {
  readonly area: MetadataArea
  /** Of the area, where the text begins; it may wrap. */
  readonly offset: number
}

export interface MetadataChange {
  readonly group: string
  readonly seqno: number
  readonly text: Buffer
  readonly places: readonly PlannedText[]
}

/** Finds the place of a new text in an area, or refuses. */
export function placeText(area: MetadataArea, length: number): PlannedText {
  const ring = area.length - areaHeaderBytes
  if (area.current === undefined) {
    if (length > ring) refuse(area.stretch.disk.name, 'a metadata area is too small')
    return { area, offset: areaHeaderBytes }
  }
  const wrapped = (offset: number) => (offset >= area.length ? offset - ring : offset)
  const end = wrapped(area.current.offset + area.current.length)
  const aligned = Math.ceil(end / 512) * 512
  const offset = aligned >= area.length ? areaHeaderBytes : aligned
  const skipped = (offset - end + ring) % ring
  if (skipped + length > ring - area.current.length) {
    refuse(area.stretch.disk.name, 'a metadata area has no room for another version')
  }
  return { area, offset }
}

export async function writeChanges(changes: readonly MetadataChange[]): Promise<void> {
  const disks = changes.flatMap(({ places }) => places.map(({ area }) => area.stretch.disk))
  for (const { text, places } of changes) {
    for (const { area, offset } of places) {
      let done = 0
      for (const piece of ringPieces(area, offset, text.length)) {
        await writeStretch(area.stretch, piece.offset, text.subarray(done, done + piece.length))
        done += piece.length
      }
    }
  }
  await flushAll(disks)
  for (const { text, places } of changes) {
    for (const { area, offset } of places) {
      await writeStretch(area.stretch, area.offset, headerOf(area, offset, text))
    }
  }
  await flushAll(disks)
}

function headerOf(area: MetadataArea, offset: number, text: Buffer): Buffer {
  const header = Buffer.alloc(areaHeaderBytes)
  header.write(areaMagic, 4, 'latin1')
  header.writeUInt32LE(1, 20)
  header.writeBigUInt64LE(BigInt(area.offset), 24)
  header.writeBigUInt64LE(BigInt(area.length), 32)
  header.writeBigUInt64LE(BigInt(offset), 40)
  header.writeBigUInt64LE(BigInt(text.length), 48)
  header.writeUInt32LE(lvmChecksum(text), 56)
  header.writeUInt32LE(lvmChecksum(header.subarray(4)), 0)
  return header
}
