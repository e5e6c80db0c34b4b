/**
 * A backend in a directory of the local file system. See docs/repository-format.md, "Crash safety".
 * A put writes aside in tmp/, syncs, links the name (which fails if it is taken) and syncs the directory:
 * at every moment an object is there whole or not at all.
 */
import path from 'node:path'
import { invariant } from '../../base/failure.ts'
import { ownProcessMark, parseProcessMark, processMarkText, processState } from '../../base/process-mark.ts'
import { failure } from '../../errors.ts'
import { objectKeys } from '../format.ts'
import { type Backend, isObjectKey, type ObjectEntry } from './backend.ts'
import {
  errorCode,
  makeSyncedFolder,
  type RepositoryFile,
  type RepositoryFiles,
  realFiles,
  unless,
} from './repository-files.ts'

/** Files kept open for ranged reads: a reader comes back to the same few packs. */
const openFileCount = 16

/** Where objects are written aside; never listed. */
export const asideFolder = 'tmp'

/** Opens the backend in `directory`, which must exist. Disposal closes the files it keeps open. */
export function openLocalBackend(directory: string, files: RepositoryFiles = realFiles): Backend {
  return new LocalBackend(path.resolve(directory), files)
}

class LocalBackend implements Backend {
  readonly location: string
  readonly #files: RepositoryFiles
  readonly #knownFolders = new Set<string>()
  readonly #openFiles = new Map<string, OpenFile>()
  /** Folders of the indexes of others that were read, and may not be durable yet. */
  readonly #indexesOfOthers = new Set<string>()
  #hasListedPoints = false
  #asideCount = 0

  constructor(location: string, files: RepositoryFiles) {
    this.location = location
    this.#files = files
  }

  async put(key: string, parts: readonly Uint8Array[]): Promise<'stored' | 'exists'> {
    const target = this.#path(key)
    const sizeBytes = parts.reduce((sum, part) => sum + part.length, 0)
    try {
      const aside = await this.#asidePath()
      try {
        await this.#writeSynced(aside, parts)
        await this.#ensureFolder(path.dirname(target))
        if (key.startsWith('points/')) await this.#syncIndexesOfOthers()
        const outcome = await this.#linkIfAbsent(aside, target).catch((error) => this.#linkAgain(aside, target, error))
        if (outcome === 'stored') await this.#syncName(key, target)
        return outcome
      } finally {
        await this.#files.remove(aside).catch(() => undefined) // renamed, or left to a sweep: the object is there or not
      }
    } catch (error) {
      throw storageFailure(error, target, sizeBytes)
    }
  }

