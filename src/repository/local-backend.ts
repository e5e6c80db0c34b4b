/**
 * A backend in a directory of the local file system. See docs/repository-format.md, "Crash safety".
 * A put writes aside in tmp/, syncs, links the name (which fails if it is taken) and syncs the directory:
 * at every moment an object is there whole or not at all.
 */
import { constants } from 'node:fs'
import { type FileHandle, link, mkdir, open, opendir, readdir, rename, rm, rmdir, stat } from 'node:fs/promises'
import path from 'node:path'
import { invariant } from '../base/failure.ts'
import { failure } from '../errors.ts'
import { type Backend, isObjectKey, type ObjectEntry } from './backend.ts'
import { ownProcessMark, parseProcessMark, processMarkText, processState } from './process-mark.ts'

/** Files kept open for ranged reads: a reader comes back to the same few packs. */
const openFileCount = 16

/** Where objects are written aside; never listed. */
export const asideFolder = 'tmp'

/** Opens the backend in `directory`, which must exist. Disposal closes the files it keeps open. */
export function openLocalBackend(directory: string): Backend {
  return new LocalBackend(path.resolve(directory))
}

class LocalBackend implements Backend {
  readonly location: string
  readonly #knownFolders = new Set<string>()
  readonly #openFiles = new Map<string, OpenFile>()
  #asideCount = 0

  constructor(location: string) {
    this.location = location
  }

