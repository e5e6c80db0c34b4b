/**
 * The on-disk format, the code half of docs/repository-format.md: names, sizes, and the records of packs and indexes
 * to and from bytes. Pure. Numbers are little-endian. Whatever is read is checked before it is believed.
 */
import { crc32 } from 'node:zlib'
import { asBuffer, digestBytes } from './chunks/blake3.ts'
import type { Seal } from './keys/seal.ts'

/** What this program writes; it reads this and everything before. */
export const formatVersion = 1

/** Required features this program knows. A repository or point that needs another one was written by a newer program. */
export const knownFeatures: readonly string[] = ['encryption', 'parts']

export const chunkSizeLimits = { minBytes: 64 * 1024, defaultBytes: 512 * 1024, maxBytes: 4 * 1024 * 1024 }
/** What an incremental backup stores apart; a chunk is at least one block. */
export const blockSizeBytes = 64 * 1024
/** A pack is closed before it grows beyond this. */
export const packSizeBytes = 16 * 1024 * 1024
/** No pack of any version is larger. */
export const packSizeLimitBytes = 128 * 1024 * 1024
/** The longest of the small sealed documents: the configuration and the markers of drafts. */
export const smallDocumentMaxBytes = 64 * 1024
/** The longest index object. */
export const indexMaxBytes = 256 * 1024 * 1024
/** Packs named by one index object, so that each is read in one piece. */
export const packsPerIndex = 1024

export const recordHeaderBytes = 56
/** What encryption adds to the stored bytes of a record: a nonce of 12 bytes and a tag of 16. */
export const recordSealBytes = 28
export const packHeaderBytes = 40
export const packFooterBytes = 64
export const tocEntryBytes = 48
const indexHeaderBytes = 24
const indexPackBytes = 72
const alignmentBytes = 8

const magic = { pack: 'UMBRAPCK', record: 'UmRc', footer: 'UmTc', end: 'UMBRAEND', index: 'UMBRAIDX' }

/** The keys of objects. Everything a recovery point's draft writes carries the point's id. */
export const objectKeys = {
  config: 'umbra-repository.json',
  point: (pointId: string) => `points/${pointId}.json`,
  pack: (pointId: string, digest: Uint8Array) => `packs/${pointId}/${asBuffer(digest).toString('hex')}`,
  index: (pointId: string, digest: Uint8Array) => `indexes/${pointId}/${asBuffer(digest).toString('hex')}`,
  draft: (pointId: string) => `drafts/${pointId}.json`,
  keySlot: (slotId: string) => `keys/${slotId}.json`,
  condemned: (id: string) => `condemned/${id}.json`,
  condemnedDrafts: (id: string) => `condemned/${id}.drafts.json`,
  damaged: (id: string) => `damaged/${id}.json`,
  verified: (id: string) => `verified/${id}.json`,
}

/** What a record holds: a chunk of a stream, a segment of a stream's map, a piece of a blob (document or map root). */
export const recordKinds = { chunk: 1, segment: 2, blob: 3 } as const
export type RecordKind = (typeof recordKinds)[keyof typeof recordKinds]

export const encodings = { raw: 0, zstd: 1 } as const
export type Encoding = (typeof encodings)[keyof typeof encodings]

export interface RecordHeader {
  readonly id: Buffer
  readonly kind: RecordKind
  readonly encoding: Encoding
  readonly encrypted: boolean
  readonly storedBytes: number
  readonly plainBytes: number
}

/** Bits of a record's flags. */
const encryptedFlag = 1

/** A line of a pack's table of contents: where the record's header begins. */
export interface TocEntry extends RecordHeader {
  readonly offset: number
}

export interface PackHeader {
  readonly repositoryId: string
  readonly chunkSizeBytes: number
}

/** A pack and what it holds; `toc` is its table of contents as it stands in the pack. */
export interface PackListing {
  readonly pointId: string
  readonly digest: Buffer
  readonly sizeBytes: number
  readonly toc: Buffer
}

/** Bytes from outside that are not what they should be. Callers turn it into a failure that names the object. */
export class FormatError extends Error {}

export function check(condition: unknown, why: string): asserts condition {
  if (!condition) throw new FormatError(why)
}

/** The room a record takes in a pack. */
export function recordBytes(storedBytes: number): number {
  return Math.ceil((recordHeaderBytes + storedBytes) / alignmentBytes) * alignmentBytes
}

/** Writes the header of a record to `target` at `offset`. */
export function writeRecordHeader(target: Buffer, offset: number, header: RecordHeader): void {
  target.write(magic.record, offset, 'latin1')
  target.set(recordAssociatedData(header), offset + 4)
  target.writeUInt32LE(0, offset + 48)
  target.writeUInt32LE(crc32(target.subarray(offset, offset + 52)), offset + 52)
}

