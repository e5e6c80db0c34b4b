/**
 * LVM2 physical volumes as they lie on a disk: the label in one of the first four sectors, the header with the places of
 * data and metadata, the metadata areas. An area is a ring: its header names the text that counts, which may wrap.
 * Source: lvm2's lib/format_text/layout.h and lib/label/label.h; all numbers are little endian.
 */
import { crc32 } from 'node:zlib'
import { fits, readStretch, refuse, type Stretch } from './disk-stretch.ts'

/** The texts of a ring begin behind its header. */
export const areaHeaderBytes = 512
export const areaMagic = ' LVM2 x[5A%r0N*>'
const mostAreas = 8
const longestTextBytes = 4 * 1024 * 1024
const ignoredFlag = 1
const usedFlag = 1

/** The polynomial of every CRC-32, with LVM's start value and without the inversion. */
export function lvmChecksum(bytes: Uint8Array): number {
  return (crc32(bytes, (0xf597a6cf ^ 0xffffffff) >>> 0) ^ 0xffffffff) >>> 0
}

export interface Range {
  readonly offset: number
  readonly length: number
}

export interface MetadataArea extends Range {
  readonly stretch: Stretch
  /** LVM keeps nothing in an ignored area. */
  readonly ignored: boolean
  /** Where the text that counts begins, and how long it is; undefined when there is none. */
  readonly current: Range | undefined
}

export interface PhysicalVolume {
  readonly stretch: Stretch
  readonly uuid: string
  readonly dataOffset: number
  /** Belongs to a group, as far as its own header says. */
  readonly used: boolean
  readonly areas: readonly MetadataArea[]
  /** The metadata texts, one for each area that has one. */
  readonly texts: readonly Buffer[]
  /** Why its metadata can not be relied upon. */
  readonly damage: string | undefined
}

/** Undefined when there is no label: something else lies there. */
export async function readPhysicalVolume(stretch: Stretch): Promise<PhysicalVolume | undefined> {
  const disk = stretch.disk.name
  if (stretch.sizeBytes < 4 * 512) return undefined
  const sectors = await readStretch(stretch, 0, 4 * 512)
  const index = [0, 1, 2, 3].find((one) => sectors.toString('latin1', one * 512, one * 512 + 8) === 'LABELONE')
  if (index === undefined) return undefined
  const label = sectors.subarray(index * 512, (index + 1) * 512)
  if (label.readUInt32LE(16) !== lvmChecksum(label.subarray(20))) refuse(disk, 'the LVM label is damaged')
  if (label.readBigUInt64LE(8) !== BigInt(index)) refuse(disk, 'the LVM label is at another place than it says')
  if (label.toString('latin1', 24, 32) !== 'LVM2 001') refuse(disk, 'the LVM label is of another format')
  const { uuid, data, metadata, used } = parseHeader(disk, label)
  const [first] = data
  if (data.length > 1) refuse(disk, 'a physical volume has several data areas')
  const areas: MetadataArea[] = []
  const texts: Buffer[] = []
  let damage: string | undefined
  for (const range of metadata) {
    const read = await readArea(stretch, range)
    if (typeof read === 'string') {
      damage ??= read
      continue
    }
    areas.push(read.area)
    if (read.text !== undefined) texts.push(read.text)
  }
  return { stretch, uuid, dataOffset: first?.offset ?? 0, used, areas, texts, damage }
}

/** The header follows the label in its sector: two lists that end with a zero, and an extension behind them. */
function parseHeader(disk: string, label: Buffer) {
  let at = label.readUInt32LE(20)
  const need = (bytes: number) => {
    if (at < 32 || at > label.length - bytes) refuse(disk, 'the header of a physical volume is damaged')
  }
  need(40)
  const uuid = label.toString('latin1', at, at + 32)
  if (!/^[\w#!]{32}$/.test(uuid)) refuse(disk, 'a physical volume has no UUID')
  at += 40
  const list = () => {
    const found: Range[] = []
    for (;;) {
      need(8)
      const offset = Number(label.readBigUInt64LE(at))
      need(16)
      const length = Number(label.readBigUInt64LE(at + 8))
      at += 16
      if (offset === 0) return found
      if (found.length >= mostAreas) refuse(disk, 'a physical volume has too many areas')
      found.push({ offset, length })
    }
  }
  const data = list()
  const metadata = list()
  const hasExtension = at <= label.length - 8 && label.readUInt32LE(at) >= 1
  const used = hasExtension && (label.readUInt32LE(at + 4) & usedFlag) !== 0
  return { uuid, data, metadata, used }
}

/** A string is the reason why it can not be relied upon. */
async function readArea(stretch: Stretch, range: Range): Promise<{ area: MetadataArea; text?: Buffer } | string> {
  if (range.length < 2 * areaHeaderBytes || !fits(stretch, range.offset, range.length)) {
    return 'a metadata area lies beyond its end'
  }
  const header = await readStretch(stretch, range.offset, areaHeaderBytes)
  if (header.readUInt32LE(0) !== lvmChecksum(header.subarray(4))) return 'the header of a metadata area is damaged'
  if (header.toString('latin1', 4, 20) !== areaMagic || header.readUInt32LE(20) !== 1) {
    return 'a metadata area is of another format'
  }
  const start = Number(header.readBigUInt64LE(24))
  const size = Number(header.readBigUInt64LE(32))
  if (start !== range.offset || size !== range.length) return 'a metadata area is at another place than it says'
  const offset = Number(header.readBigUInt64LE(40))
  const length = Number(header.readBigUInt64LE(48))
  const ignored = (header.readUInt32LE(60) & ignoredFlag) !== 0
  const base = { ...range, stretch, ignored }
  if (offset === 0 || ignored) return { area: { ...base, current: undefined } }
  const ring = range.length - areaHeaderBytes
  if (offset < areaHeaderBytes || offset >= range.length || length === 0 || length > Math.min(ring, longestTextBytes)) {
    return 'the metadata lies outside of its area'
  }
  const area: MetadataArea = { ...base, current: { offset, length } }
  const pieces = ringPieces(area, offset, length)
  const text = Buffer.concat(await Promise.all(pieces.map((one) => readStretch(stretch, one.offset, one.length))))
  if (lvmChecksum(text) !== header.readUInt32LE(56)) return 'the metadata is damaged'
  return { area, text }
}

/** Where `length` bytes of the ring from `offset` lie on the stretch: one piece, or two when they wrap. */
export function ringPieces(area: Range, offset: number, length: number): Range[] {
  const straight = Math.min(length, area.length - offset)
  const first = { offset: area.offset + offset, length: straight }
  if (straight === length) return [first]
  return [first, { offset: area.offset + areaHeaderBytes, length: length - straight }]
}
