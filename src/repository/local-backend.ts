/**
 * A backend in a directory of the local file system. See docs/repository-format.md, "Crash safety".
 * A put writes aside in tmp/, syncs, links the name (which fails if it is taken) and syncs the directory:
 * at every moment an object is there whole or not at all.
 */
import { constants } from 'node:fs'
import { type FileHandle, link, mkdir, open, opendir, readdir, rename, rm, stat } from 'node:fs/promises'
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
  readonly #openFiles = new Map<string, Promise<SharedFile>>()
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
        const outcome = await linkIfAbsent(aside, target)
        if (outcome === 'stored') await syncFolder(path.dirname(target)).catch((error) => withdraw(target, error))
        return outcome
      } finally {
        await rm(aside, { force: true })
      }
    } catch (error) {
      throw storageFailure(error, target, sizeBytes)
    }
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
    try {
      const file = await this.#openShared(key)
      try {
        return await use(file.handle)
      } finally {
        file.release()
      }
    } catch (error) {
      if (errorCode(error) === 'ENOENT' || errorCode(error) === 'ENOTDIR') {
        throw failure('REPOSITORY_OBJECT_MISSING', { path: this.#path(key) }, error)
      }
      throw storageFailure(error, this.#path(key), 0)
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
    try {
      await rm(target, { force: true })
      await syncFolder(path.dirname(target))
    } catch (error) {
      if (errorCode(error) !== 'ENOENT') throw storageFailure(error, target, 0)
    }
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
    for (const opening of files) await opening.then((file) => file.retire()).catch(() => undefined)
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
    const first = await mkdir(folder, { recursive: true })
    // A new folder is durable when its parent is synced, from the outermost new one inwards.
    for (let made = first; made?.startsWith(this.location); ) {
      await syncFolder(path.dirname(made))
      const rest = path.relative(made, folder)
      made = rest === '' ? undefined : path.join(made, rest.split(path.sep)[0] ?? '')
    }
    this.#knownFolders.add(folder)
  }

  #openShared(key: string): Promise<SharedFile> {
    const known = this.#openFiles.get(key)
    const file = known ?? open(this.#path(key), constants.O_RDONLY).then(shareFile)
    this.#openFiles.delete(key)
    this.#openFiles.set(key, file)
    if (known === undefined) {
      file.catch(() => this.#openFiles.get(key) === file && this.#openFiles.delete(key))
      this.#closeOldest()
    }
    return file.then((shared) => {
      shared.acquire()
      return shared
    })
  }

  #closeOldest(): void {
    const [oldest] = this.#openFiles
    if (this.#openFiles.size <= openFileCount || oldest === undefined) return
    this.#openFiles.delete(oldest[0])
    oldest[1].then((file) => file.retire()).catch(() => undefined)
  }
}

/** An open file with several readers: closed when it is retired and the last of them is done. */
interface SharedFile {
  readonly handle: FileHandle
  acquire(): void
  release(): void
  retire(): Promise<void>
}

function shareFile(handle: FileHandle): SharedFile {
  let readers = 0
  let retired = false
  const closeIfIdle = async () => {
    if (retired && readers === 0) await handle.close()
  }
  return {
    handle,
    acquire: () => {
      readers += 1
    },
    release: () => {
      readers -= 1
      closeIfIdle().catch(() => undefined)
    },
    retire: () => {
      retired = true
      return closeIfIdle()
    },
  }
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