/** Bytes 4 to 47 of a record's header: all that it says. Encryption binds the stored bytes to them. */
export function recordAssociatedData(header: RecordHeader): Buffer {
  const fields = Buffer.alloc(44)
  fields.writeUInt8(header.kind, 0)
  fields.writeUInt8(header.encoding, 1)
  fields.writeUInt16LE(flagsOf(header), 2)
  fields.writeUInt32LE(header.storedBytes, 4)
  fields.writeUInt32LE(header.plainBytes, 8)
  fields.set(header.id, 12)
  return fields
}

const flagsOf = ({ encrypted }: RecordHeader): number => (encrypted ? encryptedFlag : 0)

/** Reads the header of a record (`id` is a view of `source`); FormatError when there is none or it is damaged. */
export function readRecordHeader(source: Buffer, offset = 0): RecordHeader {
  check(source.length >= offset + recordHeaderBytes, 'the record is cut off')
  check(source.toString('latin1', offset, offset + 4) === magic.record, 'no record begins here')
  check(
    source.readUInt32LE(offset + 52) === crc32(source.subarray(offset, offset + 52)),
    'the record header is damaged',
  )
  return readRecordFields(source, {
    kind: offset + 4,
    encoding: offset + 5,
    flags: offset + 6,
    storedBytes: offset + 8,
    plainBytes: offset + 12,
    id: offset + 16,
  })
}

interface FieldOffsets {
  readonly id: number
  readonly storedBytes: number
  readonly plainBytes: number
  readonly kind: number
  readonly encoding: number
  readonly flags: number
}

function readRecordFields(source: Buffer, at: FieldOffsets): RecordHeader {
  const kind = source.readUInt8(at.kind)
  const encoding = source.readUInt8(at.encoding)
  check(kind >= recordKinds.chunk && kind <= recordKinds.blob, `unknown kind of record ${kind}`)
  check(encoding === encodings.raw || encoding === encodings.zstd, `unknown encoding ${encoding}`)
  const flags = source.readUInt16LE(at.flags)
  check((flags & ~encryptedFlag) === 0, 'unknown record flags')
  const encrypted = (flags & encryptedFlag) !== 0
  const storedBytes = source.readUInt32LE(at.storedBytes)
  const plainBytes = source.readUInt32LE(at.plainBytes)
  check(plainBytes > 0 && plainBytes <= chunkSizeLimits.maxBytes, `a record of ${plainBytes} bytes`)
  const innerBytes = storedBytes - (encrypted ? recordSealBytes : 0)
  check(innerBytes > 0 && innerBytes <= plainBytes, `${storedBytes} bytes stored for ${plainBytes}`)
  check(encoding === encodings.zstd || innerBytes === plainBytes, 'a raw record of the wrong length')
  const id = source.subarray(at.id, at.id + digestBytes)
  return { id, kind: kind as RecordKind, encoding, encrypted, storedBytes, plainBytes }
}

export function writePackHeader(target: Buffer, header: PackHeader): void {
  target.fill(0, 0, packHeaderBytes)
  target.write(magic.pack, 0, 'latin1')
  target.writeUInt16LE(formatVersion, 8)
  target.writeUInt32LE(header.chunkSizeBytes, 12)
  target.set(uuidToBytes(header.repositoryId), 16)
  target.writeUInt32LE(crc32(target.subarray(0, 36)), 36)
}

export function readPackHeader(source: Buffer): PackHeader {
  check(source.length >= packHeaderBytes, 'the pack is cut off')
  check(source.toString('latin1', 0, 8) === magic.pack, 'it does not begin as a pack')
  check(source.readUInt32LE(36) === crc32(source.subarray(0, 36)), 'the pack header is damaged')
  check(source.readUInt16LE(8) <= formatVersion, 'a pack of a newer format')
  check(source.readUInt16LE(10) === 0, 'unknown pack flags')
  return { chunkSizeBytes: source.readUInt32LE(12), repositoryId: bytesToUuid(source.subarray(16, 32)) }
}

/** Appends to a table of contents. */
export function encodeTocEntry(entry: TocEntry): Buffer {
  const bytes = Buffer.alloc(tocEntryBytes)
  bytes.set(entry.id)
  bytes.writeUInt32LE(entry.offset, 32)
  bytes.writeUInt32LE(entry.storedBytes, 36)
  bytes.writeUInt32LE(entry.plainBytes, 40)
  bytes.writeUInt8(entry.kind, 44)
  bytes.writeUInt8(entry.encoding, 45)
  bytes.writeUInt16LE(flagsOf(entry), 46)
  return bytes
}

/** The lines of a table of contents; their ids are views of it. FormatError at the first that can not be. */
export function* tocEntries(toc: Buffer): Generator<TocEntry> {
  check(toc.length % tocEntryBytes === 0, 'the table of contents has the wrong length')
  for (let at = 0; at < toc.length; at += tocEntryBytes) yield readTocEntry(toc, at)
}

