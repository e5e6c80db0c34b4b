/**
 * Files in memory on a disk with a volatile cache (unsynced-files-tree.ts), as one process meets them: every operation is
 * numbered, and at one number the power goes or an operation fails. Another process on the same disk sees what is
 * cached; after a power cut only what was synced is sure to be there.
 */
import type { FolderEntry, RepositoryFile, RepositoryFiles } from '../../src/repository/storage/repository-files.ts'
import { emptyFolder, type FileNode, type FolderNode, type Survival, UnsyncedTree } from './unsynced-files-tree.ts'

/**
 * `power cut`: the operation is done, nothing after it is. `killed` is the same for the process and not for the disk.
 * `EIO`: the operation fails, once. `EIO after the deed`: it is done and reported as failed. `ENOSPC`: from this
 * operation on nothing that takes space succeeds, until `freeSpace`.
 */
export type FileFault = 'power cut' | 'killed' | 'EIO' | 'EIO after the deed' | 'ENOSPC'

export interface UnsyncedOptions {
  /** The operation (counted from 1) at which `fault` happens. */
  readonly at?: number
  readonly fault?: FileFault
  /** Without them a link is refused with EPERM, as on exFAT. */
  readonly hardLinks?: boolean
  /** The most that one read or write moves. */
  readonly bytesAtOnce?: number
}

/** What an operation does to the disk: nothing, something, or something that takes space. */
export type Effect = 'reads' | 'changes' | 'takes space'

interface Operation {
  readonly call: string
  readonly effect: Effect
}

export class UnsyncedFiles implements RepositoryFiles {
  readonly operations: Operation[] = []
  readonly #tree: UnsyncedTree
  readonly #options: UnsyncedOptions
  #isDead = false
  #isFull = false
  #hit = false

  constructor(options: UnsyncedOptions = {}, tree = new UnsyncedTree()) {
    this.#options = options
    this.#tree = tree
  }

  /** Another process on the same disk, before anything was lost. */
  nextProcess(options: UnsyncedOptions = {}): UnsyncedFiles {
    return new UnsyncedFiles({ ...this.#lasting(), ...options }, this.#tree)
  }

  /** A process after the power came back, on what is left of the disk. */
  afterPowerCut(survival: Survival): UnsyncedFiles {
    return new UnsyncedFiles(this.#lasting(), this.#tree.afterPowerCut(survival))
  }

  #lasting(): UnsyncedOptions {
    const { hardLinks = true, bytesAtOnce = Number.POSITIVE_INFINITY } = this.#options
    return { hardLinks, bytesAtOnce }
  }

  /** Whether the fault has happened. */
  get hit(): boolean {
    return this.#hit
  }

  freeSpace(): void {
    this.#isFull = false
  }

  /** Does `deed` as the next operation, or what the fault makes of it. */
  async #do<T>(call: string, effect: Effect, path: string, deed: () => T, spoil?: () => void): Promise<T> {
    if (this.#isDead) throw systemError('EIO', call, `${path}: the power is gone`)
    this.operations.push({ call: `${call} ${path}`, effect })
    const { at, fault } = this.#options
    const isNow = this.operations.length === at
    if (isNow && fault === 'ENOSPC') this.#isFull = true
    if (this.#isFull && effect === 'takes space') {
      this.#hit = true
      spoil?.()
      throw systemError('ENOSPC', call, path)
    }
    if (!isNow || fault === 'ENOSPC') return deed()
    this.#hit = true
    if (fault === 'EIO') {
      spoil?.()
      throw systemError('EIO', call, path)
    }
    const result = deed()
    if (fault === undefined) return result
    this.#isDead = fault !== 'EIO after the deed'
    throw systemError('EIO', call, path)
  }

  async openToRead(path: string): Promise<RepositoryFile> {
    return this.#do('open', 'reads', path, () => this.#open(path, this.#file('open', path)))
  }

  async create(path: string): Promise<RepositoryFile> {
    return this.#do('create', 'takes space', path, () => {
      const { folder, name } = this.#place('open', path)
      if (folder.entries.has(name)) throw systemError('EEXIST', 'open', path)
      const empty = Buffer.alloc(0)
      const file: FileNode = { kind: 'file', bytes: empty, durable: empty, lost: false }
      this.#tree.setName(folder, name, file)
      return this.#open(path, file)
    })
  }

