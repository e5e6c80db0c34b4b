/**
 * KnownChunks: what the index objects say the repository holds, in memory, one place for each chunk; and which of it may be
 * relied upon. docs/repository-format.md, "Indexes".
 *
 * A chunk may stand in several packs. Of its copies the one is known that can be relied upon best: one no index names any
 * more < one marked as damaged < one in a condemned pack (read, but never used by new points) < a usable one.
 */
import { Failure } from '../../base/failure.ts'
import { readCondemned } from '../collection/condemned.ts'
import {
  check,
  type PackListing,
  recordBytes,
  recordSealBytes,
  tocEntryBytes,
  visitIndexPacks,
  visitToc,
} from '../format.ts'
import type { Seal } from '../keys/seal.ts'
import { isPointId } from '../recovery-point.ts'
import type { Backend } from '../storage/backend.ts'
import { DamageMarks, readDamageMarks } from '../verification/damage-marks.ts'
import { ChunkTable } from './chunk-table.ts'
import { type DamagedIndex, indexDamage, listIndexes, listIndexSizes, useIndex, visitIndex } from './index-reader.ts'
import { PackNames, packFlags } from './pack-names.ts'

/** Where a copy of a chunk is. */
export interface ChunkPlace {
  readonly pack: string
  /** Whose draft wrote the pack. */
  readonly pointId: string
  readonly offset: number
  /** As many as the record has, or a few more. */
  readonly readBytes: number
}

const ranks = { unknown: 0, damaged: 1, condemned: 2, usable: 3 } as const

/** Chunks the hash table is prepared for at once, whatever size the indexes claim to have: it takes 9 MiB then. */
const reservedMax = 2 ** 21

/** Collectors that replace indexes while they are read: after so many times something else is wrong. */
const attemptsMax = 5

export class KnownChunks {
  readonly table: ChunkTable
  readonly names = new PackNames()
  readonly #backend: Backend
  readonly #seal: Seal
  readonly #maxPlainBytes: number
  readonly #loaded = new Set<string>()
  #damagedIndexes: DamagedIndex[] = []
  #marks = new DamageMarks()
  #markKeys: readonly string[] = []
  #condemned: readonly string[] = []
  #running: Promise<void> = Promise.resolve()
  #next: Promise<void> | undefined
  #thorough = false
  #afresh = false
  #holders = 0

  constructor(backend: Backend, seal: Seal, maxPlainBytes: number) {
    this.#backend = backend
    this.#seal = seal
    this.#maxPlainBytes = maxPlainBytes
    this.table = new ChunkTable(recordBytes(maxPlainBytes + recordSealBytes))
  }

  /**
   * Reads condemned/, damaged/ and the list of indexes anew, all of it after the call, and loads what is new; forgets what
   * no index names any more. REPOSITORY_IO when they can not be listed, REPOSITORY_NEWER_FORMAT.
   */
  refresh(): Promise<void> {
    this.#afresh = true
    return this.#queue()
  }

  /** The copy of the chunk in `pack` can not be read; looks for another one. `isMissing`: there is no such pack. */
  async search(id: Uint8Array, pack: string, isMissing: boolean): Promise<void> {
    const number = this.table.find(id)
    const packNumber = this.names.findKey(pack)
    if (packNumber === -1) return this.#queue()
    if (isMissing && this.names.has(packNumber, packFlags.missed)) return this.#next ?? this.#running
    if (isMissing) this.names.set(packNumber, packFlags.missed)
    else if (number !== -1 && this.table.packNumber(number) === packNumber) this.table.spoil(number)
    this.#thorough = true
    return this.#queue()
  }

