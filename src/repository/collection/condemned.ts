/**
 * Condemned packs: what a collection has named for removal. Two write-once objects for each mark: condemned/<id>.json names
 * the packs, and condemned/<id>.drafts.json, put after it, the drafts that were open then. Nobody who reads the first uses
 * its packs; the drafts of the second may have begun before they could read it, so the sweep waits for them.
 * docs/repository-format.md, "Collection".
 */
import * as z from 'zod'
import { Failure } from '../../base/failure.ts'
import { failure } from '../../errors.ts'
import { check, FormatError, objectKeys } from '../format.ts'
import type { Seal } from '../keys/seal.ts'
import { NewerFormatError, sealJson, unsealJson } from '../keys/sealed-json.ts'
import { isPointId } from '../recovery-point.ts'
import type { Backend } from '../storage/backend.ts'

/** Packs in one object. */
export const packsPerCondemnation = 16_384
/** The longest object under condemned/. */
const condemnedMaxBytes = 4 * 1024 * 1024
const draftsMax = 16_384

/** Packs that nobody may begin to use. */
export interface Condemnation {
  readonly id: string
  /** By the clock of whoever marked; milliseconds since the epoch. */
  readonly createdAtMs: number
  /** Keys of packs. */
  readonly packs: readonly string[]
}

/** An object under condemned/ that is not what it should be; nothing is swept by it. */
export interface DamagedCondemnation {
  readonly key: string
  readonly reason: string
}

const packKey = /^packs\/\d{8}T\d{6}Z-[a-z0-9]{4}\/[0-9a-f]{64}$/

const packsKind = 'condemned packs'
const packsShape = z.object({
  createdAt: z.iso.datetime(),
  packs: z.array(z.string().regex(packKey)).min(1).max(packsPerCondemnation),
})

const draftsKind = 'drafts to wait for'
const draftsShape = z.object({ drafts: z.array(z.string().refine(isPointId, 'no draft')).max(draftsMax) })

/**
 * What is condemned now, without what is damaged. Read it before the indexes: condemnations go last, so whoever finds one
 * gone finds its packs gone from the indexes. REPOSITORY_NEWER_FORMAT, REPOSITORY_IO.
 */
export async function readCondemned(backend: Backend, seal: Seal): Promise<Condemnation[]> {
  return (await lookAtCondemned(backend, seal)).condemnations
}

/** As `readCondemned`, oldest first, and what is damaged beside it. */
export async function lookAtCondemned(
  backend: Backend,
  seal: Seal,
): Promise<{ condemnations: Condemnation[]; damaged: DamagedCondemnation[] }> {
  const ids: string[] = []
  for await (const { key } of backend.list('condemned/')) {
    const id = key.slice('condemned/'.length, -'.json'.length)
    if (isPointId(id) && key === objectKeys.condemned(id)) ids.push(id)
  }
  const condemnations: Condemnation[] = []
  const damaged: DamagedCondemnation[] = []
  for (const id of ids.sort()) {
    const key = objectKeys.condemned(id)
    try {
      const content = await read(backend, seal, key, packsKind, packsShape)
      if (content === undefined) continue // swept meanwhile
      condemnations.push({ id, createdAtMs: Date.parse(content.createdAt), packs: content.packs })
    } catch (error) {
      if (!isDamage(error)) throw error
      damaged.push({ key, reason: error.message })
    }
  }
  return { condemnations, damaged }
}

/** Condemns `packs` (keys) from now on; `id` must be new. */
export async function putCondemnation(
  backend: Backend,
  seal: Seal,
  id: string,
  createdAt: Date,
  packs: readonly string[],
): Promise<Condemnation | undefined> {
  const key = objectKeys.condemned(id)
  const content = { createdAt: createdAt.toISOString(), packs }
  const outcome = await backend.put(key, [sealJson(seal, packsKind, key, content)])
  return outcome === 'stored' ? { id, createdAtMs: createdAt.getTime(), packs } : undefined
}

/** The drafts that were open after the condemnation was put; undefined when nobody has written them down, or not readably. */
export async function readCondemnedDrafts(backend: Backend, seal: Seal, id: string): Promise<string[] | undefined> {
  try {
    return (await read(backend, seal, objectKeys.condemnedDrafts(id), draftsKind, draftsShape))?.drafts
  } catch (error) {
    if (isDamage(error)) return undefined
    throw error
  }
}

/** Writes down `drafts`, listed after the condemnation was put. */
export async function putCondemnedDrafts(
  backend: Backend,
  seal: Seal,
  id: string,
  drafts: readonly string[],
): Promise<void> {
  check(drafts.length <= draftsMax, `${drafts.length} drafts are open`)
  const key = objectKeys.condemnedDrafts(id)
  await backend.delete(key) // one that can not be read
  await backend.put(key, [sealJson(seal, draftsKind, key, { drafts })])
}

/** Its packs may be used again, or are gone. */
export async function removeCondemnation(backend: Backend, id: string): Promise<void> {
  await backend.delete(objectKeys.condemned(id))
  await backend.delete(objectKeys.condemnedDrafts(id))
}

/** Lists of drafts without their condemnation. */
export async function removeLeftCondemnedDrafts(backend: Backend): Promise<void> {
  const keys = new Set<string>()
  for await (const { key } of backend.list('condemned/')) keys.add(key)
  for (const key of keys) {
    const id = key.slice('condemned/'.length, -'.drafts.json'.length)
    const isLeft = isPointId(id) && key === objectKeys.condemnedDrafts(id) && !keys.has(objectKeys.condemned(id))
    if (isLeft) await backend.delete(key)
  }
}

/** Undefined when there is none. */
async function read<T>(
  backend: Backend,
  seal: Seal,
  key: string,
  kind: string,
  shape: z.ZodType<T>,
): Promise<T | undefined> {
  try {
    return unsealJson(seal, kind, key, await backend.get(key, condemnedMaxBytes), shape)
  } catch (error) {
    if (error instanceof Failure && error.code === 'REPOSITORY_OBJECT_MISSING') return undefined
    if (!(error instanceof NewerFormatError)) throw error
    throw failure('REPOSITORY_NEWER_FORMAT', { path: `${backend.location}/${key}`, reason: error.message }, error)
  }
}

const isDamage = (error: unknown): error is Error =>
  error instanceof FormatError || (error instanceof Failure && error.code === 'REPOSITORY_DAMAGED')