  /** Another process may have removed the folder, empty after a deletion. */
  async #linkAgain(aside: string, target: string, error: unknown): Promise<'stored' | 'exists'> {
    if (errorCode(error) !== 'ENOENT') throw error
    this.#knownFolders.clear()
    await this.#ensureFolder(path.dirname(target))
    return this.#linkIfAbsent(aside, target)
  }

  async #linkIfAbsent(aside: string, target: string): Promise<'stored' | 'exists'> {
    try {
      await this.#files.link(aside, target)
      return 'stored'
    } catch (error) {
      const code = errorCode(error)
      if (code === 'EEXIST') return 'exists'
      if (code !== 'EPERM' && code !== 'ENOTSUP' && code !== 'EOPNOTSUPP' && code !== 'ENOSYS') throw error
    }
    // A file system without hard links. Two that race here replace each other's object, which is harmless: the names of
    // packs and indexes are their contents' digests, and a recovery point's name belongs to one draft.
    const taken = await unless(['ENOENT'], this.#files.stat(target))
    if (taken !== undefined) return 'exists'
    await this.#files.rename(aside, target)
    return 'stored'
  }

  /**
   * A name that may not be durable is taken back: what was reported as failed must not appear later. But an index stays:
   * another draft may have found its chunks there already, and whoever discards this one leaves the packs of an index.
   */
  async #syncName(key: string, target: string): Promise<void> {
    try {
      await this.#files.syncFolder(path.dirname(target))
    } catch (error) {
      if (!key.startsWith('indexes/')) await this.#files.remove(target).catch(() => undefined) // the first error tells more
      throw error
    }
  }

  /**
   * A manifest may need chunks of an index that its writer, killed meanwhile or not that far yet, has named and not synced:
   * that index is made durable before the manifest is. Whose marker is gone has done so (`delete`).
   */
  async #syncIndexesOfOthers(): Promise<void> {
    for (const folder of this.#indexesOfOthers) {
      const marker = this.#path(objectKeys.draft(path.basename(folder)))
      const isBeingWritten = (await unless(['ENOENT'], this.#files.stat(marker))) !== undefined
      if (isBeingWritten) await unless(['ENOENT'], this.#files.syncFolder(folder))
      this.#indexesOfOthers.delete(folder)
    }
  }

  async #writeSynced(name: string, parts: readonly Uint8Array[]): Promise<void> {
    const file = await this.#files.create(name)
    try {
      for (const part of parts) await writeFully(file, part, name)
      await file.sync()
    } finally {
      await file.close()
    }
  }

  async get(key: string, maxBytes: number): Promise<Buffer> {
    // Never a file that is kept open: another process may have deleted the object since, and put it again.
    const own = { opening: this.#files.openToRead(this.#path(key)), readers: 0 }
    return this.#withFile(key, own, async (file) => {
      const size = await file.sizeBytes()
      if (size > maxBytes) {
        const reason = `it has ${size} bytes, at most ${maxBytes} are possible`
        throw failure('REPOSITORY_DAMAGED', { path: this.#path(key), reason })
      }
      const object = Buffer.allocUnsafeSlow(size)
      return object.subarray(0, await readFully(file, 0, object))
    })
  }

  async read(key: string, offset: number, target: Uint8Array): Promise<number> {
    return this.#withFile(key, this.#openFile(key), (file) => readFully(file, offset, target))
  }

  async #withFile<T>(key: string, file: OpenFile, use: (file: RepositoryFile) => Promise<T>): Promise<T> {
    file.readers += 1
    if (key.startsWith('indexes/')) this.#indexesOfOthers.add(path.dirname(this.#path(key)))
    try {
      return await use(await file.opening)
    } catch (error) {
      if (errorCode(error) === 'ENOENT' || errorCode(error) === 'ENOTDIR') {
        throw failure('REPOSITORY_OBJECT_MISSING', { path: this.#path(key) }, error)
      }
      throw storageFailure(error, this.#path(key), 0)
    } finally {
      file.readers -= 1
      if (!this.#isKept(key, file)) await closeIfIdle(file)
    }
  }

  async *list(prefix: string): AsyncIterable<ObjectEntry> {
    invariant(prefix === '' || (prefix.endsWith('/') && isObjectKey(prefix.slice(0, -1))), `no prefix: ${prefix}`)
    if (prefix === 'points/') this.#hasListedPoints = true
    yield* this.#listFolder(prefix)
  }

  async *#listFolder(prefix: string): AsyncIterable<ObjectEntry> {
    const folder = path.join(this.location, prefix)
    try {
      for await (const { name, kind } of this.#files.entries(folder)) {
        const key = prefix + name
        if (key === asideFolder || !isObjectKey(key)) continue
        if (kind === 'folder') yield* this.#listFolder(`${key}/`)
        else if (kind === 'file') {
          const found = await unless(['ENOENT'], this.#files.stat(path.join(folder, name)))
          if (found !== undefined) yield { key, sizeBytes: found.sizeBytes } // else deleted meanwhile
        }
      }
    } catch (error) {
      if (errorCode(error) !== 'ENOENT') throw storageFailure(error, folder, 0)
    }
  }

  async delete(key: string): Promise<void> {
    const target = this.#path(key)
    this.#forget(key)
    try {
      await this.#syncBeforeDeletion(key)
      await unless(['ENOENT', 'ENOTDIR'], this.#files.remove(target))
      await unless(['ENOENT', 'ENOTDIR'], this.#files.syncFolder(path.dirname(target)))
    } catch (error) {
      throw storageFailure(error, target, 0)
    }
    await this.#removeIfEmpty(path.dirname(target))
  }

  /**
   * What was seen and is relied upon must not come undone by a power cut: a point whose deletion was not synced would be
   * back without its packs, and an index of a draft whose marker is gone is believed to be durable.
   */
  async #syncBeforeDeletion(key: string): Promise<void> {
    const [prefix, name = ''] = key.split('/')
    if (prefix === 'drafts') {
      const indexes = path.join(this.location, 'indexes', path.basename(name, '.json'))
      await unless(['ENOENT', 'ENOTDIR'], this.#files.syncFolder(indexes))
    }
    if ((prefix === 'packs' || prefix === 'indexes') && this.#hasListedPoints) {
      await unless(['ENOENT'], this.#files.syncFolder(path.join(this.location, 'points')))
      this.#hasListedPoints = false
    }
  }

  /** The folders of the first level stay: somebody may be about to put the next object into them. */
  async #removeIfEmpty(folder: string): Promise<void> {
    if (folder === this.location || path.dirname(folder) === this.location) return
    this.#knownFolders.delete(folder)
    await this.#files.removeFolder(folder).catch(() => undefined) // it is not empty, or stays as an empty one
  }

  async sweep(): Promise<void> {
    const folder = path.join(this.location, asideFolder)
    try {
      for await (const { name } of this.#files.entries(folder)) {
        const mark = parseProcessMark(name)
        if (mark === undefined || (await processState(mark)) !== 'dead') continue
        await this.#files.remove(path.join(folder, name)).catch(() => undefined) // gone, or left to the next sweep
      }
    } catch (error) {
      if (errorCode(error) !== 'ENOENT') throw storageFailure(error, folder, 0)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const files = [...this.#openFiles.values()]
    this.#openFiles.clear()
    for (const file of files) await closeIfIdle(file)
  }

  #path(key: string): string {
    invariant(isObjectKey(key), `no object key: ${key}`)
    return path.join(this.location, key)
  }

  async #asidePath(): Promise<string> {
    const folder = path.join(this.location, asideFolder)
    await this.#ensureFolder(folder)
    this.#asideCount += 1
    return path.join(folder, `${processMarkText(await ownProcessMark())}-${this.#asideCount}-${randomSuffix()}`)
  }

  /** Each folder is durable before anything is put into it; looked after once by each process. */
  async #ensureFolder(folder: string): Promise<void> {
    if (folder === this.location || this.#knownFolders.has(folder)) return
    await this.#ensureFolder(path.dirname(folder))
    await makeSyncedFolder(folder, this.#files)
    this.#knownFolders.add(folder)
  }

  #openFile(key: string): OpenFile {
    const file = this.#openFiles.get(key) ?? { opening: this.#files.openToRead(this.#path(key)), readers: 0 }
    this.#openFiles.delete(key)
    this.#openFiles.set(key, file)
    file.opening.catch(() => this.#isKept(key, file) && this.#openFiles.delete(key))
    if (this.#openFiles.size > openFileCount) this.#forgetOldest()
    return file
  }

  #isKept(key: string, file: OpenFile): boolean {
    return this.#openFiles.get(key) === file
  }

  #forgetOldest(): void {
    const [oldest] = this.#openFiles.keys()
    if (oldest !== undefined) this.#forget(oldest)
  }

  #forget(key: string): void {
    const file = this.#openFiles.get(key)
    if (file === undefined) return
    this.#openFiles.delete(key)
    void closeIfIdle(file)
  }
}

/** A file with several readers; whoever finds it out of the cache and without readers closes it. */
interface OpenFile {
  readonly opening: Promise<RepositoryFile>
  readers: number
}

async function closeIfIdle(file: OpenFile): Promise<void> {
  if (file.readers > 0) return
  const opened = await file.opening.catch(() => undefined) // whoever reads is told
  await opened?.close().catch(() => undefined) // it was only read
}

async function readFully(file: RepositoryFile, offset: number, target: Uint8Array): Promise<number> {
  let filled = 0
  while (filled < target.length) {
    const count = await file.read(target, filled, offset + filled)
    if (count === 0) break
    filled += count
  }
  return filled
}

async function writeFully(file: RepositoryFile, data: Uint8Array, name: string): Promise<void> {
  for (let done = 0; done < data.length; ) {
    const count = await file.write(data.subarray(done))
    if (count === 0) throw failure('REPOSITORY_IO', { path: name, reason: 'it takes no more bytes' })
    done += count
  }
}

const randomSuffix = () => Math.floor(Math.random() * 0x1_0000_0000).toString(36)

function storageFailure(error: unknown, file: string, sizeBytes: number): unknown {
  const code = errorCode(error)
  if (code === 'ENOSPC' || code === 'EDQUOT')
    return failure('REPOSITORY_FULL', { path: file, neededBytes: sizeBytes }, error)
  if (error instanceof Error && 'syscall' in error) {
    return failure('REPOSITORY_IO', { path: file, reason: error.message }, error)
  }
  return error
}
