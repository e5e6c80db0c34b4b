/**
 * The index objects of a repository, read one at a time; their memory is given back at once, so that reading all of them
 * leaves nothing to the collector.
 */
import { Failure } from '../../base/failure.ts'
import { check, decodeIndex, FormatError, indexMaxBytes, type PackListing } from '../format.ts'
import type { Seal } from '../keys/seal.ts'
import { isPointId } from '../recovery-point.ts'
import type { Backend } from '../storage/backend.ts'
import { digestBytes } from './blake3.ts'
import { freeNow } from './free-memory.ts'

/** An index object that can not be read; what it alone names is unknown until the indexes are made again. */
export interface DamagedIndex {
  readonly key: string
  readonly reason: string
}

const indexKey = /^indexes\/([^/]+)\/[0-9a-f]{64}$/

/** The keys of all index objects. */
export async function listIndexes(backend: Backend): Promise<Set<string>> {
  return new Set((await listIndexSizes(backend)).keys())
}

/** The keys of all index objects, with the sizes their place tells. */
export async function listIndexSizes(backend: Backend): Promise<Map<string, number>> {
  const sizes = new Map<string, number>()
  for await (const { key, sizeBytes } of backend.list('indexes/')) {
    if (isPointId(indexKey.exec(key)?.[1] ?? '')) sizes.set(key, sizeBytes)
  }
  return sizes
}

/**
 * Calls `visit` for each pack the object names; what it is given is valid only during the call. FormatError when the object
 * is damaged (before the first pack, unless its writer wrote nonsense); REPOSITORY_OBJECT_MISSING, REPOSITORY_IO.
 */
export function visitIndex(
  backend: Backend,
  seal: Seal,
  key: string,
  visit: (pack: PackListing) => void,
): Promise<void> {
  return useIndex(backend, key, (object) => {
    for (const pack of decodeIndex(seal, object)) {
      check(isPointId(pack.pointId), 'a pack of no point')
      visit(pack)
    }
  })
}

/** Calls `use` with the object, which is valid only during the call; again when a copy of it did not decode. */
export async function useIndex(backend: Backend, key: string, use: (object: Buffer) => void): Promise<void> {
  try {
    await useOnce(backend, key, use)
  } catch (error) {
    if (!(error instanceof FormatError) || backend.forget === undefined) throw error
    await backend.forget(key)
    await useOnce(backend, key, use)
  }
}

async function useOnce(backend: Backend, key: string, use: (object: Buffer) => void): Promise<void> {
  const object = await backend.get(key, indexMaxBytes)
  try {
    check(key.endsWith(object.toString('hex', Math.max(0, object.length - digestBytes))), 'it has another name')
    use(object)
  } finally {
    freeNow(object)
  }
}

/** What an error says about an index object; anything but damage of it is thrown on. */
export function indexDamage(error: unknown): string {
  if (error instanceof FormatError) return error.message
  if (error instanceof Failure && ['REPOSITORY_IO', 'REPOSITORY_DAMAGED'].includes(error.code)) return error.message
  throw error
}
