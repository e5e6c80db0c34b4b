/**
 * ChunkTable: which record holds which chunk, in 24 bytes a chunk and one slot of a hash table (4 to 8 bytes on average).
 * 1 TiB of different data in chunks of 512 KiB takes 64 MiB. Chunks are numbered in the order of insertion.
 * Only the first 16 bytes of an id are kept; the whole id stands in the record and is compared when it is read.
 */
import { invariant } from '../base/failure.ts'

/** Where a record begins and how many bytes to read so that all of it is there (not more than `unitBytes` too many). */
export interface ChunkLocation {
  readonly packNumber: number
  readonly offset: number
  readonly readBytes: number
}

const wordsPerEntry = 6
const entriesPerPage = 1 << 14
const firstSlotCount = 1 << 10
const maxLoad = 0.75
const offsetUnitBytes = 8

export class ChunkTable {
  readonly #unitBytes: number
  readonly #pages: Uint32Array[] = []
  #slots = new Uint32Array(firstSlotCount)
  #size = 0

  /** `maxRecordBytes`: no record is longer. */
  constructor(maxRecordBytes: number) {
    this.#unitBytes = Math.ceil(maxRecordBytes / 255 / 8) * 8
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
    return this.#slots.byteLength + this.#pages.length * entriesPerPage * wordsPerEntry * 4
  }

  /** The number of the chunk `id`, or -1. */
  find(id: Uint8Array): number {
    return this.#probe(word(id, 0), word(id, 4), word(id, 8), word(id, 12)).entry
  }

  /** Adds the chunk `id`, whose record may not be written yet; answers its number. The id must be new. */
  insert(id: Uint8Array): number {
    if (this.#size + 1 > this.#slots.length * maxLoad) this.#grow()
    const { entry, slot } = this.#probe(word(id, 0), word(id, 4), word(id, 8), word(id, 12))
    invariant(entry === -1, 'a chunk is inserted twice')
    const number = this.#size
    if (number % entriesPerPage === 0) this.#pages.push(new Uint32Array(entriesPerPage * wordsPerEntry))
    this.#size = number + 1
    const { page, at } = this.#entry(number)
    for (let index = 0; index < 4; index += 1) page[at + index] = word(id, index * 4)
    page[at + 5] = 0
    this.#slots[slot] = number + 1
    return number
  }

  setLocation(number: number, packNumber: number, offset: number, recordBytes: number): void {
    const units = Math.ceil(recordBytes / this.#unitBytes)
    const place = offset / offsetUnitBytes
    invariant(units <= 255 && Number.isInteger(place) && place < 1 << 24, 'a record no pack can hold')
    const { page, at } = this.#entry(number)
    page[at + 4] = packNumber
    page[at + 5] = place * 256 + units
  }

  /** Undefined while the record is not written. */
  location(number: number): ChunkLocation | undefined {
    const { page, at } = this.#entry(number)
    const place = page[at + 5] ?? 0
    if (place === 0) return undefined
    return {
      packNumber: page[at + 4] ?? 0,
      offset: Math.floor(place / 256) * offsetUnitBytes,
      readBytes: (place % 256) * this.#unitBytes,
    }
  }

  #entry(number: number): { page: Uint32Array; at: number } {
    const page = this.#pages[Math.floor(number / entriesPerPage)]
    invariant(page !== undefined && number < this.#size, 'no such chunk')
    return { page, at: (number % entriesPerPage) * wordsPerEntry }
  }

  #probe(first: number, second: number, third: number, fourth: number): { entry: number; slot: number } {
    const mask = this.#slots.length - 1
    for (let slot = first & mask; ; slot = (slot + 1) & mask) {
      const entry = (this.#slots[slot] ?? 0) - 1
      if (entry === -1) return { entry, slot }
      const page = this.#pages[Math.floor(entry / entriesPerPage)]
      const at = (entry % entriesPerPage) * wordsPerEntry
      if (page?.[at] === first && page[at + 1] === second && page[at + 2] === third && page[at + 3] === fourth) {
        return { entry, slot }
      }
    }
  }

  #grow(): void {
    this.#slots = new Uint32Array(this.#slots.length * 2)
    const mask = this.#slots.length - 1
    for (let number = 0; number < this.#size; number += 1) {
      const { page, at } = this.#entry(number)
      let slot = (page[at] ?? 0) & mask
      while (this.#slots[slot] !== 0) slot = (slot + 1) & mask
      this.#slots[slot] = number + 1
    }
  }
}

const word = (id: Uint8Array, at: number) =>
  ((id[at] ?? 0) | ((id[at + 1] ?? 0) << 8) | ((id[at + 2] ?? 0) << 16) | ((id[at + 3] ?? 0) << 24)) >>> 0
