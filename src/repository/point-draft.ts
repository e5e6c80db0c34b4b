/**
 * A recovery point that is being written. Chunks are hashed, looked up, compressed and packed here with a bounded number in
 * flight; commit makes packs, then indexes, then the manifest durable, in this order. Disposal discards what was not
 * committed. See docs/repository-format.md, "Crash safety".
 */
import type { JsonObject } from '../base/cleanup.ts'
import { invariant } from '../base/failure.ts'
import { openSlots, type Slots } from '../base/slots.ts'
import { failure } from '../errors.ts'
import type { Backend } from './backend.ts'
import { asBuffer } from './blake3.ts'
import type { ChunkStore } from './chunk-store.ts'
import { ChunkTable } from './chunk-table.ts'
import type { SharedBuffer } from './codec-threads.ts'
import { chunkCountOf, StreamMapBuilder } from './disk-index.ts'
import {
  encodeIndex,
  objectKeys,
  type PackListing,
  packsPerIndex,
  type RecordKind,
  recordBytes,
  recordHeaderBytes,
  recordKinds,
} from './format.ts'
import { PackWriter } from './pack-writer.ts'
import {
  type Blob,
  documentMaxBytes,
  encodeManifest,
  type Manifest,
  type ManifestDocument,
  type ManifestStream,
  type RecoveryPoint,
  type StreamSummary,
} from './recovery-point.ts'

/** Disposal discards the draft unless it was committed. */
export interface PointDraft extends AsyncDisposable {
  readonly id: string
  /** Several streams may be open at once; dispose each. The name is new in this draft, 1 to 1024 characters. */
  openStream(name: string, sizeBytes: number): Promise<StreamWriter>
  /** A small document, at most 64 MiB; the name is new in this draft. */
  putDocument(name: string, content: Uint8Array): Promise<void>
  /** Every stream must be finished or disposed; those disposed unfinished are not part of the point. */
  commit(content: JsonObject): Promise<RecoveryPoint>
}

/** Disposal before `finish` leaves the stream out of the point. */
export interface StreamWriter extends AsyncDisposable {
  /**
   * One whole chunk (shorter only at the end of the stream), in any order, several calls at once. The buffer belongs to
   * the writer until the promise resolves (accepted; slow when the repository is: that is the backpressure).
   * Chunks never written are zeros. An error of any chunk before is thrown by the next call.
   */
  writeChunk(chunkNumber: number, data: Uint8Array): Promise<void>
  /** No call of writeChunk may be under way. */
  finish(): Promise<StreamSummary>
}

export interface DraftContext {
  readonly backend: Backend
  readonly store: ChunkStore
  readonly repositoryId: string
  readonly chunkSizeBytes: number
  readonly compressionLevel: number
  readonly now: () => Date
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

  async openStream(name: string, sizeBytes: number): Promise<StreamWriter> {
    invariant(Number.isSafeInteger(sizeBytes) && sizeBytes >= 0, `a stream of ${sizeBytes} bytes`)
    invariant(chunkCountOf(sizeBytes, this.context.chunkSizeBytes) < 2 ** 32, `a stream of ${sizeBytes} bytes`)
    this.#claimName('stream', name)
    return new OpenStream(this, name, sizeBytes)
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
    await this.#publish(await this.#packs.finish())
    const manifest: Manifest = {
      id: this.id,
      repositoryId: this.context.repositoryId,
      createdAt: this.context.now().toISOString(),
      content,
      streams: this.#streams,
      documents: this.#documents,
    }
    const outcome = await this.context.backend.put(objectKeys.point(this.id), [
      encodeManifest(this.context.store.seal, manifest),
    ])
    invariant(outcome === 'stored', 'two drafts with one id')
    this.#state = 'committed'
    // The point exists (law 6). A marker that can not be removed is none of its business: it names no living writer.
    await this.context.committed(this.id).catch(() => undefined)
    return this.context.openPoint(manifest)
  }