function readTocEntry(toc: Buffer, at: number): TocEntry {
  const header = readRecordFields(toc, {
    id: at,
    storedBytes: at + 36,
    plainBytes: at + 40,
    kind: at + 44,
    encoding: at + 45,
    flags: at + 46,
  })
  const offset = toc.readUInt32LE(at + 32)
  check(offset >= packHeaderBytes && offset % alignmentBytes === 0, `a record at ${offset}`)
  check(offset + recordBytes(header.storedBytes) <= packSizeLimitBytes, `a record at ${offset}`)
  return { ...header, offset }
}

/**
 * Calls `visit` for each line of a table of contents, the bytes `from` to `to`: where in `toc` its id stands, and its figures. For millions of lines:
 * nothing is left to the collector. FormatError at the first line that can not be.
 */
export function visitToc(
  toc: Buffer,
  visit: (at: number, offset: number, storedBytes: number, plainBytes: number) => void,
  from = 0,
  to = toc.length,
): void {
  check((to - from) % tocEntryBytes === 0, 'the table of contents has the wrong length')
  for (let at = from; at < to; at += tocEntryBytes) {
    const offset = toc.readUInt32LE(at + 32)
    const storedBytes = toc.readUInt32LE(at + 36)
    const plainBytes = toc.readUInt32LE(at + 40)
    if (!isUsualTocLine(toc, at, offset, storedBytes, plainBytes)) readTocEntry(toc, at) // which says what is wrong
    visit(at, offset, storedBytes, plainBytes)
  }
}

/** True for nearly all lines that `readTocEntry` accepts, and for none that it refuses. */
function isUsualTocLine(toc: Buffer, at: number, offset: number, storedBytes: number, plainBytes: number): boolean {
  const kind = toc[at + 44] ?? 0
  const encoding = toc[at + 45] ?? 0
  const flags = toc.readUInt16LE(at + 46)
  const innerBytes = storedBytes - (flags === encryptedFlag ? recordSealBytes : 0)
  const usualHeader = kind >= recordKinds.chunk && kind <= recordKinds.blob && flags <= encryptedFlag
  const usualLength = plainBytes <= chunkSizeLimits.maxBytes && innerBytes > 0 && innerBytes <= plainBytes
  const usualEncoding = encoding === encodings.zstd || (encoding === encodings.raw && innerBytes === plainBytes)
  const usualPlace = offset >= packHeaderBytes && offset % alignmentBytes === 0
  const usual = usualHeader && usualLength && usualEncoding && usualPlace
  return usual && offset + recordBytes(storedBytes) <= packSizeLimitBytes
}

/** The footer that follows the records and `toc`; its digest names the pack. */
export function encodePackFooter(seal: Seal, toc: Buffer, tocOffset: number): { footer: Buffer; digest: Buffer } {
  const digest = seal.digest('table of contents', [toc])
  const footer = Buffer.alloc(packFooterBytes)
  footer.write(magic.footer, 0, 'latin1')
  footer.writeUInt32LE(toc.length / tocEntryBytes, 4)
  footer.writeUInt32LE(tocOffset, 8)
  footer.set(digest, 16)
  footer.writeUInt32LE(crc32(footer.subarray(0, 52)), 52)
  footer.write(magic.end, 56, 'latin1')
  return { footer, digest }
}

/** The table of contents of a whole pack, proven by its digest; FormatError when the pack does not end as one. */
export function decodePackEnd(seal: Seal, pack: Buffer): { toc: Buffer; digest: Buffer } {
  check(pack.length >= packHeaderBytes + packFooterBytes, 'the pack is cut off')
  const footer = readPackFooter(pack.subarray(pack.length - packFooterBytes), pack.length)
  const toc = pack.subarray(footer.tocOffset, pack.length - packFooterBytes)
  check(seal.digest('table of contents', [toc]).equals(footer.digest), 'the table of contents is damaged')
  return { toc, digest: footer.digest }
}

/** The footer of a pack of `sizeBytes`: where its table of contents, which ends where the footer begins, must stand. */
export function readPackFooter(footer: Buffer, sizeBytes: number): { tocOffset: number; digest: Buffer } {
  check(footer.length === packFooterBytes, 'the pack is cut off')
  check(footer.toString('latin1', 56, 64) === magic.end, 'it does not end as a pack')
  check(footer.readUInt32LE(52) === crc32(footer.subarray(0, 52)), 'the pack footer is damaged')
  const tocOffset = footer.readUInt32LE(8)
  const tocBytes = footer.readUInt32LE(4) * tocEntryBytes
  const fits = tocOffset >= packHeaderBytes && tocOffset + tocBytes + packFooterBytes === sizeBytes
  check(fits, 'the table of contents has the wrong length')
  return { tocOffset, digest: footer.subarray(16, 48) }
}

