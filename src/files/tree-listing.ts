/**
 * Lists a directory tree for a copy: every name below it, parents first, siblings in the order of their bytes, so that the
 * same tree is always the same list. Directories are entered by their open handle and never through a symbolic link, so
 * that nobody who may write in the tree can lead the listing out of it. Source: proc(5) on /proc/self/fd, inode(7).
 */
import { type BigIntStats, constants } from 'node:fs'
import { type FileHandle, lstat, open, readdir, readlink } from 'node:fs/promises'
import { mapLimit } from '../base/async.ts'
import { failure } from '../errors.ts'
import { exclusion, type IsExcluded } from './host-directory.ts'

export type EntryKind = 'file' | 'hard-link' | 'symlink' | 'character-device' | 'block-device' | 'directory' | 'fifo'

export interface TreeEntry {
  /** Below the root, in bytes; empty for the root itself. */
  readonly path: Buffer
  readonly kind: EntryKind
  /** Permission bits. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly mtimeNs: bigint
  /** Of a file; 0 for everything else. */
  readonly sizeBytes: number
  /** Where a symbolic link leads; for a hard link the path of the file's first name. */
  readonly link?: Buffer
  readonly device?: { readonly major: number; readonly minor: number }
  /** Which file it was, to be found again when it is read. */
  readonly inode?: bigint
}

export interface ListingOptions {
  readonly exclude?: readonly string[]
  readonly signal?: AbortSignal
  /** The tree is in use, and only its size is asked for: what has just gone is left out. */
  readonly inUse?: boolean
}

/** Names of one directory looked at together. */
const namesAtOnce = 32

export async function listTree(root: string, options: ListingOptions = {}): Promise<TreeEntry[]> {
  const tree = new Listing(root, options)
  await tree.listRoot()
  return tree.entries
}

class Listing {
  readonly entries: TreeEntry[] = []
  readonly #root: string
  readonly #options: ListingOptions
  readonly #isExcluded: IsExcluded
  /** The first path of each file that has several. */
  readonly #firstNames = new Map<bigint, Buffer>()
  #device = 0n

  constructor(root: string, options: ListingOptions) {
    this.#root = root
    this.#options = options
    this.#isExcluded = exclusion(options.exclude ?? [])
  }

  async listRoot(): Promise<void> {
    const stats = await lstat(this.#root, { bigint: true })
    if (!stats.isDirectory()) throw this.#refusal(Buffer.alloc(0), 'it is not a directory')
    this.#device = stats.dev
    this.entries.push(entryOf(Buffer.alloc(0), 'directory', stats))
    await this.#listDirectory(Buffer.from(this.#root), Buffer.alloc(0), stats)
  }

  /** `place`: a path that opens it; `path`: below the root. */
  async #listDirectory(place: Buffer, path: Buffer, expected: BigIntStats): Promise<void> {
    this.#options.signal?.throwIfAborted()
    const handle = await this.#unlessGone(
      open(place, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW),
    )
    if (handle === undefined) return
    await using directory = handle
    const { ino } = await directory.stat({ bigint: true })
    if (ino !== expected.ino) {
      if (this.#options.inUse === true) return
      throw this.#refusal(path, 'it was replaced while it was being listed')
    }
    const names = (await readdir(within(directory), { encoding: 'buffer' })).toSorted(Buffer.compare)
    const wanted = names.filter((name) => !this.#isExcluded(join(path, name)))
    const found = await mapLimit(wanted, namesAtOnce, (name) => this.#look(within(directory, name), join(path, name)))
    for (const [index, one] of found.entries()) {
      if (one === undefined) continue
      this.#add(one.entry, one.stats)
      const name = wanted[index] as Buffer
      if (one.entry.kind === 'directory') await this.#listDirectory(within(directory, name), one.entry.path, one.stats)
    }
  }

  /** Undefined for what is not kept: sockets, and in a tree in use what has gone. */
  async #look(place: Buffer, path: Buffer): Promise<{ entry: TreeEntry; stats: BigIntStats } | undefined> {
    const stats = await this.#unlessGone(lstat(place, { bigint: true }))
    const kind = stats === undefined ? undefined : kindOf(stats)
    if (stats === undefined || kind === undefined) return undefined
    if (stats.dev !== this.#device) {
      throw this.#refusal(path, 'it is another file system: exclude it, or name it as a directory of its own')
    }
    if (kind !== 'symlink') return { entry: entryOf(path, kind, stats), stats }
    const link = await this.#unlessGone(readlink(place, { encoding: 'buffer' }))
    return link === undefined ? undefined : { entry: { ...entryOf(path, kind, stats), link }, stats }
  }

  /** A file that was met before under another name becomes a hard link to that one. */
  #add(entry: TreeEntry, { nlink, ino }: BigIntStats): void {
    const first = entry.kind === 'file' && nlink > 1n ? this.#firstNames.get(ino) : undefined
    if (first !== undefined) {
      this.entries.push({ ...entry, kind: 'hard-link', sizeBytes: 0, link: first })
      return
    }
    if (entry.kind === 'file' && nlink > 1n) this.#firstNames.set(ino, entry.path)
    this.entries.push(entry)
  }

  async #unlessGone<T>(looking: Promise<T>): Promise<T | undefined> {
    try {
      return await looking
    } catch (error) {
      const { code = '' } = error as NodeJS.ErrnoException
      if (this.#options.inUse === true && ['ENOENT', 'ENOTDIR', 'ELOOP', 'EINVAL'].includes(code)) return undefined
      throw error
    }
  }

  #refusal(path: Buffer, reason: string): Error {
    return failure('FILES_NOT_COPIED', { path: `${this.#root}/${path.toString()}`.replace(/\/$/, ''), reason })
  }
}

/** The path of a name in an open directory, as openat(2) would find it. */
export function within({ fd }: FileHandle, name?: Buffer): Buffer {
  const place = Buffer.from(`/proc/self/fd/${fd}`)
  return name === undefined ? place : join(place, name)
}

const slash = Buffer.from('/')

function join(path: Buffer, name: Buffer): Buffer {
  return path.length === 0 ? name : Buffer.concat([path, slash, name])
}

function kindOf(stats: BigIntStats): EntryKind | undefined {
  if (stats.isFile()) return 'file'
  if (stats.isDirectory()) return 'directory'
  if (stats.isSymbolicLink()) return 'symlink'
  if (stats.isFIFO()) return 'fifo'
  if (stats.isCharacterDevice()) return 'character-device'
  return stats.isBlockDevice() ? 'block-device' : undefined
}

function entryOf(path: Buffer, kind: EntryKind, stats: BigIntStats): TreeEntry {
  const { mode, uid, gid, mtimeNs, size, ino, rdev } = stats
  const common = { path, kind, mode: Number(mode & 0o7777n), uid: Number(uid), gid: Number(gid), mtimeNs }
  if (kind === 'file') return { ...common, sizeBytes: Number(size), inode: ino }
  const device = kind === 'character-device' || kind === 'block-device' ? { device: deviceNumbers(rdev) } : undefined
  return { ...common, sizeBytes: 0, ...device }
}

/** As the C library packs them: makedev(3). */
function deviceNumbers(rdev: bigint): { major: number; minor: number } {
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & 0xfffff000n)
  const minor = (rdev & 0xffn) | ((rdev >> 12n) & 0xffffff00n)
  return { major: Number(major), minor: Number(minor) }
}
