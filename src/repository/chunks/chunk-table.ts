/**
 * ChunkTable: which record holds which chunk, in 23 bytes a chunk and about 5 of a hash table. 1 TiB of different data in
 * chunks of 512 KiB takes less than 60 MiB, also while it grows: entries stand in pages, and the hash table in parts that
 * grow one after the other. Chunks are numbered in the order of insertion; `retain` numbers them anew.
 * Only the first 16 bytes of an id are kept; the whole id stands in the record and is compared when it is read.
 */
import { randomInt } from 'node:crypto'
import { invariant } from '../../base/failure.ts'

/** Where a record begins and how many bytes to read so that all of it is there (not more than `unitBytes` too many). */
export interface ChunkLocation {
  readonly packNumber: number
  readonly offset: number
  readonly readBytes: number
}

/** Four of the id, one of the pack's number (24 bits) and the length in units (8 bits). The offset has three bytes beside. */
const wordsPerEntry = 5
const offsetBytes = 3
/** Packs a location can name. */
export const packsMax = 2 ** 24
const pageBits = 12
const entriesPerPage = 1 << pageBits
const offsetUnitBytes = 8

const partBits = 6
const partCount = 1 << partBits
const placeRange = 2 ** (32 - partBits)
const maxLoad = 0.92
/** Parts grow by different factors and so at different times: together they take about 5 bytes a chunk at any moment. */
const growth = (part: number) => 1.2 + (0.3 * part) / partCount
/** Hash tables are made of blocks, which one part leaves to the next: nothing is ever given back in pieces nobody can use. */
const blockBits = 10
const slotsPerBlock = 1 << blockBits
const blocksPerPageBits = 4
/** Whoever chooses ids does not choose where they stand. */
const seeds = Array.from({ length: 4 }, () => randomInt(2 ** 32))

/**
 * One part of the hash table. A slot is 0 or holds the number of a chunk plus one in its low `numberBits`, and above them
 * bits of the chunk's id, so that hardly any other entry is looked at.
 */
interface Part {
  readonly growth: number
  blocks: number[]
  numberBits: number
  used: number
}

export class ChunkTable {
  readonly #unitBytes: number
  readonly #pages: Uint32Array[] = []
  readonly #offsetPages: Uint8Array[] = []
  #parts: Part[] = []
  readonly #slotPages: Uint32Array[] = []
  readonly #freeBlocks: number[] = []
  /** A bit for each chunk whose copy is damaged; as long as it needs to be. */
  #spoiled = new Uint8Array(0)
  #size = 0

  /** `maxRecordBytes`: no record is longer. */
  constructor(maxRecordBytes: number) {
    this.#unitBytes = Math.ceil(maxRecordBytes / 255 / 8) * 8
    this.#makeParts()
  }

  /** No location asks to read more. */
  get maxReadBytes(): number {
    return 255 * this.#unitBytes
  }

  get size(): number {
    return this.#size
  }

  /** Memory taken, in bytes. */
  get memoryBytes(): number {
    const slots = this.#slotPages.length * (slotsPerBlock << blocksPerPageBits) * 4
    return slots + this.#pages.length * entriesPerPage * (wordsPerEntry * 4 + offsetBytes) + this.#spoiled.length
  }

  /** Makes the hash table large enough for `count` chunks, so that it need not grow step by step on the way. */
  reserve(count: number): void {
    const blocks = Math.ceil(((count / partCount) * 1.02) / maxLoad / slotsPerBlock)
    for (const part of this.#parts) if (part.blocks.length < blocks) this.#rebuild(part, blocks, count)
  }

  /** The number of the chunk whose id stands in `id` from `at` on, or -1. */
  find(id: Uint8Array, at = 0): number {
    const first = word(id, at)
    const second = word(id, at + 4)
    const third = word(id, at + 8)
    const fourth = word(id, at + 12)
    const hash = hashOf(first, second, third, fourth)
    const { blocks, numberBits } = this.#parts[hash & (partCount - 1)] as Part
    const slotCount = blocks.length << blockBits
    const numberMask = 2 ** numberBits - 1
    const tag = tagOf(third, fourth) >>> numberBits
    for (let slot = slotOf(hash, slotCount); ; slot = slot + 1 === slotCount ? 0 : slot + 1) {
      const value = this.#slot(blocks[slot >>> blockBits] as number, slot)
      if (value === 0) return -1
      if (value >>> numberBits !== tag) continue
      const number = (value & numberMask) - 1
      const page = this.#pages[number >>> pageBits] as Uint32Array
      const start = (number & (entriesPerPage - 1)) * wordsPerEntry
      const same = page[start] === first && page[start + 1] === second
      if (same && page[start + 2] === third && page[start + 3] === fourth) return number
    }
  }

  #slot(block: number, slot: number): number {
    const page = this.#slotPages[block >>> blocksPerPageBits] as Uint32Array
    return page[placeInPage(block, slot)] as number
  }

