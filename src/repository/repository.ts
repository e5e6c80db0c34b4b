/**
 * The repository: recovery points of streams and documents, deduplicated, in a directory. It knows no VM.
 * docs/repository-format.md is the format. Any number of processes may work on one repository at once; nothing is locked,
 * because every object is written once under a name of its own and nothing committed is ever changed:
 *
 * |              | init            | backup          | list            | read/restore    | verify          | delete point
 * |--------------|-----------------|-----------------|-----------------|-----------------|-----------------|----------------
 * | init         | put-if-absent¹  | no config yet²  | no config yet²  | no config yet²  | no config yet²  | no config yet²
 * | backup       |                 | own names³      | manifest last⁴  | manifest last⁴  | manifest last⁴  | chunks stay⁵
 * | list         |                 |                 | only reads      | only reads      | only reads      | there or not⁶
 * | read/restore |                 |                 |                 | only reads      | only reads      | chunks stay⁵
 * | verify       |                 |                 |                 |                 | only reads      | there or not⁶
 * | delete point |                 |                 |                 |                 |                 | idempotent
 *
 * ¹ the configuration is put if absent: one wins, the other is told that the directory is not empty.
 * ² without its configuration a directory is no repository: the others refuse it.
 * ³ all objects of a draft carry the id of its point, which its marker in drafts/ reserves; the same chunk may be stored
 *   twice by two drafts that do not know each other yet, which costs space and nothing else. A draft deduplicates only
 *   against published indexes, and packs behind a published index are never removed by a draft.
 * ⁴ a point is seen when its manifest is, and then all it needs is on stable storage.
 * ⁵ deletion removes the manifest only; packs are shared and are left to collection.
 * ⁶ a manifest is read whole or found missing; a list is of a moment.
 */
import { randomUUID } from 'node:crypto'
import { mkdir, readdir, stat } from 'node:fs/promises'
import path from 'node:path'
import * as z from 'zod'
import { systemClock } from '../base/clock.ts'
import { describeError, Failure, invariant } from '../base/failure.ts'
import { failure } from '../errors.ts'
import type { Backend } from './backend.ts'
import { compressionLevels } from './chunk-codec.ts'
import { ChunkStore } from './chunk-store.ts'
import { isChunkSize } from './disk-index.ts'
import { type Announce, beginDraftMark, discardDraft, draftWriter, endDraftMark } from './draft-mark.ts'
import { chunkSizeLimits, FormatError, objectKeys, smallDocumentMaxBytes } from './format.ts'
import { asideFolder, errorCode, openLocalBackend } from './local-backend.ts'
import { OpenDraft, type PointDraft, partNotFound } from './point-draft.ts'
import {
  type DamagedPoint,
  decodeManifest,
  documentMaxBytes,
  isPointId,
  type Manifest,
  manifestMaxBytes,
  pointIdFits,
  type RecoveryPoint,
} from './recovery-point.ts'
import { plainSeal } from './seal.ts'
import { NewerFormatError, sealJson, unsealJson } from './sealed-json.ts'
import { chunkFailure, openStreamSource, readBlob } from './stream-source.ts'
import { type VerifyOptions, type VerifyReport, verifyPoints } from './verify.ts'

export type { PointDraft, StreamWriter } from './point-draft.ts'
export type { DamagedPoint, RecoveryPoint, StreamSummary } from './recovery-point.ts'
export type { Damage, VerifyOptions, VerifyReport } from './verify.ts'

export interface RepositoryOptions {
  /** A power of two, 64 KiB to 4 MiB; fixed for the life of the repository. */
  readonly chunkSizeBytes?: number
  /** Of zstd; see `compressionLevels`. */
  readonly compressionLevel?: number
}

/** Disposal closes the repository's files; dispose drafts and sources before. */
export interface Repository extends AsyncDisposable {
  readonly id: string
  readonly location: string
  readonly chunkSizeBytes: number
  /** Every recovery point that can be read, newest last. */
  listPoints(): Promise<RecoveryPoint[]>
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
  /** Removes the point `id` (whole). Its space comes back with collection. That there is none is no error. */
  deletePoint(id: string): Promise<void>
  /** Reads and verifies every byte of the points (all by default), each chunk once; damage is the report, not an error. */
  verify(options?: VerifyOptions): Promise<VerifyReport>
  /**
   * Removes what a killed draft left. Idempotent; nothing of a committed point is touched. REPOSITORY_DRAFT_IN_USE when
   * its writer lives, or can not be asked because it is another host's.
   */
  discardUnfinished(pointId: string): Promise<void>
}

const configShape = z.object({
  id: z.uuid(),
  chunkSizeBytes: z.int().refine(isChunkSize, 'no chunk size'),
  compressionLevel: z.int().min(compressionLevels.min).max(compressionLevels.max),
})
type Config = z.infer<typeof configShape>

const configKind = 'repository'

