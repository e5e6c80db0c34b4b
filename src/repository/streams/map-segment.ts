/**
 * A segment of a stream's map: what stands at each of 4096 places. A place is zeros, a whole chunk, or parts: blocks that
 * each stand somewhere in some record. Two forms: the first knows no parts, the second does; a segment without parts always
 * has the first, so that equal content has equal bytes. See docs/repository-format.md, "Stream maps". Pure.
 */
import { digestBytes } from '../chunks/blake3.ts'
import { blockSizeBytes, check } from '../format.ts'

/** Places in one segment. */
export const segmentChunks = 4096
const bitmapBytes = segmentChunks / 8
/** Of a segment of the first form. */
export const segmentMaxBytes = bitmapBytes + segmentChunks * digestBytes

const partsMagic = 'UMBRASEG'
const headerBytes = 16
const wordBytes = 4
const bitmapsEnd = headerBytes + 2 * bitmapBytes
/** The lengths of the two forms, and of a list of pieces (map-pieces.ts), are told apart by their rest by 32. */
export const formRest = { first: 0, pieces: 8, second: 16 }

export function blocksPerChunk(chunkSizeBytes: number): number {
  return chunkSizeBytes / blockSizeBytes
}

/** Where a block stands: at `position` blocks from the beginning of the record's plain bytes. */
export interface BlockPlace {
  readonly id: Buffer
  readonly position: number
}

/** What stands at a place: one chunk, or blocks, of which undefined ones are zeros. Not all are. */
export type Place = { readonly whole: Buffer } | { readonly blocks: readonly (BlockPlace | undefined)[] }

/** A segment as read. Places are 0 to 4095. */
export interface Segment {
  readonly hasParts: boolean
  /** Places that are not zeros. */
  readonly count: number
  /** Undefined where the stream is zeros. */
  at(place: number): Place | undefined
  kindAt(place: number): 'zeros' | 'whole' | 'parts'
  /** The id of every record its places need, some perhaps more than once. */
  recordIds(): Iterable<Buffer>
}

/** `bytes` is a whole segment of a stream with such chunks; FormatError. It must not be changed after. */
export function decodeSegment(bytes: Buffer, chunkSizeBytes: number): Segment {
  if (bytes.length % digestBytes === formRest.second) return decodeSecondForm(bytes, blocksPerChunk(chunkSizeBytes))
  check(bytes.length >= bitmapBytes, 'the segment is cut off')
  const { ranks, count } = rankBits(bytes.subarray(0, bitmapBytes))
  check(count > 0 && bytes.length === bitmapBytes + count * digestBytes, 'the segment has the wrong length')
  const ids = bytes.subarray(bitmapBytes)
  return {
    hasParts: false,
    count,
    at(place) {
      const rank = ranks[place] ?? 0
      return rank === 0 ? undefined : { whole: idNumber(ids, rank - 1) }
    },
    kindAt: (place) => (ranks[place] ? 'whole' : 'zeros'),
    recordIds: () => eachId(ids),
  }
}

function decodeSecondForm(bytes: Buffer, blocks: number): Segment {
  check(bytes.length >= bitmapsEnd, 'the segment is cut off')
  check(bytes.toString('latin1', 0, 8) === partsMagic, 'it does not begin as a segment with parts')
  check(blocks > 1 && bytes.readUInt32LE(8) === blocks, 'a segment for chunks of another size')
  const used = rankBits(bytes.subarray(headerBytes, headerBytes + bitmapBytes))
  const parts = rankBits(bytes.subarray(headerBytes + bitmapBytes, bitmapsEnd))
  const wholes = new Uint16Array(segmentChunks)
  let wholeCount = 0
  for (let place = 0; place < segmentChunks; place += 1) {
    check(parts.ranks[place] === 0 || used.ranks[place] !== 0, 'a place of parts that is zeros')
    if (used.ranks[place] !== 0 && parts.ranks[place] === 0) wholes[place] = ++wholeCount
  }
  const records = bytes.readUInt32LE(12)
  check(parts.count > 0 && records > 0 && records <= parts.count * blocks, 'the wrong number of records of parts')
  const wordsAt = bitmapsEnd + (wholeCount + records) * digestBytes
  const end = wordsAt + parts.count * blocks * wordBytes
  check(bytes.length === paddedLength(end), 'the segment has the wrong length')
  check(
    bytes.subarray(end).every((byte) => byte === 0),
    'the segment is not padded with zeros',
  )
  checkWords(bytes.subarray(wordsAt, end), blocks, records)
  const ids = bytes.subarray(bitmapsEnd, wordsAt)
  return {
    hasParts: true,
    count: used.count,
    at(place) {
      const rank = parts.ranks[place] ?? 0
      if (rank === 0) return wholes[place] ? { whole: idNumber(ids, (wholes[place] ?? 0) - 1) } : undefined
      const first = wordsAt + (rank - 1) * blocks * wordBytes
      return {
        blocks: Array.from({ length: blocks }, (_, block) => {
          const { record, position } = fromWord(bytes.readUInt32LE(first + block * wordBytes))
          return record === -1 ? undefined : { id: idNumber(ids, wholeCount + record), position }
        }),
      }
    },
    kindAt: (place) => (parts.ranks[place] ? 'parts' : wholes[place] ? 'whole' : 'zeros'),
    recordIds: () => eachId(ids),
  }
}