  /** Adds the chunk whose id stands in `id` from `at` on; its record may not be written yet. The id must be new. */
  insert(id: Uint8Array, at = 0): number {
    const number = this.#size
    invariant(number < 2 ** 31 - 2, 'more chunks than a table can hold')
    if (number % entriesPerPage === 0) {
      this.#pages.push(new Uint32Array(entriesPerPage * wordsPerEntry))
      this.#offsetPages.push(new Uint8Array(entriesPerPage * offsetBytes))
    }
    this.#size = number + 1
    const page = this.#pages[number >>> pageBits] as Uint32Array
    const start = (number & (entriesPerPage - 1)) * wordsPerEntry
    for (let index = 0; index < 4; index += 1) page[start + index] = word(id, at + index * 4)
    page[start + 4] = 0
    if (this.#spoiled.length > 0) this.#setSpoiled(number, false)
    this.#addToPart(number)
    return number
  }

  setLocation(number: number, packNumber: number, offset: number, recordBytes: number): void {
    const units = Math.ceil(recordBytes / this.#unitBytes)
    const place = offset / offsetUnitBytes
    invariant(units <= 255 && Number.isInteger(place) && place < 1 << 24, 'a record no pack can hold')
    invariant(packNumber < packsMax, 'more packs than a table can name')
    const page = this.#pages[number >>> pageBits] as Uint32Array
    page[(number & (entriesPerPage - 1)) * wordsPerEntry + 4] = packNumber * 256 + units
    const offsets = this.#offsetPages[number >>> pageBits] as Uint8Array
    const at = (number & (entriesPerPage - 1)) * offsetBytes
    offsets[at] = place
    offsets[at + 1] = place >>> 8
    offsets[at + 2] = place >>> 16
    if (this.#spoiled.length > 0) this.#setSpoiled(number, false)
  }

  /** Undefined while the record is not written. */
  location(number: number): ChunkLocation | undefined {
    const { page, at } = this.#entry(number)
    const word = page[at + 4] ?? 0
    if (word % 256 === 0) return undefined
    return {
      packNumber: Math.floor(word / 256),
      offset: this.#offset(number),
      readBytes: (word % 256) * this.#unitBytes,
    }
  }

  #offset(number: number): number {
    const offsets = this.#offsetPages[number >>> pageBits] as Uint8Array
    const at = (number & (entriesPerPage - 1)) * offsetBytes
    const place = (offsets[at] ?? 0) | ((offsets[at + 1] ?? 0) << 8) | ((offsets[at + 2] ?? 0) << 16)
    return place * offsetUnitBytes
  }

  /** The first 16 bytes of the chunk's id. */
  id(number: number): Buffer {
    const { page, at } = this.#entry(number)
    const id = Buffer.alloc(16)
    for (let index = 0; index < 4; index += 1) id.writeUInt32LE(page[at + index] ?? 0, index * 4)
    return id
  }

  /** The pack of `location`. */
  packNumber(number: number): number {
    const { page, at } = this.#entry(number)
    return Math.floor((page[at + 4] ?? 0) / 256)
  }

  /** Whether the chunk's location is this one. */
  standsAt(number: number, packNumber: number, offset: number): boolean {
    return this.packNumber(number) === packNumber && this.#offset(number) === offset
  }

  /** The copy at the chunk's location is damaged, until it has another location or `unspoil` is called. */
  spoil(number: number): void {
    this.#setSpoiled(number, true)
  }

  unspoil(number: number): void {
    this.#setSpoiled(number, false)
  }

  isSpoiled(number: number): boolean {
    return (((this.#spoiled[number >>> 3] ?? 0) >> (number & 7)) & 1) === 1
  }

  /** Forgets the chunks that `keep` refuses. Those that stay are numbered anew, in the same order. */
  retain(keep: (number: number) => boolean): void {
    let kept = 0
    for (let number = 0; number < this.#size; number += 1) {
      if (!keep(number)) continue
      const from = this.#entry(number)
      const to = this.#entry(kept)
      const spoiled = this.isSpoiled(number)
      to.page.set(from.page.subarray(from.at, from.at + wordsPerEntry), to.at)
      const first = (number & (entriesPerPage - 1)) * offsetBytes
      const offset = (this.#offsetPages[number >>> pageBits] as Uint8Array).subarray(first, first + offsetBytes)
      this.#offsetPages[kept >>> pageBits]?.set(offset, (kept & (entriesPerPage - 1)) * offsetBytes)
      this.#setSpoiled(kept, spoiled)
      kept += 1
    }
    this.#size = kept
    this.#pages.length = Math.ceil(kept / entriesPerPage)
    this.#offsetPages.length = this.#pages.length
    this.#makeParts()
    for (let number = 0; number < kept; number += 1) this.#addToPart(number)
  }

  #setSpoiled(number: number, spoiled: boolean): void {
    const at = number >>> 3
    if (at >= this.#spoiled.length) {
      if (!spoiled) return
      const grown = new Uint8Array(Math.ceil(Math.max(at + 1, this.#size / 8) * 1.2))
      grown.set(this.#spoiled)
      this.#spoiled = grown
    }
    const bit = 1 << (number & 7)
    this.#spoiled[at] = spoiled ? (this.#spoiled[at] ?? 0) | bit : (this.#spoiled[at] ?? 0) & ~bit
  }

  #entry(number: number): { page: Uint32Array; at: number } {
    const page = this.#pages[Math.floor(number / entriesPerPage)]
    invariant(page !== undefined && number < this.#size, 'no such chunk')
    return { page, at: (number % entriesPerPage) * wordsPerEntry }
  }

  #makeParts(): void {
    for (const { blocks } of this.#parts) this.#freeBlocks.push(...blocks)
    this.#parts = Array.from({ length: partCount }, (_, part) => {
      return { growth: growth(part), blocks: this.#takeBlocks(1), numberBits: 12, used: 0 }
    })
  }

  /** Empty ones. */
  #takeBlocks(count: number): number[] {
    return Array.from({ length: count }, () => {
      const free = this.#freeBlocks.pop()
      if (free === undefined) return this.#addSlotPage()
      const start = placeInPage(free, 0)
      this.#slotPages[free >>> blocksPerPageBits]?.fill(0, start, start + slotsPerBlock)
      return free
    })
  }

  #addSlotPage(): number {
    const first = this.#slotPages.length << blocksPerPageBits
    this.#slotPages.push(new Uint32Array(slotsPerBlock << blocksPerPageBits))
    for (let block = first + (1 << blocksPerPageBits) - 1; block > first; block -= 1) this.#freeBlocks.push(block)
    return first
  }

  #addToPart(number: number): void {
    const hash = this.#hashOfEntry(number)
    const part = this.#parts[hash & (partCount - 1)] as Part
    const isFull = part.used + 1 > (part.blocks.length << blockBits) * maxLoad
    const blockCount = part.blocks.length
    if (isFull) this.#rebuild(part, Math.ceil(blockCount * part.growth), number)
    else if (number + 1 >= 2 ** part.numberBits) this.#rebuild(part, blockCount, number)
    this.#place(part, number, hash)
    part.used += 1
  }

  /** What a part takes twice while it is rebuilt is one part in 64 of the table. */
  #rebuild(part: Part, blockCount: number, number: number): void {
    const { blocks: old, numberBits } = part
    const numberMask = 2 ** numberBits - 1
    part.blocks = this.#takeBlocks(blockCount)
    while (number + 1 >= 2 ** part.numberBits) part.numberBits += 1
    for (const block of old) {
      for (let slot = 0; slot < slotsPerBlock; slot += 1) {
        const value = this.#slot(block, slot)
        if (value === 0) continue
        const known = (value & numberMask) - 1
        this.#place(part, known, this.#hashOfEntry(known))
      }
      this.#freeBlocks.push(block)
    }
  }

  #hashOfEntry(number: number): number {
    const page = this.#pages[number >>> pageBits] as Uint32Array
    const at = (number & (entriesPerPage - 1)) * wordsPerEntry
    return hashOf(page[at] as number, page[at + 1] as number, page[at + 2] as number, page[at + 3] as number)
  }

  #place({ blocks, numberBits }: Part, number: number, hash: number): void {
    const entries = this.#pages[number >>> pageBits] as Uint32Array
    const at = (number & (entriesPerPage - 1)) * wordsPerEntry
    const tag = tagOf(entries[at + 2] as number, entries[at + 3] as number) >>> numberBits
    const slotCount = blocks.length << blockBits
    let slot = slotOf(hash, slotCount)
    while (this.#slot(blocks[slot >>> blockBits] as number, slot) !== 0) slot = slot + 1 === slotCount ? 0 : slot + 1
    const block = blocks[slot >>> blockBits] as number
    const page = this.#slotPages[block >>> blocksPerPageBits] as Uint32Array
    page[placeInPage(block, slot)] = tag * 2 ** numberBits + number + 1
  }
}

const placeInPage = (block: number, slot: number) =>
  ((block & ((1 << blocksPerPageBits) - 1)) << blockBits) | (slot & (slotsPerBlock - 1))

function hashOf(first: number, second: number, third: number, fourth: number): number {
  let hash = Math.imul(first ^ (seeds[0] ?? 0), 0x9e3779b1) ^ Math.imul(second ^ (seeds[1] ?? 0), 0x85ebca6b)
  hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d)
  hash ^= Math.imul(third ^ (seeds[2] ?? 0), 0xc2b2ae35) ^ Math.imul(fourth ^ (seeds[3] ?? 0), 0x27d4eb2f)
  hash = Math.imul(hash ^ (hash >>> 16), 0x297a2d39)
  return (hash ^ (hash >>> 15)) >>> 0
}

const tagOf = (third: number, fourth: number) => (third ^ fourth) >>> 0

/** The part takes the low bits of the hash, the place in it the others. */
const slotOf = (hash: number, slotCount: number) => Math.floor(((hash >>> partBits) * slotCount) / placeRange)

const word = (id: Uint8Array, at: number) =>
  ((id[at] ?? 0) | ((id[at + 1] ?? 0) << 8) | ((id[at + 2] ?? 0) << 16) | ((id[at + 3] ?? 0) << 24)) >>> 0
