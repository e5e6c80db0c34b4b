/**
 * ChunkStore: which chunks the repository holds, and their bytes. It knows what the index objects say; what a draft has
 * stored becomes known here when the draft publishes its indexes. Every chunk is verified before it is handed out.
 */
import { Failure } from '../../base/failure.ts'
import { inSlot, openSlots, type Slots } from '../../base/slots.ts'
import { check, FormatError, type PackListing, readRecordHeader, recordHeaderBytes } from '../format.ts'
import type { Seal } from '../keys/seal.ts'
import type { Backend } from '../storage/backend.ts'
import { segmentMaxBytes } from '../streams/map-segment.ts'
import type { SharedBuffer } from './aligned-buffers.ts'
import { type CodecThreads, codecThreads } from './codec-threads.ts'
import { type DecodedChunk, DecodedChunks, type KeptAs } from './decoded-chunks.ts'
import { type ChunkPlace, KnownChunks } from './known-chunks.ts'
import { PackWindows } from './pack-windows.ts'

/** Chunks that can not be read and may stand elsewhere cause so many searches of all indexes between two refreshes. */
const searchesMax = 16

export class ChunkStore {
  readonly #backend: Backend
  readonly seal: Seal
  readonly maxPlainBytes: number
  readonly known: KnownChunks
  readonly threads: CodecThreads
  readonly #windows: PackWindows
  readonly #decoded: DecodedChunks
  readonly #decoders: Slots
  #searchesLeft = searchesMax

