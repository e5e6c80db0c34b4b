/**
 * ChunkStore: which chunks the repository holds, and their bytes. It knows what the index objects say; what a draft has
 * stored becomes known here when the draft publishes its indexes. Every chunk is verified before it is handed out.
 */
import { Failure, invariant } from '../base/failure.ts'
import { inSlot, openSlots, type Slots } from '../base/slots.ts'
import { failure } from '../errors.ts'
import type { Backend } from './backend.ts'
import { ChunkTable } from './chunk-table.ts'
import { type CodecThreads, codecThreads, type SharedBuffer } from './codec-threads.ts'
import { segmentMaxBytes } from './disk-index.ts'
import {
  check,
  decodeIndex,
  FormatError,
  indexMaxBytes,
  objectKeys,
  type PackListing,
  readRecordHeader,
  recordBytes,
  recordHeaderBytes,
  tocEntries,
} from './format.ts'
import type { Seal } from './seal.ts'

/** Decoded chunks kept: enough that some sequential readers do not decode twice. */
const cachedChunks = 12

/** A decoded chunk, or one on its way, in a buffer that goes back when nobody needs it. */
interface CachedChunk {
  readonly decoded: Promise<DecodedChunk>
  users: number
  evicted: boolean
}

interface DecodedChunk {
  readonly buffer: SharedBuffer
  readonly plain: Buffer
}

export class ChunkStore {
  readonly #backend: Backend
  readonly seal: Seal
  readonly maxPlainBytes: number
  readonly table: ChunkTable
  readonly threads: CodecThreads
  readonly #packKeys: string[] = []
  readonly #packNumbers = new Map<string, number>()
  readonly #loadedIndexes = new Set<string>()
  readonly #cache = new Map<string, CachedChunk>()
  readonly #decoders: Slots
  #refreshing: Promise<void> | undefined

  constructor(backend: Backend, seal: Seal, chunkSizeBytes: number) {
    this.#backend = backend
    this.seal = seal
    this.maxPlainBytes = Math.max(chunkSizeBytes, segmentMaxBytes)
    this.table = new ChunkTable(recordBytes(this.maxPlainBytes))
    this.threads = codecThreads(this.table.maxReadBytes)
    this.#decoders = openSlots(this.threads.jobsAtOnce)
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
      const object = await this.#backend.get(key, indexMaxBytes)
      try {
        for (const pack of decodeIndex(this.seal, object)) this.#addPack(pack)
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
      check(entry.plainBytes <= this.maxPlainBytes, `a record of ${entry.plainBytes} bytes`)
      if (this.table.find(entry.id) !== -1) continue // stored twice by two that wrote at once: one is enough
      const number = this.table.insert(entry.id)
      this.table.setLocation(number, packNumber, entry.offset, recordBytes(entry.storedBytes))
    }
  }

  has(id: Uint8Array): boolean {
    return this.table.find(id) !== -1
  }

  /** Calls `use` with the plain bytes of chunk `id`, which are valid only during the call. FormatError says what is wrong. */
  async withChunk<T>(id: Buffer, use: (plain: Buffer) => T): Promise<T> {
    const name = id.toString('latin1')
    const chunk = this.#cache.get(name) ?? { decoded: this.#readStored(id), users: 0, evicted: false }
    chunk.users += 1
    this.#cache.delete(name)
    this.#cache.set(name, chunk)
    this.#evictOldest()
    try {
      return use((await chunk.decoded).plain)
    } catch (error) {
      if (this.#cache.get(name) === chunk) this.#cache.delete(name)
      chunk.evicted = true
      throw error
    } finally {
      chunk.users -= 1
      this.#reclaim(chunk)
    }
  }

  /** A copy of the chunk, for what is small and kept. */
  read(id: Buffer): Promise<Buffer> {
    return this.withChunk(id, (plain) => Buffer.from(plain))
  }

  #evictOldest(): void {
    if (this.#cache.size <= cachedChunks) return
    const [oldest] = this.#cache
    if (oldest === undefined) return
    this.#cache.delete(oldest[0])
    oldest[1].evicted = true
    this.#reclaim(oldest[1])
  }

  #reclaim(chunk: CachedChunk): void {
    if (!chunk.evicted || chunk.users > 0) return
    chunk.decoded.then(
      ({ buffer }) => this.threads.giveBuffer(buffer),
      () => undefined, // gave its buffer back itself
    )
  }

  async #readStored(id: Buffer): Promise<DecodedChunk> {
    if (!this.has(id)) await this.refresh()
    const number = this.table.find(id)
    check(number !== -1, 'no index names this chunk')
    return inSlot(this.#decoders, () => this.#decode(number, id))
  }

  /** Reads the chunk `number` and proves it; answers the bytes read from its pack. FormatError says what is wrong. */
  async verify(number: number): Promise<void> {
    const { buffer } = await inSlot(this.#decoders, () => this.#decode(number, undefined))
    this.threads.giveBuffer(buffer)
  }

  async #decode(number: number, id: Buffer | undefined): Promise<DecodedChunk> {
    const location = this.table.location(number)
    invariant(location !== undefined, 'a published chunk has no place')
    const buffer = this.threads.takeBuffer()
    try {
      const target = buffer.subarray(0, location.readBytes)
      const length = await this.#readPack(location.packNumber, location.offset, target)
      const { kind: _, ...header } = readRecordHeader(target.subarray(0, length))
      check(id === undefined || header.id.equals(id), 'another chunk is stored in its place')
      check(this.table.find(header.id) === number, 'another chunk is stored in its place')
      check(recordHeaderBytes + header.storedBytes <= length, 'the record is cut off')
      // The header's id is a view of the buffer, which the plain bytes overwrite.
      const record = { ...header, id: Uint8Array.from(header.id), storedAt: recordHeaderBytes }
      const plainAt = await this.threads.decode(buffer, record)
      return { buffer, plain: buffer.subarray(plainAt, plainAt + header.plainBytes) }
    } catch (error) {
      this.threads.giveBuffer(buffer)
      throw error
    }
  }

  async #readPack(packNumber: number, offset: number, target: Uint8Array): Promise<number> {
    const key = this.#packKeys[packNumber]
    invariant(key !== undefined, 'no such pack')
    try {
      return await this.#backend.read(key, offset, target)
    } catch (error) {
      if (!(error instanceof Failure) || error.code !== 'REPOSITORY_OBJECT_MISSING') throw error
      throw new FormatError(error.message, { cause: error })
    }
  }
}
