/**
 * PackNames: the names of the packs the indexes tell of, as numbers: 36 bytes a pack and about 5 of a hash table, where text
 * would take ten times as much. And what is known of each pack: whether its chunks may be used.
 */
import { randomInt } from 'node:crypto'
import { invariant } from '../../base/failure.ts'
import { check, objectKeys } from '../format.ts'
import { digestBytes } from './blake3.ts'
import { packsMax } from './chunk-table.ts'

/** What keeps a pack from being used. */
export const packFlags = {
  /** An index names it. */
  indexed: 1,
  /** An index names it, so far as the indexes have been read again. */
  seen: 16,
  /** Collection is about to remove it: read, but never relied upon. */
  condemned: 2,
  /** All of it is damaged or missing. */
  damaged: 4,
  /** It was not there when it was read; until the next refresh. */
  missed: 32,
  /** Some record of it is damaged; the table of chunks knows which. */
  hasDamage: 8,
} as const

const packsPerPage = 1 << 10
const firstSlotCount = 64
const maxLoad = 0.85
const growth = 1.25
const seed = randomInt(2 ** 32)

interface Page {
  readonly digests: Buffer
  readonly points: Uint32Array
  readonly flags: Uint8Array
}

export class PackNames {
  readonly #pages: Page[] = []
  readonly #points: string[] = []
  readonly #pointNumbers = new Map<string, number>()
  #slots = new Uint32Array(firstSlotCount)
  #size = 0

  get size(): number {
    return this.#size
  }

  /** Memory taken but for the ids of points, in bytes. */
  get memoryBytes(): number {
    return this.#slots.byteLength + this.#pages.length * packsPerPage * (digestBytes + 5)
  }

  /** The number of the pack, which it keeps. Its digest stands in `bytes` from `at` on. */
  add(pointId: string, bytes: Uint8Array, at = 0): number {
    const known = this.find(pointId, bytes, at)
    if (known !== -1) return known
    check(this.#size < packsMax, 'more packs than can be')
    if (this.#size + 1 > this.#slots.length * maxLoad) this.#grow()
    const number = this.#size
    const place = number % packsPerPage
    if (place === 0) this.#pages.push(newPage())
    this.#size = number + 1
    const page = this.#page(number)
    for (let index = 0; index < digestBytes; index += 1)
      page.digests[place * digestBytes + index] = bytes[at + index] ?? 0
    page.points[place] = this.#pointNumber(pointId)
    this.#place(number)
    return number
  }

  /** The number of the pack, or -1. */
  find(pointId: string, bytes: Uint8Array, at = 0): number {
    const point = this.#pointNumbers.get(pointId)
    if (point === undefined || bytes.length < at + digestBytes) return -1
    for (let slot = slotOf(bytes, at, this.#slots.length); ; slot = (slot + 1) % this.#slots.length) {
      const number = (this.#slots[slot] ?? 0) - 1
      if (number === -1) return -1
      const page = this.#page(number)
      const place = number % packsPerPage
      if (page.points[place] !== point) continue
      if (page.digests.compare(bytes, at, at + digestBytes, place * digestBytes, (place + 1) * digestBytes) === 0)
        return number
    }
  }

  /** The number of the pack kept at `key`, or -1. */
  findKey(key: string): number {
    const [folder, pointId, digest] = key.split('/')
    if (folder !== 'packs' || pointId === undefined || digest === undefined) return -1
    return this.find(pointId, Buffer.from(digest, 'hex'))
  }

  key(number: number): string {
    return objectKeys.pack(this.pointId(number), this.digest(number))
  }

  pointId(number: number): string {
    const pointId = this.#points[this.#page(number).points[number % packsPerPage] ?? 0]
    invariant(pointId !== undefined, 'a pack of no point')
    return pointId
  }

  digest(number: number): Buffer {
    const at = (number % packsPerPage) * digestBytes
    return this.#page(number).digests.subarray(at, at + digestBytes)
  }

  has(number: number, flags: number): boolean {
    return ((this.#page(number).flags[number % packsPerPage] ?? 0) & flags) !== 0
  }

  set(number: number, flags: number): void {
    const page = this.#page(number)
    page.flags[number % packsPerPage] = (page.flags[number % packsPerPage] ?? 0) | flags
  }

  /** Takes `flags` off every pack. */
  clear(flags: number): void {
    for (const page of this.#pages) {
      for (let at = 0; at < packsPerPage; at += 1) page.flags[at] = (page.flags[at] ?? 0) & ~flags
    }
  }

  /** Puts `flags` on each pack that has `other`, and takes them off the others. */
  follow(flags: number, other: number): void {
    for (const page of this.#pages) {
      for (let at = 0; at < packsPerPage; at += 1) {
        const old = page.flags[at] ?? 0
        page.flags[at] = (old & other) !== 0 ? old | flags : old & ~flags
      }
    }
  }

  #page(number: number): Page {
    const page = this.#pages[Math.floor(number / packsPerPage)]
    invariant(page !== undefined && number < this.#size, 'no such pack')
    return page
  }

  #pointNumber(pointId: string): number {
    const number = this.#pointNumbers.get(pointId) ?? this.#points.push(pointId) - 1
    this.#pointNumbers.set(pointId, number)
    return number
  }

  #place(number: number): void {
    const page = this.#page(number)
    let slot = slotOf(page.digests, (number % packsPerPage) * digestBytes, this.#slots.length)
    while (this.#slots[slot] !== 0) slot = (slot + 1) % this.#slots.length
    this.#slots[slot] = number + 1
  }

  #grow(): void {
    const slotCount = Math.ceil(this.#slots.length * growth)
    this.#slots.buffer.transfer(0)
    this.#slots = new Uint32Array(slotCount)
    for (let number = 0; number < this.#size; number += 1) this.#place(number)
  }
}

const newPage = (): Page => ({
  digests: Buffer.allocUnsafeSlow(packsPerPage * digestBytes),
  points: new Uint32Array(packsPerPage),
  flags: new Uint8Array(packsPerPage),
})

/** Whoever chooses digests does not choose where they stand. */
function slotOf(bytes: Uint8Array, at: number, slotCount: number): number {
  let hash = seed
  for (let index = at; index < at + digestBytes; index += 1) hash = Math.imul(hash ^ (bytes[index] ?? 0), 0x01000193)
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
  return ((hash ^ (hash >>> 13)) >>> 0) % slotCount
}
