/**
 * Manifests: the recovery points as they stand in the repository. What is read is of a moment: a point may be deleted while
 * the others are read.
 */
import { Failure } from '../base/failure.ts'
import { failure } from '../errors.ts'
import { FormatError, objectKeys } from './format.ts'
import type { Seal } from './keys/seal.ts'
import { NewerFormatError } from './keys/sealed-json.ts'
import {
  type DamagedPoint,
  decodeManifest,
  isPointId,
  type Manifest,
  manifestMaxBytes,
  pointIdFits,
} from './recovery-point.ts'
import type { Backend } from './storage/backend.ts'
import { getDecoded } from './storage/index-cache.ts'

export class Manifests {
  readonly #backend: Backend
  readonly #seal: Seal
  readonly #repositoryId: string

  constructor(backend: Backend, seal: Seal, repositoryId: string) {
    this.#backend = backend
    this.#seal = seal
    this.#repositoryId = repositoryId
  }

  /** The ids of all points, readable or not, in the order of their time. */
  async ids(): Promise<string[]> {
    const ids: string[] = []
    for await (const { key } of this.#backend.list('points/')) {
      const id = key.slice('points/'.length, -'.json'.length)
      if (isPointId(id) && key === objectKeys.point(id)) ids.push(id)
    }
    return ids.sort()
  }

  /** All that can be read, oldest first, and the others. */
  async readAll(): Promise<{ manifests: Manifest[]; damaged: DamagedPoint[] }> {
    const manifests: Manifest[] = []
    const damaged: DamagedPoint[] = []
    for (const id of await this.ids()) {
      const outcome = await this.tryRead(id)
      if (outcome === undefined) continue
      if ('reason' in outcome) damaged.push(outcome)
      else manifests.push(outcome)
    }
    manifests.sort((one, other) => Date.parse(one.createdAt) - Date.parse(other.createdAt))
    return { manifests, damaged }
  }

  /** Those that can be read, one by one, by their ids from the newest on. */
  async *newestFirst(): AsyncGenerator<Manifest> {
    for (const id of (await this.ids()).reverse()) {
      const outcome = await this.tryRead(id)
      if (outcome !== undefined && !('reason' in outcome)) yield outcome
    }
  }

  /** Undefined when the point has been deleted meanwhile. */
  async tryRead(id: string): Promise<Manifest | DamagedPoint | undefined> {
    try {
      return await this.read(id)
    } catch (error) {
      if (!(error instanceof Failure)) throw error
      if (error.code === 'REPOSITORY_OBJECT_MISSING') return undefined
      if (error.code !== 'RECOVERY_POINT_DAMAGED' && error.code !== 'REPOSITORY_NEWER_FORMAT') throw error
      return { id, reason: String(error.context.reason ?? error.message) }
    }
  }

  async read(id: string): Promise<Manifest> {
    const key = objectKeys.point(id)
    try {
      return await getDecoded(this.#backend, key, manifestMaxBytes, (bytes) =>
        decodeManifest(this.#seal, id, this.#repositoryId, bytes),
      )
    } catch (error) {
      if (error instanceof NewerFormatError) {
        const path = `${this.#backend.location}/${key}`
        throw failure('REPOSITORY_NEWER_FORMAT', { path, reason: error.message }, error)
      }
      if (!(error instanceof FormatError)) throw error
      throw failure('RECOVERY_POINT_DAMAGED', { point: id, reason: error.message }, error)
    }
  }

  /** RECOVERY_POINT_NOT_FOUND, RECOVERY_POINT_AMBIGUOUS, RECOVERY_POINT_DAMAGED. */
  async find(idOrPrefix: string): Promise<Manifest> {
    const [id, ...others] = (await this.ids()).filter((known) => pointIdFits(known, idOrPrefix))
    if (id === undefined) throw failure('RECOVERY_POINT_NOT_FOUND', { point: idOrPrefix })
    if (others.length > 0) {
      throw failure('RECOVERY_POINT_AMBIGUOUS', { point: idOrPrefix, points: [id, ...others].slice(0, 5) })
    }
    return this.read(id)
  }
}
