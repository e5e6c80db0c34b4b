/**
 * ChunkStore: which chunks the repository holds, and their bytes. It knows what the index objects say; what a draft has
 * stored becomes known here when the draft publishes its indexes. Every chunk is verified before it is handed out.
 */
import { Failure, invariant } from '../base/failure.ts'
import { failure } from '../errors.ts'
import type { Backend } from './backend.ts'
import { decodeChunk } from './chunk-codec.ts'
import { type ChunkLocation, ChunkTable } from './chunk-table.ts'
import { segmentMaxBytes } from './disk-index.ts'
import {
  check,
  decodeIndex,
  FormatError,
  objectKeys,
  type PackListing,
  readRecordHeader,
  recordBytes,
  recordHeaderBytes,
  tocEntries,
} from './format.ts'
import { inSlot, openSlots } from './slots.ts'

/** Decoded chunks kept: enough that some sequential readers do not decode twice. */
const cachedChunks = 12
/** Chunks read and decoded at once. */
const decodersAtOnce = 4

/** The largest plain record of a repository. */
export function maxPlainBytes(chunkSizeBytes: number): number {
  return Math.max(chunkSizeBytes, segmentMaxBytes)
}

export class ChunkStore {
  readonly #backend: Backend
  readonly #maxPlainBytes: number
  readonly table: ChunkTable
  readonly #packKeys: string[] = []
  readonly #packNumbers = new Map<string, number>()
  readonly #loadedIndexes = new Set<string>()
  readonly #cache = new Map<string, Promise<Buffer>>()
  readonly #decoders = openSlots(decodersAtOnce)
  #refreshing: Promise<void> | undefined

  constructor(backend: Backend, chunkSizeBytes: number) {
    this.#backend = backend
    this.#maxPlainBytes = maxPlainBytes(chunkSizeBytes)
    this.table = new ChunkTable(recordBytes(this.#maxPlainBytes))
  }

  /** Loads the index objects that are new since the last time. REPOSITORY_DAMAGED names one that can not be read. */
  refresh(): Promise<void> {
    this.#refreshing ??= this.#loadNewIndexes().finally(() => {
      this.#refreshing = undefined
    })
    return this.#refreshing
  }

  async #loadNewIndexes(): Promise<void> {
    for await (const { key } of this.#backend.list('indexes/')) {
      if (this.#loadedIndexes.has(key)) continue
      const object = await this.#backend.get(key)
      try {
        for (const pack of decodeIndex(object)) this.#addPack(pack)
      } catch (error) {
        if (!(error instanceof FormatError)) throw error
        throw failure('REPOSITORY_DAMAGED', { path: `${this.#backend.location}/${key}`, reason: error.message }, error)
      }
      this.#loadedIndexes.add(key)
    }
  }

  /** Makes known what `packs`, published as index object `indexKey`, hold. */
  addPublished(indexKey: string, packs: readonly PackListing[]): void {
    this.#loadedIndexes.add(indexKey)
    for (const pack of packs) this.#addPack(pack)
  }

  #addPack(pack: PackListing): void {
    const key = objectKeys.pack(pack.pointId, pack.digest)
    const packNumber = this.#packNumbers.get(key) ?? this.#packKeys.push(key) - 1
    this.#packNumbers.set(key, packNumber)
    for (const entry of tocEntries(pack.toc)) {
      check(entry.plainBytes <= this.#maxPlainBytes, `a record of ${entry.plainBytes} bytes`)
      if (this.table.find(entry.id) !== -1) continue // stored twice by two that wrote at once: one is enough
      const number = this.table.insert(entry.id)
      this.table.setLocation(number, packNumber, entry.offset, recordBytes(entry.storedBytes))
    }
  }

  has(id: Uint8Array): boolean {
    return this.table.find(id) !== -1
  }

  /** The plain bytes of chunk `id`; do not change them. FormatError says what is wrong with it. */
  async read(id: Buffer): Promise<Buffer> {
    const name = id.toString('latin1')
    const cached = this.#cache.get(name)
    const reading = cached ?? inSlot(this.#decoders, () => this.#readStored(id))
    this.#cache.delete(name)
    this.#cache.set(name, reading)
    if (cached === undefined) {
      reading.catch(() => this.#cache.delete(name))
      const [oldest] = this.#cache.keys()
      if (this.#cache.size > cachedChunks && oldest !== undefined) this.#cache.delete(oldest)
    }
    return reading
  }

  async #readStored(id: Buffer): Promise<Buffer> {
    if (!this.has(id)) await this.refresh()
    const number = this.table.find(id)
    check(number !== -1, 'no index names this chunk')
    const location = this.table.location(number)
    invariant(location !== undefined, 'a published chunk has no place')
    const record = await this.#readRecord(location)
    const header = readRecordHeader(record)
    check(header.id.equals(id), 'another chunk is stored in its place')
    return decodeChunk(header, record.subarray(recordHeaderBytes, recordHeaderBytes + header.storedBytes))
  }

  async #readRecord(location: ChunkLocation): Promise<Buffer> {
    try {
      return await this.#backend.get(this.packKey(location.packNumber), {
        offset: location.offset,
        length: location.readBytes,
      })
    } catch (error) {
      if (error instanceof Failure && error.code === 'REPOSITORY_OBJECT_MISSING') {
        throw new FormatError(error.message, { cause: error })
      }
      throw error
    }
  }

  /** The key of the pack `packNumber`. */
  packKey(packNumber: number): string {
    const key = this.#packKeys[packNumber]
    invariant(key !== undefined, 'no such pack')
    return key
  }
}
