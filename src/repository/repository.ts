/**
 * The repository: recovery points of streams and documents, deduplicated, in a directory. It knows no VM.
 * docs/repository-format.md is the format. Any number of processes may work on one repository at once; nothing is locked,
 * because every object is written once under a name of its own and nothing committed is ever changed:
 *
 * |               | backup          | list, read¹     | verify          | delete, retention | pin             | key change      | mark            | sweep           | repair-index
 * |---------------|-----------------|-----------------|-----------------|-------------------|-----------------|-----------------|-----------------|-----------------|----------------
 * | init²         | put-if-absent   | no config yet   | no config yet   | no config yet     | no config yet   | no config yet   | no config yet   | no config yet   | no config yet
 * | backup        | own names³      | manifest last⁴  | manifest last⁴  | chunks stay⁵      | other objects   | same master key⁶| sees or is seen⁷| is waited for⁸  | not published⁹
 * | list, read    |                 | only reads      | only reads      | there or not¹⁰    | only reads      | same master key⁶| only adds       | looks again¹¹   | looks again¹¹
 * | verify        |                 |                 | own names³      | there or not¹⁰    | other objects   | same master key⁶| only adds       | looks again¹¹   | looks again¹¹
 * | delete, ret.  |                 |                 |                 | idempotent        | of a moment¹²   | other objects   | needs less      | needs less      | other objects
 * | pin           |                 |                 |                 |                   | put-if-absent   | other objects   | other objects   | other objects   | other objects
 * | key change    |                 |                 |                 |                   |                 | see key-ring.ts | same master key⁶| same master key⁶| same master key⁶
 * | mark, sweep   |                 |                 |                 |                   |                 |                 | one at a time¹³ | one at a time¹³ | one at a time¹³
 * | repair-index  |                 |                 |                 |                   |                 |                 |                 |                 | one at a time¹³
 *
 * ¹ list, show, restore, recover: whatever only reads. Sweep here includes repacking and the merging of indexes.
 * ² the configuration is put if absent: one wins, the other is told that the place is not empty. Without it a place is no
 *   repository: the others refuse it.
 * ³ all objects of a draft carry the id of its point, which its marker in drafts/ reserves; the same chunk may be stored
 *   twice by two drafts that do not know each other yet, which costs space and nothing else. A draft deduplicates only
 *   against published indexes, and packs behind a published index are never removed by a draft. Verify's reports have ids
 *   of their own.
 * ⁴ a point is seen when its manifest is, and then all it needs is on stable storage.
 * ⁵ deletion removes the manifest only; packs are shared and are left to collection.
 * ⁶ slots wrap the one master key; what was sealed with it stays as it is.
 * ⁷ a draft puts its marker and then reads condemned/; a mark puts its condemnation and then lists the markers. So a draft
 *   does not use what is condemned, or the condemnation names it.
 * ⁸ a sweep waits until the drafts its condemnation names are over, then reads all manifests again; what is needed is
 *   pardoned. A draft without its marker (given up) does not commit.
 * ⁹ packs of an open draft that has published nothing are left out; indexes of open drafts are not replaced.
 * ¹⁰ a manifest is read whole or found missing; a list is of a moment. What a deleted point needed may go a day later.
 * ¹¹ new indexes stand before old ones go, and copies before what was copied. Who finds a pack gone reads the indexes anew;
 *   what nobody has any more is a coded failure.
 * ¹² who deletes looks for a pin before; who pins looks for the manifest after, and takes the pin back. Checks (checks.ts) are
 *   put in the same way, and removed after the manifest.
 * ¹³ each puts a marker of the purpose 'collection' and gives way when there is another.
 */
import { systemClock } from '../base/clock.ts'
import { invariant } from '../base/failure.ts'
import { failure } from '../errors.ts'
import { addCheck, type Check, checkScreen, checks, type NewCheck, removeChecks } from './checks.ts'
import { ChunkStore } from './chunks/chunk-store.ts'
import type { DamagedIndex } from './chunks/index-reader.ts'
import { type CollectOptions, collectRepository } from './collection/collect.ts'
import type { CollectReport } from './collection/collect-report.ts'
import { type Announce, beginDraftMark, discardDraft, discardUnfinishedDraft, endDraftMark } from './draft-mark.ts'
import { blockSizeBytes, objectKeys } from './format.ts'
import { type KeyRing, type ListedSlots, readKeySlots } from './keys/key-ring.ts'
import { type Encryption, initRepository, type SealedBy, type Unlock, unlockRepository } from './keys/unlock.ts'
import { Manifests } from './manifests.ts'
import { OpenDraft, type PointDraft } from './point-draft.ts'
import { readBlob } from './read-blob.ts'
import {
  type DamagedPoint,
  documentMaxBytes,
  findPart,
  isPointId,
  type Manifest,
  type RecoveryPoint,
} from './recovery-point.ts'
import { newConfig, type RepositoryConfig, readConfig } from './repository-config.ts'
import { type Pin, type PinPlace, pin, pins, refusePinned, unpin } from './retention/pins.ts'
import type { Backend } from './storage/backend.ts'
import { type BackendLimits, limitedBackend } from './storage/limited-backend.ts'
import { createPlace, openBackend, withLocalCopies } from './storage/open-backend.ts'
import type { RepositoryFiles } from './storage/repository-files.ts'
import { chunkFailure, openStreamSource } from './streams/stream-source.ts'
import { type RepairIndexOptions, type RepairIndexReport, repairIndexes } from './verification/repair-index.ts'
import { type VerifyOptions, type VerifyReport, verifyPoints } from './verification/verify.ts'

