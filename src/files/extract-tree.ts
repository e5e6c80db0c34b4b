/**
 * Writes the tree of a stored archive into a new directory. Until its last step that directory and all below it are private
 * to us and reached by its open handle, so that nobody can slip a link in; every parent must be a directory that this
 * extraction made itself, and nothing that exists is ever opened or followed.
 */
import { constants } from 'node:fs'
import { type FileHandle, lchown, link, lstat, lutimes, mkdir, open, rename, symlink } from 'node:fs/promises'
import { runCommand } from '../base/run-command.ts'
import type { BlockSource } from '../disk/block-device.ts'
import { failure } from '../errors.ts'
import { type ArchivedEntry, readArchive } from './tar-reader.ts'
import { type TreeEntry, within } from './tree-listing.ts'

export interface ExtractOptions {
  readonly signal: AbortSignal
  readonly onProgress: (bytes: number) => void
}

export interface EntryOptions {
  readonly signal: AbortSignal
  /** Owners as archived, where we are root; else everything is ours, and nothing runs as somebody else (setuid, setgid). */
  readonly keepOwners: boolean
}

const privateDirectory = 0o700
const syncLimitMs = 10 * 60_000
const nodeLimitMs = 10_000
const isRoot = () => process.getuid?.() === 0

/** Makes `path`, which must not exist. Everything is on stable storage when it resolves. */
export async function extractTree(source: BlockSource, path: string, options: ExtractOptions): Promise<void> {
  const { signal, onProgress } = options
  await extractEntries(readArchive(source, { onProgress }), path, { signal, keepOwners: true })
}

/** As `extractTree`, of entries that may be anybody's: what they can not be is refused with FILES_ARCHIVE_INVALID. */
export async function extractEntries(
  entries: AsyncIterable<ArchivedEntry>,
  path: string,
  options: EntryOptions,
): Promise<void> {
  await mkdir(path, { mode: privateDirectory })
  await using root = await open(path, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW)
  const { uid, mode } = await root.stat()
  if (uid !== process.getuid?.() || (mode & 0o777) !== privateDirectory) {
    throw failure('FILES_NOT_COPIED', { path, reason: 'it was replaced when it had just been made' })
  }
  const extraction = new Extraction(root, options.keepOwners)
  for await (const archived of entries) {
    options.signal.throwIfAborted()
    await extraction.take(archived)
  }
  await extraction.finish()
  await runCommand('sync', ['--file-system', path], {
    deadlineMs: syncLimitMs,
    signal: options.signal,
    diesWithUs: true,
  })
}

class Extraction {
  readonly #root: FileHandle
  /** Every directory that was made, by its path as latin1. */
  readonly #directories = new Map<string, TreeEntry>()
  readonly #files = new Set<string>()
  readonly #keepOwners: boolean
  #nodes = 0

  constructor(root: FileHandle, keepOwners: boolean) {
    this.#root = root
    this.#keepOwners = keepOwners
  }