/**
 * Every record of a pack that still has a whole header and payload, found by walking and, after damage, by scanning for the
 * next magic number. For the rebuild of indexes from packs alone; payloads are not verified here.
 */
export function* scanPack(pack: Buffer): Generator<TocEntry> {
  let offset = packHeaderBytes
  while (offset + recordHeaderBytes <= pack.length) {
    const found = pack.indexOf(magic.record, offset, 'latin1')
    if (found === -1) return
    offset = found
    try {
      const header = readRecordHeader(pack, offset)
      check(offset + recordHeaderBytes + header.storedBytes <= pack.length, 'the record is cut off')
      yield { ...header, offset }
      offset += recordBytes(header.storedBytes)
    } catch (error) {
      if (!(error instanceof FormatError)) throw error
      offset += 1
    }
  }
}

/** An index object: what some packs hold. `digest` names it. */
export function encodeIndex(seal: Seal, packs: readonly PackListing[]): { parts: Buffer[]; digest: Buffer } {
  const header = Buffer.alloc(indexHeaderBytes)
  header.write(magic.index, 0, 'latin1')
  header.writeUInt16LE(formatVersion, 8)
  header.writeUInt32LE(packs.length, 12)
  const parts = [header, ...packs.flatMap((pack) => [encodeListing(pack), pack.toc])]
  const digest = seal.digest('index', parts)
  return { parts: [...parts, digest], digest }
}

function encodeListing(pack: PackListing): Buffer {
  const bytes = Buffer.alloc(indexPackBytes)
  bytes.write(pack.pointId, 0, 32, 'latin1')
  bytes.set(pack.digest, 32)
  bytes.writeUInt32LE(pack.toc.length / tocEntryBytes, 64)
  bytes.writeUInt32LE(pack.sizeBytes, 68)
  return bytes
}

/** The packs of an index object, one after the other; FormatError before the first when the object is damaged. */
export function* decodeIndex(seal: Seal, object: Buffer): Generator<PackListing> {
  const end = checkIndex(seal, object)
  for (let offset = indexHeaderBytes; offset < end; offset = nextPack(object, offset, end)) {
    yield {
      pointId: pointIdAt(object, offset),
      digest: Buffer.from(object.subarray(offset + 32, offset + 64)),
      sizeBytes: object.readUInt32LE(offset + 68),
      toc: object.subarray(offset + indexPackBytes, nextPack(object, offset, end)),
    }
  }
}

/** As `decodeIndex`, for many packs: where in `object` the digest and the table of contents of each stand. */
export function visitIndexPacks(
  seal: Seal,
  object: Buffer,
  visit: (pointId: string, digestAt: number, tocAt: number, tocEnd: number) => void,
): void {
  const end = checkIndex(seal, object)
  let pointId = ''
  let pointAt = 0 // most packs of an index are of one point
  for (let offset = indexHeaderBytes; offset < end; ) {
    const next = nextPack(object, offset, end)
    const isSame = pointAt > 0 && object.compare(object, pointAt, pointAt + 32, offset, offset + 32) === 0
    if (!isSame) pointId = pointIdAt(object, offset)
    pointAt = offset
    visit(pointId, offset + 32, offset + indexPackBytes, next)
    offset = next
  }
}

const pointIdAt = (object: Buffer, offset: number) => object.toString('latin1', offset, offset + 32).replace(/\0+$/, '')

/** Where the pack after the one at `offset` begins. */
function nextPack(object: Buffer, offset: number, end: number): number {
  check(offset + indexPackBytes <= end, 'the index is cut off')
  const next = offset + indexPackBytes + object.readUInt32LE(offset + 64) * tocEntryBytes
  check(next <= end, 'the index is cut off')
  return next
}

/** Where its packs end. */
function checkIndex(seal: Seal, object: Buffer): number {
  check(object.length >= indexHeaderBytes + digestBytes, 'the index is cut off')
  check(object.toString('latin1', 0, 8) === magic.index, 'it does not begin as an index')
  check(object.readUInt16LE(8) <= formatVersion, 'an index of a newer format')
  check(object.readUInt16LE(10) === 0, 'unknown index flags')
  const end = object.length - digestBytes
  check(seal.digest('index', [object.subarray(0, end)]).equals(object.subarray(end)), 'its digest does not match')
  let left = object.readUInt32LE(12)
  let offset = indexHeaderBytes
  for (; left > 0; left -= 1) offset = nextPack(object, offset, end)
  check(offset === end, 'the index is longer than it says')
  return end
}

function uuidToBytes(uuid: string): Buffer {
  return Buffer.from(uuid.replaceAll('-', ''), 'hex')
}

function bytesToUuid(bytes: Buffer): string {
  return bytes.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
}