  constructor(backend: Backend, seal: Seal, chunkSizeBytes: number) {
    this.#backend = backend
    this.seal = seal
    this.maxPlainBytes = Math.max(chunkSizeBytes, segmentMaxBytes)
    this.known = new KnownChunks(backend, seal, this.maxPlainBytes)
    this.threads = codecThreads(this.known.table.maxReadBytes, seal.recordKeys)
    this.#windows = new PackWindows(backend)
    this.#decoders = openSlots(this.threads.jobsAtOnce)
    this.#decoded = new DecodedChunks(
      this.known.table.maxReadBytes,
      (id) => this.#readStored(id),
      (buffer) => this.threads.giveBuffer(buffer),
    )
  }

  /** See KnownChunks.refresh. Called by whoever is about to rely upon what is stored, after its draft's marker was put. */
  refresh(): Promise<void> {
    this.#searchesLeft = searchesMax
    this.readAnew()
    return this.known.refresh()
  }

  /** What was read ahead until now counts no longer. */
  readAnew(): void {
    this.#windows.forget()
  }

  /** Makes known what `packs`, published as index object `indexKey`, hold. */
  addPublished(indexKey: string, packs: readonly PackListing[]): void {
    this.known.addPublished(indexKey, packs)
  }

  /** True when an index names the chunk; it can be read if its copies are sound. */
  has(id: Uint8Array): boolean {
    return this.known.has(id)
  }

  /** True when a new point may rely upon the chunk as it is stored; see KnownChunks. */
  usable(id: Uint8Array): boolean {
    return this.known.usable(id)
  }

  /** Calls `use` with the plain bytes of chunk `id`, which are valid until it has resolved. FormatError says what is wrong. */
  async withChunk<T>(id: Buffer, use: (plain: Buffer) => T | Promise<T>, keptAs: KeptAs = 'whole'): Promise<T> {
    return this.#decoded.with(id, keptAs, use)
  }

  /** A copy of the chunk, for what is small and kept. */
  read(id: Buffer): Promise<Buffer> {
    return this.withChunk(id, (plain) => Buffer.from(plain))
  }

  async #readStored(id: Buffer): Promise<DecodedChunk> {
    if (!this.has(id)) await this.known.refresh()
    const place = this.known.place(id)
    check(place !== undefined, 'no index names this chunk')
    const isIt = (found: Buffer) => found.equals(id)
    try {
      return await inSlot(this.#decoders, () => this.#decode(place, isIt))
    } catch (error) {
      const other = await this.#otherPlace(id, place, error)
      return inSlot(this.#decoders, () => this.#decode(other, isIt))
    }
  }

  /** Where the chunk stands besides, or by now: collection may have moved it. Throws `error` when there is nothing else. */
  async #otherPlace(id: Buffer, tried: ChunkPlace, error: unknown): Promise<ChunkPlace> {
    const isDamage = error instanceof FormatError || (error instanceof Failure && error.code === 'REPOSITORY_IO')
    if (!isDamage) throw error
    const now = this.known.place(id)
    if (now !== undefined && isSamePlace(now, tried)) {
      if (this.#searchesLeft === 0) throw error
      this.#searchesLeft -= 1
      await this.known.search(id, tried.pack, error instanceof MissingPackError)
    }
    const other = this.known.place(id)
    if (other === undefined || isSamePlace(other, tried)) throw error
    return other
  }

  /**
   * Reads the copy of a chunk at `place`, whose record has an id `isIt` accepts, and proves it. FormatError says what is
   * wrong with it, MissingPackError that there is no such pack. REPOSITORY_IO.
   */
  async verify(place: ChunkPlace, isIt: (id: Buffer) => boolean): Promise<void> {
    const { buffer } = await inSlot(this.#decoders, () => this.#decode(place, isIt))
    this.threads.giveBuffer(buffer)
  }

  async #decode(place: ChunkPlace, isIt: (id: Buffer) => boolean): Promise<DecodedChunk> {
    const buffer = this.threads.takeBuffer()
    try {
      return (await this.#decodeLent(place, buffer, isIt)) ?? (await this.#decodeAlone(place, buffer, isIt))
    } catch (error) {
      this.threads.giveBuffer(buffer)
      throw error
    }
  }

  /** Undefined when there are no bytes to lend, or they are damaged: what was read ahead may have been mended since. */
  async #decodeLent(
    { pack, offset, readBytes }: ChunkPlace,
    buffer: SharedBuffer,
    isIt: (id: Buffer) => boolean,
  ): Promise<DecodedChunk | undefined> {
    using lent = await this.#windows.lend(pack, offset, buffer.subarray(0, readBytes))
    if (lent === undefined) return undefined
    try {
      return await this.#prove(lent.bytes, buffer, isIt)
    } catch (error) {
      if (!(error instanceof FormatError)) throw error
      this.readAnew()
      return undefined
    }
  }

  async #decodeAlone(
    { pack, offset, readBytes }: ChunkPlace,
    buffer: SharedBuffer,
    isIt: (id: Buffer) => boolean,
  ): Promise<DecodedChunk> {
    try {
      const target = buffer.subarray(0, readBytes)
      return await this.#prove(target.subarray(0, await this.#backend.read(pack, offset, target)), buffer, isIt)
    } catch (error) {
      if (!(error instanceof Failure) || error.code !== 'REPOSITORY_OBJECT_MISSING') throw error
      throw new MissingPackError(error.message, { cause: error })
    }
  }

  /** Makes the record in `bytes`, which may be the beginning of `buffer`, plain in there. FormatError. */
  async #prove(bytes: SharedBuffer, buffer: SharedBuffer, isIt: (id: Buffer) => boolean): Promise<DecodedChunk> {
    const header = readRecordHeader(bytes)
    check(isIt(header.id), 'another chunk is stored in its place')
    const storedAt = recordHeaderBytes
    const stored = bytes.subarray(storedAt, storedAt + header.storedBytes)
    check(stored.length === header.storedBytes, 'the record is cut off')
    // The header's id is a view of the bytes, which the threads need apart.
    await this.threads.decode(buffer, { ...header, id: Uint8Array.from(header.id), storedAt }, stored)
    return { buffer, plain: buffer.subarray(storedAt, storedAt + header.plainBytes) }
  }
}

const isSamePlace = (one: ChunkPlace, other: ChunkPlace) => one.pack === other.pack && one.offset === other.offset

/** No pack there, of which an index told. */
export class MissingPackError extends FormatError {}