export type { Check, NewCheck } from './checks.ts'
export type { DamagedIndex } from './chunks/index-reader.ts'
export type { CollectOptions } from './collection/collect.ts'
export type { CollectReport } from './collection/collect-report.ts'
export type { KeyRing, ListedSlots } from './keys/key-ring.ts'
export type { KeyChoice } from './keys/key-secret.ts'
export type { KeySlot } from './keys/key-slots.ts'
export type { Encryption, Unlock } from './keys/unlock.ts'
export type { PointDraft } from './point-draft.ts'
export type { DamagedPoint, RecoveryPoint, StreamSummary } from './recovery-point.ts'
export type { Pin } from './retention/pins.ts'
export type { StreamBase, StreamWriter } from './streams/stream-writer.ts'
export type { RepairIndexOptions, RepairIndexReport } from './verification/repair-index.ts'
export type { Damage, VerifyOptions, VerifyReport } from './verification/verify.ts'

export interface RepositoryOptions extends BackendLimits {
  /** A power of two, 64 KiB to 4 MiB; fixed for the life of the repository. */
  readonly chunkSizeBytes?: number
  /** Of zstd; see `compressionLevels`. */
  readonly compressionLevel?: number
  /** Where the directory is; the host's own files unless told. */
  readonly files?: RepositoryFiles
  /** Chosen by name, and for the life of the repository: what is stored in clear is not encrypted later. */
  readonly encryption: Encryption
}

export interface OpenOptions extends BackendLimits {
  /** The key, for a repository that is encrypted. */
  readonly unlock?: Unlock
}

/** Disposal closes the repository's files; dispose drafts and sources before. */
export interface Repository extends AsyncDisposable {
  readonly id: string
  readonly location: string
  readonly chunkSizeBytes: number
  /** What an incremental backup stores apart. */
  readonly blockSizeBytes: number
  /** The keys that open it; undefined without encryption. */
  readonly keys: KeyRing | undefined
  /** Every recovery point that can be read, newest last. */
  listPoints(): Promise<RecoveryPoint[]>
  /** The same one by one, by their ids from the newest on, for those who do not need all. */
  pointsNewestFirst(): AsyncIterable<RecoveryPoint>
  /** The others: damaged, or written by a newer program. Show them beside the list. */
  listDamagedPoints(): Promise<DamagedPoint[]>
  /**
   * The point whose id begins with, or after its time is, what was typed. RECOVERY_POINT_NOT_FOUND,
   * RECOVERY_POINT_AMBIGUOUS, RECOVERY_POINT_DAMAGED.
   */
  point(idOrPrefix: string): Promise<RecoveryPoint>
  /**
   * A new recovery point; dispose the draft, which discards it unless it was committed. `announce` gets its id before
   * anything is written under it, so that a crash can be undone; told again, the id before is none of ours.
   */
  beginPoint(announce?: Announce): Promise<PointDraft>
  /** Removes the point `id` (whole). Its space comes back with collection. That there is none is no error. RECOVERY_POINT_PINNED. */
  deletePoint(id: string): Promise<void>
  /** Pins by the id of their point; see pins.ts. */
  pins(): Promise<Map<string, Pin>>
  /** Forbids to remove the point `id`. 'exists' when it was pinned before: that pin stays. RECOVERY_POINT_NOT_FOUND. */
  pin(id: string, note: string): Promise<'pinned' | 'exists'>
  /** That it was not pinned is no error. */
  unpin(id: string): Promise<void>
  /** Verdicts on the VMs of a point, or of all points by their ids, oldest first; see checks.ts. */
  checks(pointId?: string): Promise<Map<string, Check[]>>
  /** Keeps a verdict on a VM of the point `id`; answers with the check's id. RECOVERY_POINT_NOT_FOUND. */
  addCheck(id: string, check: NewCheck): Promise<string>
  /** The PNG of a check; undefined when it has none. */
  checkScreen(pointId: string, checkId: string): Promise<Buffer | undefined>
  /** Reads and verifies every byte of the points (all by default), each chunk once; damage is the report, not an error. */
  verify(options?: VerifyOptions): Promise<VerifyReport>
  /**
   * Gives back the space that no point needs, in two phases at least a day apart; see collect.ts. COLLECT_IN_PROGRESS,
   * COLLECT_UNSURE.
   */
  collect(options?: CollectOptions): Promise<CollectReport>
  /** Index objects that can not be read: what they alone name is unknown until `repairIndex`. */
  listDamagedIndexes(): Promise<readonly DamagedIndex[]>
  /** Makes all indexes again from the packs; see repair-index.ts. COLLECT_IN_PROGRESS. */
  repairIndex(options?: RepairIndexOptions): Promise<RepairIndexReport>
  /**
   * Removes what a killed draft left. Idempotent; nothing of a committed point is touched. REPOSITORY_DRAFT_IN_USE when
   * its writer lives, or can not be asked because it is another host's.
   */
  discardUnfinished(pointId: string): Promise<void>
}