  async #publish(packs: readonly PackListing[]): Promise<void> {
    for (let first = 0; first < packs.length; first += packsPerIndex) {
      const some = packs.slice(first, first + packsPerIndex)
      const { parts, digest } = encodeIndex(this.context.store.seal, some)
      const key = objectKeys.index(this.id, digest)
      await this.context.backend.put(key, parts)
      this.context.store.addPublished(key, some)
    }
  }

  /** Adds a finished stream to the point. */
  addStream(stream: ManifestStream): void {
    this.#streams.push(stream)
  }

  /**
   * Stores `plain` unless it is there. Resolves when it is accepted: the buffer may be used again. `onStored` is told the
   * compressed size of a new chunk, later.
   */
  async store(kind: RecordKind, plain: Buffer, onStored?: (storedBytes: number) => void): Promise<Stored> {
    this.#throwIfOver()
    const id = this.context.store.seal.idOf(plain)
    if (this.context.store.has(id) || this.#own.find(id) !== -1) return { id, isNew: false }
    this.#own.insert(id) // before waiting, so that the same chunk coming at the same time is stored once
    await this.#slots.take()
    const { threads } = this.context.store
    const buffer = threads.takeBuffer()
    buffer.set(plain)
    const work = this.#encode(id, kind, buffer, plain.length, onStored)
      .catch((error: unknown) => {
        this.#failed ??= { error }
      })
      .finally(() => {
        threads.giveBuffer(buffer)
        this.#background.delete(work)
        this.#slots.give()
      })
    this.#background.add(work)
    return { id, isNew: true }
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
    const { encoding, storedBytes } = await store.threads.encode(buffer, plainBytes, compressionLevel)
    const payload = buffer.subarray(0, storedBytes)
    await this.#packs.append({ id, kind, encoding, storedBytes, plainBytes }, payload)
    onStored?.(recordHeaderBytes + storedBytes)
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

class OpenStream implements StreamWriter {
  readonly #draft: OpenDraft
  readonly #name: string
  readonly #sizeBytes: number
  readonly #map: StreamMapBuilder
  readonly #zeros: Buffer
  #readBytes = 0
  #storedBytes = 0
  #newChunks = 0
  #open = true

  constructor(draft: OpenDraft, name: string, sizeBytes: number) {
    this.#draft = draft
    this.#name = name
    this.#sizeBytes = sizeBytes
    this.#map = new StreamMapBuilder(sizeBytes, draft.context.chunkSizeBytes)
    this.#zeros = Buffer.alloc(Math.min(draft.context.chunkSizeBytes, sizeBytes))
  }

  async writeChunk(chunkNumber: number, data: Uint8Array): Promise<void> {
    invariant(this.#open, `stream ${this.#name} is over`)
    const { chunkSizeBytes } = this.#draft.context
    const rest = this.#sizeBytes - chunkNumber * chunkSizeBytes
    invariant(
      Number.isInteger(chunkNumber) && chunkNumber >= 0 && rest > 0 && data.length === Math.min(chunkSizeBytes, rest),
      `${data.length} bytes are not chunk ${chunkNumber} of ${this.#sizeBytes} bytes`,
    )
    this.#readBytes += data.length
    const plain = asBuffer(data)
    if (plain.equals(this.#zeros.subarray(0, plain.length))) {
      this.#map.set(chunkNumber, undefined)
      return
    }
    const { id, isNew } = await this.#draft.store(recordKinds.chunk, plain, (storedBytes) => {
      this.#storedBytes += storedBytes
    })
    if (isNew) this.#newChunks += 1
    this.#map.set(chunkNumber, id)
  }

  async finish(): Promise<StreamSummary> {
    invariant(this.#open, `stream ${this.#name} is over`)
    this.#open = false
    const draft = this.#draft
    const { root, chunks } = await this.#map.finish(
      async (segment) => (await draft.store(recordKinds.segment, segment)).id,
    )
    const map = await draft.storeBlob(root)
    await draft.settled()
    const summary = {
      name: this.#name,
      sizeBytes: this.#sizeBytes,
      readBytes: this.#readBytes,
      storedBytes: this.#storedBytes,
      newChunks: this.#newChunks,
      knownChunks: Math.max(0, chunks - this.#newChunks),
      zeroChunks: chunkCountOf(this.#sizeBytes, draft.context.chunkSizeBytes) - chunks,
    }
    draft.addStream({ ...summary, map })
    return summary
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#open = false
  }
}

/** Told to an operator who asks for a part that is not there. */
export function partNotFound(point: string, kind: string, name: string, names: readonly string[]): unknown {
  return failure('RECOVERY_POINT_PART_NOT_FOUND', { point, kind, name, names: [...names] })
}