/** Every block stands within a record that is named, and no place of parts is all zeros. */
function checkWords(words: Buffer, blocks: number, records: number): void {
  for (let at = 0; at < words.length; at += blocks * wordBytes) {
    let some = false
    for (let block = 0; block < blocks; block += 1) {
      const word = words.readUInt32LE(at + block * wordBytes)
      const { record, position } = fromWord(word)
      check(word === 0 || (record >= 0 && record < records && position < blocks), 'a block that stands nowhere')
      if (word !== 0) some = true
    }
    check(some, 'a place of parts without any')
  }
}

/** A block in four bytes: the number of its record plus one, and the position; 0 for zeros. */
const toWord = (record: number, position: number) => (record + 1) * 256 + position
const fromWord = (word: number) => ({ record: (word >>> 8) - 1, position: word & 255 })

const paddedLength = (length: number) =>
  length + ((formRest.second + digestBytes - (length % digestBytes)) % digestBytes)

/** For each place the rank of its bit among those set, from 1 on; 0 where it is not set. */
function rankBits(bitmap: Buffer): { ranks: Uint16Array; count: number } {
  const ranks = new Uint16Array(segmentChunks)
  let count = 0
  for (let place = 0; place < segmentChunks; place += 1) {
    if (((bitmap[place >> 3] ?? 0) >> (place & 7)) & 1) ranks[place] = ++count
  }
  return { ranks, count }
}

const idNumber = (ids: Buffer, number: number) => ids.subarray(number * digestBytes, (number + 1) * digestBytes)

function* eachId(ids: Buffer): Generator<Buffer> {
  for (let at = 0; at < ids.length; at += digestBytes) yield ids.subarray(at, at + digestBytes)
}

export interface PlacedContent {
  readonly place: number
  readonly content: Place
}

/** The bytes of a segment with `places`, ascending and at least one; parts have `blocks` blocks each. */
export function encodeSegment(places: readonly PlacedContent[], blocks: number): Buffer {
  if (places.some(({ content }) => 'blocks' in content)) return encodeSecondForm(places, blocks)
  const bytes = Buffer.alloc(bitmapBytes + places.length * digestBytes)
  for (const [rank, { place, content }] of places.entries()) {
    setBit(bytes, place)
    if ('whole' in content) bytes.set(content.whole, bitmapBytes + rank * digestBytes)
  }
  return bytes
}

function encodeSecondForm(places: readonly PlacedContent[], blocks: number): Buffer {
  const wholes = places.flatMap(({ content }) => ('whole' in content ? [content.whole] : []))
  const records = new Map<string, number>()
  const ids: Buffer[] = []
  const words: number[] = []
  const numberOf = (id: Buffer) => {
    const name = id.toString('latin1')
    const number = records.get(name) ?? ids.push(id) - 1
    records.set(name, number)
    return number
  }
  for (const { content } of places) {
    if ('whole' in content) continue
    for (let block = 0; block < blocks; block += 1) {
      const at = content.blocks[block]
      words.push(at === undefined ? 0 : toWord(numberOf(at.id), at.position))
    }
  }
  const wordsAt = bitmapsEnd + (wholes.length + ids.length) * digestBytes
  const bytes = Buffer.alloc(paddedLength(wordsAt + words.length * wordBytes))
  bytes.write(partsMagic, 0, 'latin1')
  bytes.writeUInt32LE(blocks, 8)
  bytes.writeUInt32LE(ids.length, 12)
  for (const { place, content } of places) {
    setBit(bytes.subarray(headerBytes), place)
    if ('blocks' in content) setBit(bytes.subarray(headerBytes + bitmapBytes), place)
  }
  for (const [number, id] of [...wholes, ...ids].entries()) bytes.set(id, bitmapsEnd + number * digestBytes)
  for (const [number, word] of words.entries()) bytes.writeUInt32LE(word, wordsAt + number * wordBytes)
  return bytes
}

function setBit(bitmap: Uint8Array, place: number): void {
  bitmap[place >> 3] = (bitmap[place >> 3] ?? 0) | (1 << (place & 7))
}