  #queue(): Promise<void> {
    this.#next ??= this.#running.then(async () => {
      this.#next = undefined
      const work = this.#refreshNow()
      this.#running = work.catch(() => undefined) // whoever called is told
      await work
    })
    return this.#next
  }

  /** The index objects that could not be read the last time; what they alone name is unknown. */
  get damagedIndexes(): readonly DamagedIndex[] {
    return this.#damagedIndexes
  }

  /** What is marked as damaged, and the objects that say so. */
  get damage(): { readonly marks: DamageMarks; readonly keys: readonly string[] } {
    return { marks: this.#marks, keys: this.#markKeys }
  }

  /** True when an index names the chunk, wherever it stands. */
  has(id: Uint8Array): boolean {
    const number = this.table.find(id)
    return number !== -1 && this.isKnown(number)
  }

  isKnown(number: number): boolean {
    return this.names.has(this.table.packNumber(number), packFlags.indexed)
  }

  /** True when a new point may rely upon the chunk: known, in no condemned pack, and not marked as damaged. */
  usable(id: Uint8Array): boolean {
    const number = this.table.find(id)
    return number !== -1 && this.isKnown(number) && this.#rankOf(number) === ranks.usable
  }

  /** Undefined when no index names the chunk. */
  place(id: Uint8Array): ChunkPlace | undefined {
    const number = this.table.find(id)
    return number === -1 || !this.isKnown(number) ? undefined : this.placeOf(number)
  }

  placeOf(number: number): ChunkPlace | undefined {
    const location = this.table.location(number)
    if (location === undefined) return undefined
    const { packNumber, offset, readBytes } = location
    return { pack: this.names.key(packNumber), pointId: this.names.pointId(packNumber), offset, readBytes }
  }

  /** Chunks keep their numbers until it is disposed. */
  holdNumbers(): Disposable {
    this.#holders += 1
    return {
      [Symbol.dispose]: () => {
        this.#holders -= 1
      },
    }
  }

  /** Makes known what `packs`, published as index object `indexKey`, hold. */
  addPublished(indexKey: string, packs: readonly PackListing[]): void {
    this.#loaded.add(indexKey)
    for (const { pointId, digest, toc } of packs) this.#addPack(this.names.add(pointId, digest), toc, 0, toc.length)
  }

  /** Calls `visit` for each pack of each index that can be read; what it is given is valid only during the call. */
  async visitIndexes(visit: (pack: PackListing) => void): Promise<void> {
    for (const key of await listIndexes(this.#backend)) {
      await visitIndex(this.#backend, this.#seal, key, visit).catch((error: unknown) => {
        if (!isMissing(error)) indexDamage(error) // reported by refresh
      })
    }
  }

  async #refreshNow(): Promise<void> {
    if (this.#afresh) this.names.clear(packFlags.missed)
    this.#afresh = false
    if (await this.#readMarks()) this.#thorough = true // before the indexes: condemnations go last
    for (let attempt = 1; ; attempt += 1) {
      try {
        await this.#readIndexes()
        // Not before: a condemnation that is gone may be so because its packs are, and an index of before names them still.
        this.names.clear(packFlags.condemned)
        for (const pack of this.#condemned) this.#flag(pack, packFlags.condemned)
        return
      } catch (error) {
        if (!isMissing(error) || attempt === attemptsMax) throw error // replaced while it was read: list again
      }
    }
  }

  async #readIndexes(): Promise<void> {
    const before = [...this.#loaded]
    const sizes = await listIndexSizes(this.#backend)
    const isWhole = this.#thorough || before.some((key) => !sizes.has(key))
    if (isWhole) {
      this.#thorough = true // until it is done
      this.names.clear(packFlags.seen)
      for (const key of before) this.#loaded.delete(key)
    }
    this.#damagedIndexes = await this.#load(sizes)
    if (!isWhole) return
    this.#thorough = false
    this.names.follow(packFlags.indexed, packFlags.seen)
    this.#forgetUnknown()
  }

  async #load(sizes: ReadonlyMap<string, number>): Promise<DamagedIndex[]> {
    const damaged: DamagedIndex[] = []
    let newBytes = 0
    for (const [key, sizeBytes] of sizes) if (!this.#loaded.has(key)) newBytes += sizeBytes
    this.table.reserve(Math.min(this.table.size + newBytes / tocEntryBytes, reservedMax))
    for (const key of sizes.keys()) {
      if (this.#loaded.has(key)) continue
      try {
        await useIndex(this.#backend, key, (object) => this.#addIndex(object))
        this.#loaded.add(key)
      } catch (error) {
        if (isMissing(error)) throw error
        damaged.push({ key, reason: indexDamage(error) })
      }
    }
    return damaged
  }

  #forgetUnknown(): void {
    let unknown = 0
    for (let number = 0; number < this.table.size; number += 1) if (!this.isKnown(number)) unknown += 1
    if (unknown > 0 && unknown * 4 >= this.table.size && this.#holders === 0)
      this.table.retain((number) => this.isKnown(number))
  }

  #addIndex(object: Buffer): void {
    visitIndexPacks(this.#seal, object, (pointId, digestAt, tocAt, tocEnd) => {
      check(isPointId(pointId), 'a pack of no point')
      this.#addPack(this.names.add(pointId, object, digestAt), object, tocAt, tocEnd)
    })
  }

  /** The pack's table of contents stands in `bytes` between `from` and `to`. */
  #addPack(packNumber: number, bytes: Buffer, from: number, to: number): void {
    this.names.set(packNumber, packFlags.indexed | packFlags.seen)
    const packRank = this.#packRank(packNumber)
    const hasDamage = this.names.has(packNumber, packFlags.hasDamage)
    const spoiled = hasDamage ? this.#marks.records(this.names.key(packNumber)) : undefined
    const add = (at: number, offset: number, storedBytes: number, plainBytes: number) => {
      if (plainBytes > this.#maxPlainBytes) check(false, `a record of ${plainBytes} bytes`)
      const isSpoiled = spoiled?.has(bytes.toString('hex', at, at + 16))
      let number = this.table.find(bytes, at)
      if (number === -1) number = this.table.insert(bytes, at)
      else if (this.table.standsAt(number, packNumber, offset)) return
      else if (this.#rankOf(number) >= (isSpoiled ? Math.min(packRank, ranks.damaged) : packRank)) return
      this.table.setLocation(number, packNumber, offset, recordBytes(storedBytes))
      if (isSpoiled) this.table.spoil(number)
    }
    visitToc(bytes, add, from, to)
  }

  #rankOf(number: number): number {
    const packRank = this.#packRank(this.table.packNumber(number))
    return this.table.isSpoiled(number) ? Math.min(packRank, ranks.damaged) : packRank
  }

  #packRank(packNumber: number): number {
    if (!this.names.has(packNumber, packFlags.seen)) return ranks.unknown
    if (this.names.has(packNumber, packFlags.damaged | packFlags.missed)) return ranks.damaged
    return this.names.has(packNumber, packFlags.condemned) ? ranks.condemned : ranks.usable
  }

  /** True when something known may have a better copy now. */
  async #readMarks(): Promise<boolean> {
    const condemned = (await readCondemned(this.#backend, this.#seal)).flatMap(({ packs }) => packs)
    const { marks, keys } = await readDamageMarks(this.#backend, this.#seal)
    const damaged = marks.packKeys().filter((pack) => marks.packReason(pack) !== undefined)
    const worse =
      condemned.some((pack) => !this.#packHas(pack, packFlags.condemned)) ||
      damaged.some((pack) => !this.#packHas(pack, packFlags.damaged))
    this.#condemned = condemned
    this.names.clear(packFlags.damaged | packFlags.hasDamage)
    for (const pack of condemned) this.#flag(pack, packFlags.condemned)
    for (const pack of damaged) this.#flag(pack, packFlags.damaged)
    for (const pack of marks.packKeys()) this.#flag(pack, packFlags.hasDamage)
    const spoiled = this.#spoil(marks)
    this.#marks = marks
    this.#markKeys = keys
    return worse || spoiled
  }

  #packHas(pack: string, flags: number): boolean {
    const number = this.names.findKey(pack)
    return number !== -1 && this.names.has(number, flags)
  }

  #flag(pack: string, flags: number): void {
    const [, pointId, digest] = pack.split('/')
    if (pointId !== undefined && digest !== undefined) {
      this.names.set(this.names.add(pointId, Buffer.from(digest, 'hex')), flags)
    }
  }

  /** Takes the new marks of single records over, and the old ones off; true when a known place is newly damaged. */
  #spoil(marks: DamageMarks): boolean {
    let worse = false
    for (const pack of new Set([...marks.packKeys(), ...this.#marks.packKeys()])) {
      const packNumber = this.names.findKey(pack)
      const old = this.#marks.records(pack)
      const fresh = marks.records(pack)
      for (const id of new Set([...old.keys(), ...fresh.keys()])) {
        const number = this.table.find(Buffer.from(id, 'hex'))
        if (number === -1 || this.table.packNumber(number) !== packNumber) continue
        if (!fresh.has(id)) this.table.unspoil(number)
        else if (!this.table.isSpoiled(number)) {
          this.table.spoil(number)
          worse = true
        }
      }
    }
    return worse
  }
}

const isMissing = (error: unknown) => error instanceof Failure && error.code === 'REPOSITORY_OBJECT_MISSING'