  #open(path: string, file: FileNode): RepositoryFile {
    const { bytesAtOnce = Number.POSITIVE_INFINITY } = this.#options
    return {
      read: (target, at, position) =>
        this.#do('read', 'reads', path, () => {
          const from = Math.min(position, file.bytes.length)
          return file.bytes.copy(target, at, from, from + Math.min(bytesAtOnce, target.length - at))
        }),
      write: (data) =>
        this.#do('write', 'takes space', path, () => {
          const some = data.subarray(0, bytesAtOnce)
          file.bytes = Buffer.concat([file.bytes, some])
          return some.length
        }),
      sizeBytes: () => this.#do('fstat', 'reads', path, () => file.bytes.length),
      sync: () => {
        const spoil = () => {
          file.lost = true
        }
        const sync = () => {
          if (!file.lost) file.durable = file.bytes
        }
        return this.#do('fsync', 'takes space', path, sync, spoil) // room is often looked for this late
      },
      close: () => this.#do('close', 'reads', path, () => undefined),
    }
  }

  link(path: string, name: string): Promise<void> {
    return this.#do('link', 'takes space', name, () => {
      if (this.#options.hardLinks === false) throw systemError('EPERM', 'link', name)
      const file = this.#file('link', path)
      const place = this.#place('link', name)
      if (place.folder.entries.has(place.name)) throw systemError('EEXIST', 'link', name)
      this.#tree.setName(place.folder, place.name, file)
    })
  }

  rename(path: string, name: string): Promise<void> {
    return this.#do('rename', 'takes space', name, () => {
      const file = this.#file('rename', path)
      const from = this.#place('rename', path)
      const place = this.#place('rename', name)
      this.#tree.setName(place.folder, place.name, file)
      this.#tree.setName(from.folder, from.name, undefined)
    })
  }

  remove(path: string): Promise<void> {
    return this.#do('unlink', 'changes', path, () => {
      this.#file('unlink', path)
      const { folder, name } = this.#place('unlink', path)
      this.#tree.setName(folder, name, undefined)
    })
  }

  makeFolder(path: string): Promise<void> {
    return this.#do('mkdir', 'takes space', path, () => {
      if (path === '/') throw systemError('EEXIST', 'mkdir', path)
      const { folder, name } = this.#place('mkdir', path)
      if (folder.entries.has(name)) throw systemError('EEXIST', 'mkdir', path)
      this.#tree.setName(folder, name, emptyFolder())
    })
  }

  removeFolder(path: string): Promise<void> {
    return this.#do('rmdir', 'changes', path, () => {
      if (this.#folder('rmdir', path).entries.size > 0) throw systemError('ENOTEMPTY', 'rmdir', path)
      const { folder, name } = this.#place('rmdir', path)
      this.#tree.setName(folder, name, undefined)
    })
  }

  async *entries(path: string): AsyncIterable<FolderEntry> {
    const found = await this.#do('readdir', 'reads', path, () => [...this.#folder('opendir', path).entries])
    for (const [name, { kind }] of found) yield { name, kind }
  }

  stat(path: string): Promise<{ isFolder: boolean; sizeBytes: number }> {
    return this.#do('stat', 'reads', path, () => {
      const node = this.#node('stat', path)
      return { isFolder: node.kind === 'folder', sizeBytes: node.kind === 'file' ? node.bytes.length : 0 }
    })
  }

  syncFolder(path: string): Promise<void> {
    return this.#do('fsync of folder', 'changes', path, () => this.#tree.syncFolder(this.#folder('open', path)))
  }

  #node(call: string, path: string): FileNode | FolderNode {
    let node: FileNode | FolderNode = this.#tree.root
    for (const part of path.split('/').filter((one) => one !== '')) {
      if (node.kind === 'file') throw systemError('ENOTDIR', call, path)
      const next = node.entries.get(part)
      if (next === undefined) throw systemError('ENOENT', call, path)
      node = next
    }
    return node
  }

  #file(call: string, path: string): FileNode {
    const node = this.#node(call, path)
    if (node.kind === 'folder') throw systemError('EISDIR', call, path)
    return node
  }

  #folder(call: string, path: string): FolderNode {
    const node = this.#node(call, path)
    if (node.kind === 'file') throw systemError('ENOTDIR', call, path)
    return node
  }

  #place(call: string, path: string): { folder: FolderNode; name: string } {
    const end = path.lastIndexOf('/')
    return { folder: this.#folder(call, path.slice(0, end)), name: path.slice(end + 1) }
  }
}

/** Without a stack, as those of node:fs/promises are; there are very many. */
function systemError(code: string, syscall: string, path: string): Error {
  const { stackTraceLimit } = Error
  Error.stackTraceLimit = 0
  const error = new Error(`${code}: ${syscall} '${path}'`)
  Error.stackTraceLimit = stackTraceLimit
  return Object.assign(error, { code, syscall, path })
}