  async take({ entry: archived, content }: ArchivedEntry): Promise<void> {
    const entry = this.#keepOwners ? archived : { ...archived, ...ours(archived) }
    const key = entry.path.toString('latin1')
    if (key !== '') await this.#checkParent(key, entry)
    else if (this.#directories.size > 0) throw refusal(entry, 'it comes twice')
    const place = key === '' ? within(this.#root) : within(this.#root, entry.path)
    if (entry.kind === 'directory') {
      if (key !== '') await mkdir(place, { mode: privateDirectory })
      this.#directories.set(key, entry)
    } else if (entry.kind === 'file') {
      await writeFile(place, entry, content)
      this.#files.add(key)
    } else if (entry.kind === 'hard-link') {
      await this.#makeLink(place, entry)
    } else if (entry.kind === 'symlink') {
      await symlink(entry.link as Buffer, place)
      if (isRoot()) await lchown(place, entry.uid, entry.gid)
      await lutimes(place, seconds(entry), seconds(entry))
    } else {
      await this.#makeNode(place, entry)
    }
  }

  /** Directories get their owners, modes and times last, the deepest first: until then nobody else may enter. */
  async finish(): Promise<void> {
    if (!this.#directories.has('')) throw failure('FILES_ARCHIVE_INVALID', { reason: 'it is empty' })
    for (const entry of [...this.#directories.values()].reverse()) {
      const place = entry.path.length === 0 ? within(this.#root) : within(this.#root, entry.path)
      // The root is reached through a link of proc(5), which O_NOFOLLOW would refuse.
      const follow = entry.path.length === 0 ? 0 : constants.O_NOFOLLOW
      await using directory = await open(place, constants.O_RDONLY | constants.O_DIRECTORY | follow)
      await giveAttributes(directory, entry)
    }
  }

  /** Parents first, and made by us: a symbolic link is never one. lstat says the same once more. */
  async #checkParent(key: string, entry: TreeEntry): Promise<void> {
    const parent = key.includes('/') ? key.slice(0, key.lastIndexOf('/')) : ''
    if (!this.#directories.has(parent)) throw refusal(entry, 'its directory does not come before it')
    if (parent === '') return
    const stats = await lstat(within(this.#root, Buffer.from(parent, 'latin1')))
    if (!stats.isDirectory()) throw refusal(entry, 'its directory is none')
  }

  async #makeLink(place: Buffer, entry: TreeEntry): Promise<void> {
    const first = entry.link as Buffer
    if (!this.#files.has(first.toString('latin1'))) throw refusal(entry, 'it links to what is not there')
    await link(within(this.#root, first), place)
  }

  /** Node can make neither fifos nor devices: mknod(1) does, under a name of ours that any argument can hold. */
  async #makeNode(place: Buffer, entry: TreeEntry): Promise<void> {
    const { device, kind } = entry
    const name = `.umbra-node-${++this.#nodes}`
    const type = { fifo: 'p', 'character-device': 'c', 'block-device': 'b' }[kind as 'fifo']
    const numbers = device === undefined ? [] : [String(device.major), String(device.minor)]
    const path = `/proc/self/fd/3/${name}`
    const run = { deadlineMs: nodeLimitMs, fd: this.#root.fd, diesWithUs: true }
    await runCommand('mknod', ['--mode=600', path, type, ...numbers], run)
    const made = within(this.#root, Buffer.from(name))
    if (isRoot()) await lchown(made, entry.uid, entry.gid)
    await runCommand('chmod', [entry.mode.toString(8), path], run)
    await lutimes(made, seconds(entry), seconds(entry))
    await rename(made, place)
  }
}

async function writeFile(place: Buffer, entry: TreeEntry, content: ArchivedEntry['content']): Promise<void> {
  const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW
  await using file = await open(place, flags, 0o600)
  let at = 0
  for await (const part of content()) {
    if (typeof part === 'number') {
      at += part
      continue
    }
    for (let done = 0; done < part.length; ) {
      const { bytesWritten } = await file.write(part, done, part.length - done, at)
      done += bytesWritten
      at += bytesWritten
    }
  }
  await file.truncate(at) // a hole may be the end
  await giveAttributes(file, entry)
}

/** The owner first: changing it takes setuid away. */
async function giveAttributes(handle: FileHandle, entry: TreeEntry): Promise<void> {
  if (isRoot()) await handle.chown(entry.uid, entry.gid)
  await handle.chmod(entry.mode)
  await handle.utimes(seconds(entry), seconds(entry))
}

/** Without its owner a file must not lend anybody's rights. */
const ours = ({ mode }: TreeEntry) => ({
  uid: process.getuid?.() ?? 0,
  gid: process.getgid?.() ?? 0,
  mode: mode & 0o777,
})

/** As Node takes times: a floating number, so what comes back is true to the microsecond. */
const seconds = ({ mtimeNs }: TreeEntry): number => Number(mtimeNs) / 1e9

const refusal = ({ path }: TreeEntry, reason: string): Error =>
  failure('FILES_ARCHIVE_INVALID', { reason: `${JSON.stringify(path.toString())}: ${reason}` })