  async put(key: string, parts: readonly Uint8Array[]): Promise<'stored' | 'exists'> {
    const target = this.#path(key)
    const sizeBytes = parts.reduce((sum, part) => sum + part.length, 0)
    try {
      const aside = await this.#asidePath()
      try {
        await writeSynced(aside, parts)
        await this.#ensureFolder(path.dirname(target))
        const outcome = await linkIfAbsent(aside, target).catch((error) => this.#linkAgain(aside, target, error))
        if (outcome === 'stored') await syncFolder(path.dirname(target)).catch((error) => withdraw(target, error))
        return outcome
      } finally {
        await rm(aside, { force: true })
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
    return linkIfAbsent(aside, target)
  }

  async get(key: string, maxBytes: number): Promise<Buffer> {
    return this.#withFile(key, async (handle) => {
      const { size } = await handle.stat()
      if (size > maxBytes) {
        const reason = `it has ${size} bytes, at most ${maxBytes} are possible`
        throw failure('REPOSITORY_DAMAGED', { path: this.#path(key), reason })
      }
      const object = Buffer.allocUnsafeSlow(size)
      return object.subarray(0, await readFully(handle, 0, object))
    })
  }

  async read(key: string, offset: number, target: Uint8Array): Promise<number> {
    return this.#withFile(key, (handle) => readFully(handle, offset, target))
  }

  async #withFile<T>(key: string, use: (handle: FileHandle) => Promise<T>): Promise<T> {
    const file = this.#openFile(key)
    file.readers += 1
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
    yield* this.#listFolder(prefix)
  }

  async *#listFolder(prefix: string): AsyncIterable<ObjectEntry> {
    const folder = path.join(this.location, prefix)
    try {
      for await (const entry of await opendir(folder)) {
        const key = prefix + entry.name
        if (key === asideFolder || !isObjectKey(key)) continue
        if (entry.isDirectory()) yield* this.#listFolder(`${key}/`)
        else if (entry.isFile()) {
          const sizeBytes = await stat(path.join(folder, entry.name)).then(
            (found) => found.size,
            () => undefined, // deleted meanwhile
          )
          if (sizeBytes !== undefined) yield { key, sizeBytes }
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
      await rm(target, { force: true })
      await syncFolder(path.dirname(target))
      await this.#removeIfEmpty(path.dirname(target))
    } catch (error) {
      if (errorCode(error) !== 'ENOENT') throw storageFailure(error, target, 0)
    }
  }

  async #removeIfEmpty(folder: string): Promise<void> {
    if (folder === this.location) return
    this.#knownFolders.delete(folder)
    await rmdir(folder).catch(() => undefined) // it is not empty
  }

  async sweep(): Promise<void> {
    const folder = path.join(this.location, asideFolder)
    const names = await readdir(folder).catch(() => [])
    for (const name of names) {
      const mark = parseProcessMark(name)
      if (mark !== undefined && (await processState(mark)) === 'dead')
        await rm(path.join(folder, name), { force: true })
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

  async #ensureFolder(folder: string): Promise<void> {
    if (this.#knownFolders.has(folder)) return
    const first = await mkdir(folder, { recursive: true, mode: 0o750 })
    // A new folder is durable when its parent is synced, from the outermost new one inwards.
    for (let made = first; made?.startsWith(this.location); ) {
      await syncFolder(path.dirname(made))
      const rest = path.relative(made, folder)
      made = rest === '' ? undefined : path.join(made, rest.split(path.sep)[0] ?? '')
    }
    this.#knownFolders.add(folder)
  }

  #openFile(key: string): OpenFile {
    const file = this.#openFiles.get(key) ?? { opening: open(this.#path(key), constants.O_RDONLY), readers: 0 }
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
    closeIfIdle(file).catch(() => undefined) // it was only read
  }
}

/** A file with several readers; whoever finds it out of the cache and without readers closes it. */
interface OpenFile {
  readonly opening: Promise<FileHandle>
  readers: number
}

async function closeIfIdle(file: OpenFile): Promise<void> {
  if (file.readers > 0) return
  const handle = await file.opening.catch(() => undefined)
  await handle?.close()
}

async function readFully(handle: FileHandle, offset: number, target: Uint8Array): Promise<number> {
  let filled = 0
  while (filled < target.length) {
    const { bytesRead } = await handle.read(target, filled, target.length - filled, offset + filled)
    if (bytesRead === 0) break
    filled += bytesRead
  }
  return filled
}

async function writeSynced(file: string, parts: readonly Uint8Array[]): Promise<void> {
  const handle = await open(file, 'wx', 0o640)
  try {
    for (const part of parts) await writeFully(handle, part)
    await handle.sync()
  } finally {
    await handle.close()
  }
}

async function writeFully(handle: FileHandle, data: Uint8Array): Promise<void> {
  for (let done = 0; done < data.length; ) {
    const { bytesWritten } = await handle.write(data, done, data.length - done)
    done += bytesWritten
  }
}

async function linkIfAbsent(aside: string, target: string): Promise<'stored' | 'exists'> {
  try {
    await link(aside, target)
    return 'stored'
  } catch (error) {
    const code = errorCode(error)
    if (code === 'EEXIST') return 'exists'
    if (code !== 'EPERM' && code !== 'ENOTSUP' && code !== 'EOPNOTSUPP' && code !== 'ENOSYS') throw error
  }
  // A file system without hard links. Two that race here replace each other's object, which is harmless: the names of
  // packs and indexes are their contents' digests, and a recovery point's name belongs to one draft.
  const taken = await stat(target).then(
    () => true,
    () => false,
  )
  if (taken) return 'exists'
  await rename(aside, target)
  return 'stored'
}

/** A name that may not be durable is taken back: what was reported as failed must not appear later. */
async function withdraw(target: string, error: unknown): Promise<never> {
  await rm(target, { force: true })
  throw error
}

async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

const randomSuffix = () => Math.floor(Math.random() * 0x1_0000_0000).toString(36)

/** The system's name for what went wrong (ENOSPC), if it was the system. */
export function errorCode(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined
}

function storageFailure(error: unknown, file: string, sizeBytes: number): unknown {
  const code = errorCode(error)
  if (code === 'ENOSPC' || code === 'EDQUOT')
    return failure('REPOSITORY_FULL', { path: file, neededBytes: sizeBytes }, error)
  if (error instanceof Error && 'syscall' in error) {
    return failure('REPOSITORY_IO', { path: file, reason: error.message }, error)
  }
  return error
}