/**
 * Makes a repository in `location`, which is missing or empty, and opens it. REPOSITORY_NOT_EMPTY, KEY_INVALID, and what
 * open-backend.ts says.
 */
export async function createRepository(location: string, options: RepositoryOptions): Promise<Repository> {
  const config = newConfig(options.chunkSizeBytes, options.compressionLevel)
  const backend = limitedBackend(await createPlace(location, options.files), options)
  return keptOpen(backend, async () => {
    const sealedBy = await initRepository(backend, config, options.encryption, now)
    return new OpenRepository(withLocalCopies(backend, config.id), config, sealedBy)
  })
}

/**
 * Opens the repository at `location`. REPOSITORY_NOT_FOUND, REPOSITORY_NOT_ONE, REPOSITORY_NEWER_FORMAT,
 * REPOSITORY_DAMAGED; REPOSITORY_LOCKED, REPOSITORY_WRONG_KEY, REPOSITORY_NOT_ENCRYPTED.
 */
export async function openRepository(location: string, options: OpenOptions = {}): Promise<Repository> {
  return openRepositoryOn(limitedBackend(await openBackend(location), options), options)
}

/** Opens the repository kept in `backend`, which is disposed with it. */
export async function openRepositoryOn(
  backend: Backend,
  { unlock = {} }: Pick<OpenOptions, 'unlock'> = {},
): Promise<Repository> {
  return keptOpen(backend, async () => {
    const config = await readConfig(backend)
    const sealedBy = await unlockRepository(backend, config, unlock, now)
    return new OpenRepository(withLocalCopies(backend, config.id), config, sealedBy)
  })
}

/** What `open` makes of the backend, which is disposed when that fails. */
async function keptOpen(backend: Backend, open: () => Promise<Repository>): Promise<Repository> {
  try {
    return await open()
  } catch (error) {
    await backend[Symbol.asyncDispose]()
    throw error
  }
}

/** `Repository.discardUnfinished` for who has no key: recovery after a crash waits for nobody's passphrase. */
export async function discardUnfinished(location: string, pointId: string): Promise<void> {
  await using backend = await openBackend(location)
  await readConfig(backend)
  await discardUnfinishedDraft(backend, pointId)
}

/** The key slots of the repository, without any key. REPOSITORY_NOT_ENCRYPTED. */
export async function listKeySlots(location: string): Promise<ListedSlots> {
  await using backend = await openBackend(location)
  const { id, encryption } = await readConfig(backend)
  if (encryption === undefined) throw failure('REPOSITORY_NOT_ENCRYPTED', { path: backend.location })
  return readKeySlots(backend, id)
}

const now = () => new Date(systemClock.now())

class OpenRepository implements Repository {
  readonly id: string
  readonly location: string
  readonly chunkSizeBytes: number
  readonly blockSizeBytes: number
  readonly #backend: Backend
  readonly #compressionLevel: number
  readonly #store: ChunkStore
  readonly #manifests: Manifests
  readonly keys: KeyRing | undefined
  readonly #now = now

  constructor(backend: Backend, config: RepositoryConfig, { seal, keys }: SealedBy) {
    this.#backend = backend
    this.id = config.id
    this.location = backend.location
    this.chunkSizeBytes = config.chunkSizeBytes
    this.blockSizeBytes = Math.min(blockSizeBytes, config.chunkSizeBytes)
    this.#compressionLevel = config.compressionLevel
    this.#store = new ChunkStore(backend, seal, config.chunkSizeBytes)
    this.keys = keys
    this.#manifests = new Manifests(backend, this.#store.seal, config.id)
  }