/** Makes a repository in `directory`, which is missing or empty, and opens it. REPOSITORY_NOT_EMPTY. */
export async function createRepository(directory: string, options: RepositoryOptions = {}): Promise<Repository> {
  const { chunkSizeBytes = chunkSizeLimits.defaultBytes, compressionLevel = compressionLevels.default } = options
  const config = { id: randomUUID(), chunkSizeBytes, compressionLevel }
  const parsed = configShape.safeParse(config)
  if (!parsed.success || compressionLevel === -1) {
    const reason = `chunks of ${chunkSizeBytes} bytes at zstd level ${compressionLevel} are not possible`
    throw failure('USAGE', { reason })
  }
  const location = path.resolve(directory)
  await ensureEmptyFolder(location)
  await using backend = openLocalBackend(location)
  const outcome = await backend.put(objectKeys.config, [sealJson(plainSeal, configKind, objectKeys.config, config)])
  if (outcome === 'exists') throw failure('REPOSITORY_NOT_EMPTY', { path: location, found: 'a repository' })
  return openRepository(location)
}

async function ensureEmptyFolder(folder: string): Promise<void> {
  try {
    await mkdir(folder, { recursive: true, mode: 0o750 })
    const names = (await readdir(folder)).filter((name) => name !== 'lost+found' && name !== asideFolder)
    if (names.includes(objectKeys.config)) {
      throw failure('REPOSITORY_NOT_EMPTY', { path: folder, found: 'a repository' })
    }
    if (names.length === 0) return
    const found = names.length > 3 ? `${names.slice(0, 3).join(', ')} and more` : names.join(', ')
    throw failure('REPOSITORY_NOT_EMPTY', { path: folder, found })
  } catch (error) {
    if (error instanceof Failure) throw error
    if (errorCode(error) === 'EEXIST' || errorCode(error) === 'ENOTDIR') {
      throw failure('REPOSITORY_NOT_ONE', { path: folder, reason: 'it is a file' }, error)
    }
    throw failure('REPOSITORY_IO', { path: folder, reason: describeError(error) }, error)
  }
}

/** Opens the repository in `directory`. REPOSITORY_NOT_FOUND, REPOSITORY_NOT_ONE, REPOSITORY_NEWER_FORMAT, REPOSITORY_DAMAGED. */
export async function openRepository(directory: string): Promise<Repository> {
  const location = path.resolve(directory)
  const found = await stat(location).catch((error: unknown) => {
    const missing = errorCode(error) === 'ENOENT' || errorCode(error) === 'ENOTDIR'
    if (missing) throw failure('REPOSITORY_NOT_FOUND', { path: location }, error)
    throw failure('REPOSITORY_IO', { path: location, reason: describeError(error) }, error)
  })
  if (!found.isDirectory()) throw failure('REPOSITORY_NOT_ONE', { path: location, reason: 'it is a file' })
  return openRepositoryOn(openLocalBackend(location))
}

/** Opens the repository kept in `backend`, which is disposed with it. */
export async function openRepositoryOn(backend: Backend): Promise<Repository> {
  try {
    return new OpenRepository(backend, await readConfig(backend))
  } catch (error) {
    await backend[Symbol.asyncDispose]()
    throw error
  }
}

async function readConfig(backend: Backend): Promise<Config> {
  const place = backend.location
  try {
    const bytes = await backend.get(objectKeys.config, smallDocumentMaxBytes)
    return unsealJson(plainSeal, configKind, objectKeys.config, bytes, configShape)
  } catch (error) {
    if (error instanceof Failure && error.code === 'REPOSITORY_OBJECT_MISSING') {
      throw failure('REPOSITORY_NOT_ONE', { path: place, reason: `it has no ${objectKeys.config}` }, error)
    }
    if (error instanceof NewerFormatError) {
      throw failure('REPOSITORY_NEWER_FORMAT', { path: place, reason: error.message }, error)
    }
    if (error instanceof FormatError) {
      throw failure('REPOSITORY_DAMAGED', { path: `${place}/${objectKeys.config}`, reason: error.message }, error)
    }
    throw error
  }
}

class OpenRepository implements Repository {
  readonly id: string
  readonly location: string
  readonly chunkSizeBytes: number
  readonly #backend: Backend
  readonly #compressionLevel: number
  readonly #store: ChunkStore
  readonly #now = () => new Date(systemClock.now())

  constructor(backend: Backend, config: Config) {
    this.#backend = backend
    this.id = config.id
    this.location = backend.location
    this.chunkSizeBytes = config.chunkSizeBytes
    this.#compressionLevel = config.compressionLevel
    this.#store = new ChunkStore(backend, plainSeal, config.chunkSizeBytes)
  }

