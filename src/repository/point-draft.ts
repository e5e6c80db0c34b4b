/**
 * A recovery point that is being written. Chunks are hashed, looked up, compressed and packed here with a bounded number in
 * flight; commit makes packs, then indexes, then the manifest durable, in this order. Disposal discards what was not
 * committed. See docs/repository-format.md, "Crash safety".
 */
import type { JsonObject } from '../base/cleanup.ts'
import { invariant } from '../base/failure.ts'
import { openSlots, type Slots } from '../base/slots.ts'
import type { SharedBuffer } from './chunks/aligned-buffers.ts'
import { asBuffer } from './chunks/blake3.ts'
import { ChunkBuffer } from './chunks/chunk-buffer.ts'
import type { ChunkStore } from './chunks/chunk-store.ts'
import { ChunkTable } from './chunks/chunk-table.ts'
import { indexGroups } from './chunks/index-writer.ts'
import { PackWriter } from './chunks/pack-writer.ts'
import { refuseGivenUp } from './draft-mark.ts'
import {
  encodeIndex,
  objectKeys,
  type PackListing,
  type RecordKind,
  recordBytes,
  recordHeaderBytes,
  recordKinds,
} from './format.ts'
import {
  type Blob,
  documentMaxBytes,
  encodeManifest,
  type Manifest,
  type ManifestDocument,
  type ManifestStream,
  partsFeature,
  type RecoveryPoint,
} from './recovery-point.ts'
import type { Backend } from './storage/backend.ts'
import { chunkCountOf } from './streams/stream-map-root.ts'
import { openStreamWriter, type StreamBase, type StreamWriter } from './streams/stream-writer.ts'

/** Disposal discards the draft unless it was committed. */
export interface PointDraft extends AsyncDisposable {
  readonly id: string
  /**
   * Several streams may be open at once; dispose each. The name is new in this draft, 1 to 1024 characters. With a base, what
   * is not written is as there: RECOVERY_POINT_NOT_FOUND, RECOVERY_POINT_DAMAGED, RECOVERY_POINT_PART_NOT_FOUND.
   */
  openStream(name: string, sizeBytes: number, base?: StreamBase): Promise<StreamWriter>
  /** A small document, at most 64 MiB; the name is new in this draft. */
  putDocument(name: string, content: Uint8Array): Promise<void>
  /** Every stream must be finished or disposed; those disposed unfinished are not part of the point. */
  commit(content: JsonObject): Promise<RecoveryPoint>
}

export interface DraftContext {
  readonly backend: Backend
  readonly store: ChunkStore
  readonly repositoryId: string
  readonly chunkSizeBytes: number
  readonly compressionLevel: number
  readonly now: () => Date
  /** Finds the stream a base means, as it stands in the repository now. */
  readonly findStream: (base: StreamBase) => Promise<ManifestStream>
  /** Makes the point from what has become its manifest. */
  readonly openPoint: (manifest: Manifest) => RecoveryPoint
  /** Removes the objects of the draft `id`; called once, when it is over. */
  readonly discard: (id: string) => Promise<void>
  /** The draft is committed: nothing is left to discard. */
  readonly committed: (id: string) => Promise<void>
}

interface Stored {
  readonly id: Buffer
  readonly isNew: boolean
}

interface StoreOptions {
  /** `plain` stands at the beginning of this buffer and need not be copied. */
  readonly from?: ChunkBuffer | undefined
  /** Told the compressed size of a new chunk, later. */
  readonly onStored?: (storedBytes: number) => void
}

export class OpenDraft implements PointDraft {
  readonly id: string
  readonly context: DraftContext
  readonly #packs: PackWriter
  readonly #own: ChunkTable
  readonly #slots: Slots
  readonly #background = new Set<Promise<void>>()
  readonly #streams: ManifestStream[] = []
  readonly #documents: ManifestDocument[] = []
  readonly #names = new Set<string>()
  readonly #features = new Set<string>()
  #failed: { error: unknown } | undefined
  #committing: Promise<RecoveryPoint> | undefined
  #state: 'open' | 'committed' | 'over' = 'open'

  constructor(id: string, context: DraftContext) {
    this.id = id
    this.context = context
    const { backend, store, repositoryId, chunkSizeBytes } = context
    this.#packs = new PackWriter(backend, store.seal, id, { repositoryId, chunkSizeBytes })
    this.#own = new ChunkTable(recordBytes(context.store.maxPlainBytes))
    this.#slots = openSlots(context.store.threads.jobsAtOnce)
  }

  async openStream(name: string, sizeBytes: number, base?: StreamBase): Promise<StreamWriter> {
    invariant(Number.isSafeInteger(sizeBytes) && sizeBytes >= 0, `a stream of ${sizeBytes} bytes`)
    invariant(chunkCountOf(sizeBytes, this.context.chunkSizeBytes) < 2 ** 32, `a stream of ${sizeBytes} bytes`)
    const found = base === undefined ? undefined : await this.context.findStream(base)
    this.#claimName('stream', name)
    return openStreamWriter(this, { name, sizeBytes, base: found })
  }

  async putDocument(name: string, content: Uint8Array): Promise<void> {
    invariant(content.length <= documentMaxBytes, `a document of ${content.length} bytes`)
    this.#claimName('document', name)
    const blob = await this.storeBlob(asBuffer(content))
    this.#documents.push({ name, blob })
  }

  commit(content: JsonObject): Promise<RecoveryPoint> {
    const committing = this.#commit(content)
    this.#committing = committing
    return committing
  }

