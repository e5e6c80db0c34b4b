/**
 * MapLog: what was said about the places of a stream's map while the stream was written, in 40 bytes for each time and a bit
 * for each chunk. Sorted by place at the end; of what is said about one chunk the order stays.
 */

import { digestBytes } from '../chunks/blake3.ts'
import { Bitmap } from './bitmap.ts'

/** Blocks that begin at `position` in the gathered record `record` and follow each other there. */
export interface GatheredBlocks {
  readonly blocks: readonly number[]
  readonly record: number
  readonly position: number
}

export type MapChange =
  | { readonly kind: 'whole'; readonly id: Buffer }
  | { readonly kind: 'zeros' }
  | ({ readonly kind: 'blocks' } & GatheredBlocks)
  | { readonly kind: 'zero blocks'; readonly blocks: readonly number[] }

const kinds = ['whole', 'zeros', 'blocks', 'zero blocks'] as const
/** Chunk number 4, kind 1, position 1, 0 2; then the id, or a bitmap of blocks 8 and a record's number 4. */
const entryBytes = 8 + digestBytes
const entriesPerPage = 1024
const mostBlocks = 64

export class MapLog {
  readonly #pages: Buffer[] = []
  readonly #changed: Bitmap
  /** Chunks that begin otherwise than all: as zeros instead of the base, or after `startEmpty` as the base instead of zeros. */
  readonly #turned: Bitmap
  #startsEmpty = false
  #size = 0
  #last = -1
  #ascending = true

  constructor(chunkCount: number) {
    this.#changed = new Bitmap(chunkCount)
    this.#turned = new Bitmap(chunkCount)
  }

  /** From now on a chunk of which nothing is said is zeros. Nothing was said yet. */
  startEmpty(): void {
    this.#startsEmpty = true
  }

  /** Whether anything was said about the chunk. */
  mentions(chunkNumber: number): boolean {
    return this.#changed.has(chunkNumber) || this.#turned.has(chunkNumber)
  }

  /** What the chunk is before any change of it counts. What so many are takes no entry. */
  beginning(chunkNumber: number): 'base' | 'zeros' {
    return this.#startsEmpty === this.#turned.has(chunkNumber) ? 'base' : 'zeros'
  }

  /** What the chunks [from, from + count), multiples of 8, are when no change is about them; undefined when they differ. */
  beginningOfAll(from: number, count: number): 'base' | 'zeros' | undefined {
    if (this.#turned.hasAny(from, count)) return undefined
    return this.#startsEmpty ? 'zeros' : 'base'
  }

  /** The chunk is as in the base. Nothing else was said about it. */
  keep(chunkNumber: number): void {
    if (this.#startsEmpty) this.#turned.add(chunkNumber)
  }

  append(chunkNumber: number, change: MapChange): void {
    if (change.kind === 'zeros' && !this.mentions(chunkNumber)) {
      if (!this.#startsEmpty) this.#turned.add(chunkNumber)
      return
    }
    this.#changed.add(chunkNumber)
    const entry = this.#newEntry()
    entry.writeUInt32LE(chunkNumber, 0)
    entry.writeUInt8(kinds.indexOf(change.kind), 4)
    if (change.kind === 'whole') entry.set(change.id, 8)
    if ('blocks' in change) for (const block of change.blocks) entry[8 + (block >> 3)] = bitSet(entry, block)
    if (change.kind === 'blocks') {
      entry.writeUInt8(change.position, 5)
      entry.writeUInt32LE(change.record, 16)
    }
    if (chunkNumber < this.#last) this.#ascending = false
    this.#last = chunkNumber
  }

  #newEntry(): Buffer {
    if (this.#size % entriesPerPage === 0) this.#pages.push(Buffer.alloc(entriesPerPage * entryBytes))
    this.#size += 1
    return this.#entry(this.#size - 1)
  }

  #entry(index: number): Buffer {
    const at = (index % entriesPerPage) * entryBytes
    return this.#pages[Math.floor(index / entriesPerPage)]?.subarray(at, at + entryBytes) ?? Buffer.alloc(entryBytes)
  }

  #chunkNumber(index: number): number {
    return this.#pages[Math.floor(index / entriesPerPage)]?.readUInt32LE((index % entriesPerPage) * entryBytes) ?? 0
  }

  /** All entries, by their chunks, and for one chunk in the order in which they came. Nothing may be appended after. */
  sorted(): SortedChanges {
    const order = new Uint32Array(this.#size).map((_, index) => index)
    if (!this.#ascending) order.sort((one, other) => this.#chunkNumber(one) - this.#chunkNumber(other) || one - other)
    let next = 0
    return {
      nextChunk: () => (next < order.length ? this.#chunkNumber(order[next] ?? 0) : undefined),
      take: () => this.#change(order[next++] ?? 0),
    }
  }

  #change(index: number): MapChange {
    const entry = this.#entry(index)
    const kind = kinds[entry.readUInt8(4)] ?? 'zeros'
    if (kind === 'whole') return { kind, id: entry.subarray(8) }
    if (kind === 'zeros') return { kind }
    const blocks: number[] = []
    for (let block = 0; block < mostBlocks; block += 1) {
      if (((entry[8 + (block >> 3)] ?? 0) >> (block & 7)) & 1) blocks.push(block)
    }
    if (kind === 'zero blocks') return { kind, blocks }
    return { kind, blocks, position: entry.readUInt8(5), record: entry.readUInt32LE(16) }
  }
}

/** Reads the entries of a log in order. */
export interface SortedChanges {
  /** The chunk that `take` tells about next; undefined at the end. */
  nextChunk(): number | undefined
  take(): MapChange
}

const bitSet = (entry: Buffer, block: number) => (entry[8 + (block >> 3)] ?? 0) | (1 << (block & 7))