  async listPoints(): Promise<RecoveryPoint[]> {
    const { manifests } = await this.#readManifests()
    return manifests.map((manifest) => this.#openPoint(manifest))
  }

  async listDamagedPoints(): Promise<DamagedPoint[]> {
    return (await this.#readManifests()).damaged
  }

  async #readManifests(): Promise<{ manifests: Manifest[]; damaged: DamagedPoint[] }> {
    const manifests: Manifest[] = []
    const damaged: DamagedPoint[] = []
    for (const id of await this.#pointIds()) {
      try {
        manifests.push(await this.#readManifest(id))
      } catch (error) {
        if (!(error instanceof Failure)) throw error
        if (error.code === 'REPOSITORY_OBJECT_MISSING') continue // deleted meanwhile
        if (error.code !== 'RECOVERY_POINT_DAMAGED' && error.code !== 'REPOSITORY_NEWER_FORMAT') throw error
        damaged.push({ id, reason: String(error.context.reason ?? error.message) })
      }
    }
    manifests.sort((one, other) => Date.parse(one.createdAt) - Date.parse(other.createdAt))
    return { manifests, damaged }
  }

  async #pointIds(): Promise<string[]> {
    const ids: string[] = []
    for await (const { key } of this.#backend.list('points/')) {
      const id = key.slice('points/'.length, -'.json'.length)
      if (isPointId(id) && key === objectKeys.point(id)) ids.push(id)
    }
    return ids.sort()
  }

  async #readManifest(id: string): Promise<Manifest> {
    const key = objectKeys.point(id)
    const bytes = await this.#backend.get(key, manifestMaxBytes)
    try {
      return decodeManifest(this.#store.seal, id, this.id, bytes)
    } catch (error) {
      if (error instanceof NewerFormatError) {
        throw failure('REPOSITORY_NEWER_FORMAT', { path: `${this.location}/${key}`, reason: error.message }, error)
      }
      if (!(error instanceof FormatError)) throw error
      throw failure('RECOVERY_POINT_DAMAGED', { point: id, reason: error.message }, error)
    }
  }

  async point(idOrPrefix: string): Promise<RecoveryPoint> {
    return this.#openPoint(await this.#findManifest(idOrPrefix))
  }

  async #findManifest(idOrPrefix: string): Promise<Manifest> {
    const [id, ...others] = (await this.#pointIds()).filter((known) => pointIdFits(known, idOrPrefix))
    if (id === undefined) throw failure('RECOVERY_POINT_NOT_FOUND', { point: idOrPrefix })
    if (others.length > 0) {
      throw failure('RECOVERY_POINT_AMBIGUOUS', { point: idOrPrefix, points: [id, ...others].slice(0, 5) })
    }
    return this.#readManifest(id)
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
        const stream = streams.find((part) => part.name === name)
        if (stream === undefined)
          throw partNotFound(
            id,
            'stream',
            name,
            streams.map((part) => part.name),
          )
        return openStreamSource(store, id, stream)
      },
      async readDocument(name) {
        const document = documents.find((part) => part.name === name)
        if (document === undefined)
          throw partNotFound(
            id,
            'document',
            name,
            documents.map((part) => part.name),
          )
        return readBlob(store, document.blob, documentMaxBytes).catch((error: unknown) => {
          throw chunkFailure(error, name, id, 0)
        })
      },
    }
  }

  async beginPoint(announce?: Announce): Promise<PointDraft> {
    await this.#backend.sweep()
    await this.#store.refresh()
    const id = await beginDraftMark(this.#backend, this.#now, announce)
    return new OpenDraft(id, {
      backend: this.#backend,
      store: this.#store,
      repositoryId: this.id,
      chunkSizeBytes: this.chunkSizeBytes,
      compressionLevel: this.#compressionLevel,
      now: this.#now,
      openPoint: (manifest) => this.#openPoint(manifest),
      discard: (draftId) => discardDraft(this.#backend, draftId),
      committed: (draftId) => endDraftMark(this.#backend, draftId),
    })
  }

  async deletePoint(id: string): Promise<void> {
    invariant(isPointId(id), `no recovery point id: ${id}`)
    await this.#backend.delete(objectKeys.point(id))
  }

  async verify(options: VerifyOptions = {}): Promise<VerifyReport> {
    await this.#store.refresh()
    if (options.points !== undefined) {
      const manifests: Manifest[] = []
      for (const id of new Set(options.points)) manifests.push(await this.#findManifest(id))
      return verifyPoints(this.#store, manifests, [], options)
    }
    const { manifests, damaged } = await this.#readManifests()
    return verifyPoints(this.#store, manifests, damaged, options)
  }

  async discardUnfinished(pointId: string): Promise<void> {
    invariant(isPointId(pointId), `no recovery point id: ${pointId}`)
    const writer = await draftWriter(this.#backend, pointId)
    if (writer !== undefined) throw failure('REPOSITORY_DRAFT_IN_USE', { point: pointId, writer })
    await this.#backend.sweep()
    if ((await this.#pointIds()).includes(pointId)) await endDraftMark(this.#backend, pointId)
    else await discardDraft(this.#backend, pointId)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#backend[Symbol.asyncDispose]()
  }
}
