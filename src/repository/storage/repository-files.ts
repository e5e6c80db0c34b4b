/**
 * The file operations that a repository in a directory is made of, as a port: the real file system, or a model of one
 * that loses what was not synced (test/fault/unsynced-files.ts). They reject as the system does, with its code (ENOENT).
 */
import { constants } from 'node:fs'
import { type FileHandle, link, mkdir, open, opendir, rename, rmdir, stat, unlink } from 'node:fs/promises'
import path from 'node:path'
import { openDirect, pageBytes } from '../../base/direct-file.ts'

/** An open file; whoever opened it closes it. */
export interface RepositoryFile {
  /** Reads into `target` from its byte `at` on; answers how many bytes, 0 only at the end of the file. */
  read(target: Uint8Array, at: number, position: number): Promise<number>
  /** Writes `data` after what was written; answers how many bytes were taken, which may be fewer. */
  write(data: Uint8Array): Promise<number>
  sizeBytes(): Promise<number>
  /** The bytes of the file are on stable storage when it resolves; its name may not be. */
  sync(): Promise<void>
  close(): Promise<void>
}

export interface FolderEntry {
  readonly name: string
  readonly kind: 'file' | 'folder' | 'other'
}

/** Names are on stable storage only when the folder they stand in was synced after the change. */
export interface RepositoryFiles {
  openToRead(file: string): Promise<RepositoryFile>
  /** A new file, mode 0640. EEXIST, ENOENT when its folder is missing. */
  create(file: string): Promise<RepositoryFile>
  /** A second name. EEXIST, ENOENT; EPERM or ENOTSUP where there are no hard links. */
  link(file: string, name: string): Promise<void>
  /** Replaces what has the name. */
  rename(file: string, name: string): Promise<void>
  /** ENOENT when there is none. */
  remove(file: string): Promise<void>
  /** One folder, mode 0750. EEXIST, ENOENT when its parent is missing. */
  makeFolder(folder: string): Promise<void>
  /** ENOTEMPTY, ENOENT. */
  removeFolder(folder: string): Promise<void>
  /** What stands in the folder, in no order. What is made or removed meanwhile may be told or not. */
  entries(folder: string): AsyncIterable<FolderEntry>
  stat(path: string): Promise<{ readonly isFolder: boolean; readonly sizeBytes: number }>
  /** Every change of a name in the folder is on stable storage when it resolves. */
  syncFolder(folder: string): Promise<void>
}

/** The files of this host. */
export const realFiles: RepositoryFiles = {
  openToRead: async (file) => new RealFile(file, await open(file, constants.O_RDONLY)),
  create: async (file) => new RealFile(file, await open(file, 'wx', 0o640)),
  link,
  rename,
  remove: unlink,
  makeFolder: (folder) => mkdir(folder, { mode: 0o750 }),
  removeFolder: rmdir,
  async *entries(folder) {
    for await (const entry of await opendir(folder)) {
      yield { name: entry.name, kind: entry.isDirectory() ? 'folder' : entry.isFile() ? 'file' : 'other' }
    }
  },
  async stat(path) {
    const found = await stat(path)
    return { isFolder: found.isDirectory(), sizeBytes: found.size }
  },
  async syncFolder(folder) {
    const handle = await open(folder, constants.O_RDONLY | constants.O_DIRECTORY)
    try {
      await handle.sync()
    } finally {
      await handle.close()
    }
  },
}

/** Whole packs go past the kernel's cache where the file system can: nobody reads them soon, and its host has better use for it. */
const directFromBytes = 1024 * 1024

class RealFile implements RepositoryFile {
  readonly #path: string
  readonly #handle: FileHandle
  #direct: Promise<FileHandle | undefined> | undefined
  #writtenBytes = 0

  constructor(path: string, handle: FileHandle) {
    this.#path = path
    this.#handle = handle
  }

  async read(target: Uint8Array, at: number, position: number): Promise<number> {
    return (await this.#handle.read(target, at, target.length - at, position)).bytesRead
  }

  async write(data: Uint8Array): Promise<number> {
    const bytes =
      (await this.#writeDirect(data)) ??
      (await this.#handle.write(data, 0, data.length, this.#writtenBytes)).bytesWritten
    this.#writtenBytes += bytes
    return bytes
  }

  /** Undefined when nothing was written: what is not aligned, or can not be written, is left to the usual way, which says why. */
  async #writeDirect(data: Uint8Array): Promise<number | undefined> {
    const wholeBytes = data.length - (data.length % pageBytes)
    if (wholeBytes < directFromBytes || this.#writtenBytes % pageBytes !== 0) return undefined
    this.#direct ??= openDirect(this.#path)
    const written = await (await this.#direct)?.write(data, 0, wholeBytes, this.#writtenBytes).catch(() => undefined)
    return written?.bytesWritten || undefined
  }

  async sizeBytes(): Promise<number> {
    return (await this.#handle.stat()).size
  }

  sync(): Promise<void> {
    return this.#handle.sync()
  }

  async close(): Promise<void> {
    await (await this.#direct)?.close()
    await this.#handle.close()
  }
}

/** The system's name for what went wrong (ENOSPC), if it was the system. */
export function errorCode(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined
}

/** For a promise of the port's: undefined when the system answered one of `codes`. */
export function unless<T>(codes: readonly string[], promise: Promise<T>): Promise<T | undefined> {
  return promise.catch((error: unknown) => {
    if (!codes.includes(errorCode(error) ?? '')) throw error
    return undefined
  })
}

/**
 * Makes `folder`, whose parent exists, unless it is there. Its name is on stable storage when it resolves, also when it
 * was there: whoever made it may have been killed before it came to that.
 */
export async function makeSyncedFolder(folder: string, files: RepositoryFiles): Promise<void> {
  await unless(['EEXIST'], files.makeFolder(folder))
  await files.syncFolder(path.dirname(folder))
}

/** As `makeSyncedFolder`, with all parents it misses. Parents of others, which may not be synced here, are believed. */
export async function makeSyncedPath(folder: string, files: RepositoryFiles): Promise<void> {
  const parent = path.dirname(folder)
  if (parent === folder) return
  await makeSyncedPath(parent, files)
  const isNew = await files.makeFolder(folder).then(
    () => true,
    (error: unknown) => {
      if (errorCode(error) !== 'EEXIST') throw error
      return false
    },
  )
  const mayFail = isNew ? [] : ['EACCES', 'EPERM', 'EINVAL', 'EROFS', 'ENOTSUP']
  await unless(mayFail, files.syncFolder(parent))
}