  async #commit(content: JsonObject): Promise<RecoveryPoint> {
    invariant(this.#state === 'open', 'the draft is over')
    await this.#drain()
    const packs = await this.#packs.finish()
    await this.#refuseGivenUp()
    await this.#publish(packs)
    const manifest: Manifest = {
      id: this.id,
      repositoryId: this.context.repositoryId,
      createdAt: this.context.now().toISOString(),
      content,
      streams: this.#streams,
      documents: this.#documents,
    }
    await this.#refuseGivenUp()
    const outcome = await this.context.backend.put(objectKeys.point(this.id), [
      encodeManifest(this.context.store.seal, manifest, [...this.#features]),
    ])
    invariant(outcome === 'stored', 'two drafts with one id')
    await this.#refuseGivenUp().catch(async (error: unknown) => {
      await this.context.backend.delete(objectKeys.point(this.id)) // what it needs may be gone
      throw error
    })
    this.#state = 'committed'
    // The point exists (law 6). A marker that can not be removed is none of its business: it names no living writer.
    await this.context.committed(this.id).catch(() => undefined)
    return this.context.openPoint(manifest)
  }

  /** Nobody protects what a draft without a marker builds upon. */
  #refuseGivenUp(): Promise<void> {
    return refuseGivenUp(this.context.backend, this.id)
  }

  async #publish(packs: readonly PackListing[]): Promise<void> {
    for (const some of indexGroups(packs)) {
      const { parts, digest } = encodeIndex(this.context.store.seal, some)
      const key = objectKeys.index(this.id, digest)
      await this.context.backend.put(key, parts)
      this.context.store.addPublished(key, some)
    }
  }

  /** Adds a finished stream to the point. */
  addStream(stream: ManifestStream, hasParts: boolean): void {
    this.#streams.push(stream)
    if (hasParts) this.#features.add(partsFeature)
  }

  /** Room for a chunk: what is stored from there is not copied. The caller disposes it. */
  lendBuffer(): ChunkBuffer {
    return new ChunkBuffer(this.context.store.threads)
  }

  /** Stores `plain` unless it is there. Resolves when it is accepted: its memory may be used again. */
  async store(kind: RecordKind, plain: Buffer, { from, onStored }: StoreOptions = {}): Promise<Stored> {
    this.#throwIfOver()
    const id = this.context.store.seal.idOf(plain)
    if (this.context.store.usable(id) || this.#own.find(id) !== -1) return { id, isNew: false }
    this.#own.insert(id) // before waiting, so that the same chunk coming at the same time is stored once
    await this.#slots.take()
    const buffer = from === undefined ? this.#copyOf(plain) : from.keep(plain)
    const work = this.#encode(id, kind, buffer, plain.length, onStored)
      .catch((error: unknown) => {
        this.#failed ??= { error }
      })
      .finally(() => {
        this.context.store.threads.giveBuffer(buffer)
        this.#background.delete(work)
        this.#slots.give()
      })
    this.#background.add(work)
    return { id, isNew: true }
  }

  #copyOf(plain: Buffer): SharedBuffer {
    const buffer = this.context.store.threads.takeBuffer()
    plain.copy(buffer)
    return buffer
  }

  async #encode(
    id: Buffer,
    kind: RecordKind,
    buffer: SharedBuffer,
    plainBytes: number,
    onStored?: (storedBytes: number) => void,
  ): Promise<void> {
    if (this.#failed !== undefined || this.#state !== 'open') return
    const { store, compressionLevel } = this.context
    const record = { id: Uint8Array.from(id), kind, plainBytes, level: compressionLevel }
    const { storedAt, ...form } = await store.threads.encode(buffer, record)
    const payload = buffer.subarray(storedAt, storedAt + form.storedBytes)
    await this.#packs.append({ id, kind, plainBytes, ...form }, payload)
    onStored?.(recordHeaderBytes + form.storedBytes)
  }

  async storeBlob(bytes: Buffer): Promise<Blob> {
    const chunks: string[] = []
    for (let at = 0; at < bytes.length; at += this.context.chunkSizeBytes) {
      const { id } = await this.store(recordKinds.blob, bytes.subarray(at, at + this.context.chunkSizeBytes))
      chunks.push(id.toString('hex'))
    }
    return { sizeBytes: bytes.length, chunks }
  }

  /** Waits until every accepted chunk is in a pack; throws what went wrong with one. */
  async #drain(): Promise<void> {
    await Promise.all(this.#background)
    this.#throwIfOver()
  }

  /** As `#drain`, for a stream that wants to know its figures. */
  settled(): Promise<void> {
    return this.#drain()
  }

  #throwIfOver(): void {
    invariant(this.#state === 'open', 'the draft is over')
    if (this.#failed !== undefined) throw this.#failed.error
  }

  #claimName(kind: 'stream' | 'document', name: string): void {
    this.#throwIfOver()
    invariant(name.length >= 1 && name.length <= 1024, `no name for a ${kind}: ${name}`)
    invariant(!this.#names.has(`${kind} ${name}`), `the ${kind} ${name} is written twice`)
    this.#names.add(`${kind} ${name}`)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#committing?.catch(() => undefined) // whoever called commit is told, and may not have waited for it
    if (this.#state !== 'open') return
    this.#state = 'over'
    await Promise.all(this.#background)
    await this.#packs.settle().catch(() => undefined) // what failed was thrown before, or does not matter any more
    await this.context.discard(this.id)
  }
}