  async listPoints(): Promise<RecoveryPoint[]> {
    const { manifests } = await this.#manifests.readAll()
    return manifests.map((manifest) => this.#openPoint(manifest))
  }

  async *pointsNewestFirst(): AsyncIterable<RecoveryPoint> {
    for await (const manifest of this.#manifests.newestFirst()) yield this.#openPoint(manifest)
  }

  async listDamagedPoints(): Promise<DamagedPoint[]> {
    return (await this.#manifests.readAll()).damaged
  }

  async point(idOrPrefix: string): Promise<RecoveryPoint> {
    return this.#openPoint(await this.#manifests.find(idOrPrefix))
  }

  #openPoint(manifest: Manifest): RecoveryPoint {
    const store = this.#store
    const { id, streams, documents } = manifest
    return {
      id,
      createdAt: new Date(manifest.createdAt),
      content: manifest.content,
      streams: streams.map(({ map: _, ...summary }) => summary),
      documents: documents.map(({ name }) => name),
      async openStream(name) {
        return openStreamSource(store, id, findPart(id, 'stream', streams, name))
      },
      async readDocument(name) {
        const document = findPart(id, 'document', documents, name)
        return readBlob(store, document.blob, documentMaxBytes).catch((error: unknown) => {
          throw chunkFailure(error, name, id, 0)
        })
      },
    }
  }

  async beginPoint(announce?: Announce): Promise<PointDraft> {
    await this.#backend.sweep()
    const id = await beginDraftMark(this.#backend, this.#now, announce)
    // After the marker: a collection that does not see it has condemned before, and is seen here. See draft-mark.ts.
    await this.#store.refresh().catch(async (error: unknown) => {
      await discardDraft(this.#backend, id)
      throw error
    })
    return new OpenDraft(id, {
      backend: this.#backend,
      store: this.#store,
      repositoryId: this.id,
      chunkSizeBytes: this.chunkSizeBytes,
      compressionLevel: this.#compressionLevel,
      now: this.#now,
      findStream: async ({ point, stream }) => {
        const { id: baseId, streams } = await this.#manifests.find(point.id)
        return findPart(baseId, 'stream', streams, stream)
      },
      openPoint: (manifest) => this.#openPoint(manifest),
      discard: (draftId) => discardDraft(this.#backend, draftId),
      committed: (draftId) => endDraftMark(this.#backend, draftId),
    })
  }

  async deletePoint(id: string): Promise<void> {
    invariant(isPointId(id), `no recovery point id: ${id}`)
    await refusePinned(this.#pinPlace, id)
    await this.#backend.delete(objectKeys.point(id))
    await removeChecks(this.#backend, id)
  }

  checks(pointId?: string): Promise<Map<string, Check[]>> {
    return checks(this.#pinPlace, pointId)
  }

  addCheck(id: string, check: NewCheck): Promise<string> {
    return addCheck(this.#pinPlace, id, check, this.#now())
  }

  checkScreen(pointId: string, checkId: string): Promise<Buffer | undefined> {
    return checkScreen(this.#pinPlace, pointId, checkId)
  }

  pins(): Promise<Map<string, Pin>> {
    return pins(this.#pinPlace)
  }

  pin(id: string, note: string): Promise<'pinned' | 'exists'> {
    return pin(this.#pinPlace, id, note, this.#now())
  }

  unpin(id: string): Promise<void> {
    return unpin(this.#pinPlace, id)
  }

  get #pinPlace(): PinPlace {
    return { backend: this.#backend, seal: this.#store.seal }
  }

  async verify(options: VerifyOptions = {}): Promise<VerifyReport> {
    const place = { backend: this.#backend, store: this.#store, now: this.#now }
    const found = options.points === undefined ? await this.#manifests.readAll() : { manifests: [], damaged: [] }
    const manifests = [...found.manifests]
    for (const id of new Set(options.points)) manifests.push(await this.#manifests.find(id))
    await this.#store.refresh() // after the manifests: what they need is in the indexes then
    return verifyPoints(place, manifests, found.damaged, options)
  }

  collect(options: CollectOptions = {}): Promise<CollectReport> {
    const { id: repositoryId, chunkSizeBytes } = this
    const place = { backend: this.#backend, seal: this.#store.seal, manifests: this.#manifests, repositoryId }
    return collectRepository({ ...place, chunkSizeBytes, now: this.#now }, options)
  }

  async listDamagedIndexes(): Promise<readonly DamagedIndex[]> {
    await this.#store.refresh()
    return this.#store.known.damagedIndexes
  }

  async repairIndex(options: RepairIndexOptions = {}): Promise<RepairIndexReport> {
    const { seal, threads, maxPlainBytes } = this.#store
    const place = { backend: this.#backend, seal, threads, maxPlainBytes, repositoryId: this.id }
    const report = await repairIndexes(place, this.#now, options)
    await this.#store.refresh()
    return report
  }

  async discardUnfinished(pointId: string): Promise<void> {
    await discardUnfinishedDraft(this.#backend, pointId)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#backend[Symbol.asyncDispose]()
  }
}
