/**
 * Where a repository is, by its location: a directory, or `s3://bucket/prefix?…` (docs/s3.md). What speaks S3 is loaded
 * only for the latter: a command on a directory does not pay for it.
 */
import path from 'node:path'
import { describeError, Failure } from '../../base/failure.ts'
import { failure } from '../../errors.ts'
import { objectKeys } from '../format.ts'
import type { Backend } from './backend.ts'
import { indexCacheDirectory, withIndexCache } from './index-cache.ts'
import { asideFolder, openLocalBackend } from './local-backend.ts'
import { errorCode, makeSyncedPath, type RepositoryFiles, realFiles } from './repository-files.ts'
import { isS3Location, parseS3Address, s3AddressText } from './s3-address.ts'

/** The location in the one way that Umbra writes it: an absolute path, or an s3:// address. USAGE. */
export function fullLocation(location: string): string {
  return isS3Location(location) ? s3AddressText(parseS3Address(location)) : path.resolve(location)
}

/** Opens the place that is there. USAGE, REPOSITORY_NOT_FOUND, REPOSITORY_NOT_ONE; an object store is not asked yet. */
export async function openBackend(location: string, files: RepositoryFiles = realFiles): Promise<Backend> {
  const place = fullLocation(location)
  if (isS3Location(place)) return openS3(place)
  const found = await files.stat(place).catch((error: unknown) => {
    const missing = errorCode(error) === 'ENOENT' || errorCode(error) === 'ENOTDIR'
    if (missing) throw failure('REPOSITORY_NOT_FOUND', { path: place }, error)
    throw failure('REPOSITORY_IO', { path: place, reason: describeError(error) }, error)
  })
  if (!found.isFolder) throw failure('REPOSITORY_NOT_ONE', { path: place, reason: 'it is a file' })
  return openLocalBackend(place, files)
}

/**
 * Prepares a place for a new repository and opens it: a directory that is missing or empty, or a prefix without objects in
 * a bucket that exists. REPOSITORY_NOT_EMPTY, and what `openBackend` says.
 */
export async function createPlace(location: string, files: RepositoryFiles = realFiles): Promise<Backend> {
  const place = fullLocation(location)
  if (!isS3Location(place)) {
    await ensureEmptyFolder(place, files)
    return openLocalBackend(place, files)
  }
  const backend = await openS3(place)
  try {
    refuseWhatIsThere(place, await firstKeys(backend))
    return backend
  } catch (error) {
    await backend[Symbol.asyncDispose]()
    throw error
  }
}

/** True when a repository could be made there: missing or empty. What can not be looked at is left to who opens it. */
export async function isVacant(location: string, files: RepositoryFiles = realFiles): Promise<boolean> {
  const place = fullLocation(location)
  if (isS3Location(place)) {
    await using backend = await openS3(place)
    return (await firstKeys(backend)).length === 0
  }
  try {
    return (await namesIn(place, files)).length === 0
  } catch (error) {
    return errorCode(error) === 'ENOENT'
  }
}

/** The backend with what a repository reads at every start kept on this host too, where that saves anything. */
export function withLocalCopies(backend: Backend, repositoryId: string): Backend {
  if (!isS3Location(backend.location)) return backend
  return withIndexCache(backend, indexCacheDirectory(), repositoryId)
}

async function openS3(address: string): Promise<Backend> {
  const { openS3Backend } = await import('./s3-backend.ts')
  return openS3Backend(parseS3Address(address))
}

async function ensureEmptyFolder(folder: string, files: RepositoryFiles): Promise<void> {
  try {
    await makeSyncedPath(folder, files)
    refuseWhatIsThere(folder, await namesIn(folder, files))
  } catch (error) {
    if (error instanceof Failure) throw error
    if (errorCode(error) === 'EEXIST' || errorCode(error) === 'ENOTDIR') {
      throw failure('REPOSITORY_NOT_ONE', { path: folder, reason: 'it is a file' }, error)
    }
    throw failure('REPOSITORY_IO', { path: folder, reason: describeError(error) }, error)
  }
}

async function namesIn(folder: string, files: RepositoryFiles): Promise<string[]> {
  const names: string[] = []
  for await (const { name } of files.entries(folder)) {
    if (name !== 'lost+found' && name !== asideFolder) names.push(name)
  }
  return names
}

/** The configuration, if there is one, and then enough keys to see what else there is. */
async function firstKeys(backend: Backend): Promise<string[]> {
  const keys: string[] = []
  for await (const { key } of backend.list('')) {
    if (key === objectKeys.config) return [key]
    if (keys.length < 4) keys.push(key)
  }
  return keys
}

function refuseWhatIsThere(place: string, names: readonly string[]): void {
  if (names.includes(objectKeys.config)) throw failure('REPOSITORY_NOT_EMPTY', { path: place, found: 'a repository' })
  if (names.length === 0) return
  const found = names.length > 3 ? `${names.slice(0, 3).join(', ')} and more` : names.join(', ')
  throw failure('REPOSITORY_NOT_EMPTY', { path: place, found })
}
