/**
 * Copies files and trees of a guest into a directory of the host. Everything about them was chosen by the guest, so the archive
 * is read strictly, and its tree is written by extract-tree.ts into a new directory that is private until it is whole.
 */
import { randomBytes } from 'node:crypto'
import { lstat, rename, rm, rmdir } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { failure } from '../errors.ts'
import { extractEntries } from '../files/extract-tree.ts'
import { type ArchivedEntry, readArchive } from '../files/tar-reader.ts'
import type { TreeEntry } from '../files/tree-listing.ts'
import type { FoundFile, GuestFiles } from './guest-files.ts'
import { escapeName, namesOf } from './guest-path.ts'
import { sequentialSource } from './sequential-source.ts'

export interface CopyOptions {
  /** Owners, setuid and setgid too; only root can. */
  readonly keepOwners: boolean
  readonly signal: AbortSignal
  readonly onProgress: (doneBytes: number) => void
  /** What is left out, and why. */
  readonly onNote: (note: string) => void
}

export interface Copied {
  readonly files: number
  readonly directories: number
  readonly links: number
  /** Of the files, holes too. */
  readonly sizeBytes: number
  readonly skipped: number
  /** Some files could not be read as a whole: notes say which. */
  readonly isWhole: boolean
}

/** What the host's file systems allow. */
const longestNameBytes = 255
const longestPathBytes = 3800
/** Names are kept in memory for as long as the copy takes. */
const mostEntries = 5_000_000
const mostSkipNotes = 50
const endedEarly = 3

/** `target` must not exist, its directory must; nothing is left of a copy that fails. */
export async function copyOut(
  files: GuestFiles,
  source: FoundFile,
  target: string,
  options: CopyOptions,
): Promise<Copied> {
  const { keepOwners, signal } = options
  const { kind, path } = source.file
  if (kind !== 'directory' && kind !== 'file' && kind !== 'symlink') {
    throw failure('GUEST_FILES_REFUSED', { reason: `${escapeName(path)} is a ${kind}` })
  }
  await refuseExisting(target)
  const place = join(dirname(target), `.umbra-files-${randomBytes(6).toString('hex')}`)
  const isTree = kind === 'directory'
  const tally = new Tally(options, isTree ? undefined : (namesOf(path).at(-1) ?? ''))
  const archive = sequentialSource(files.archive(source))
  try {
    let archiveBytes = 0
    const read = readArchive(archive, {
      fromGnuTar: true,
      onProgress: (bytes) => tally.progress(bytes),
      onEnd: (bytes) => {
        archiveBytes = bytes
      },
    })
    await extractEntries(tally.acceptable(read), place, { signal, keepOwners })
    const { exit, notes } = await archive.finish(archiveBytes)
    for (const note of notes) options.onNote(note)
    if (exit >= endedEarly)
      throw failure('GUEST_FILES_INCOMPLETE', { path: escapeName(path), reason: `it ended with ${exit}` })
    await refuseExisting(target)
    if (isTree) await rename(place, target)
    else {
      await rename(join(place, singleName), target)
      await rmdir(place)
    }
    return { ...tally.counts, isWhole: exit === 0 }
  } catch (error) {
    await rm(place, { recursive: true, force: true })
    throw asRefusal(error)
  }
}

/** The one entry is extracted under a name of ours. */
const singleName = 'copy'

async function refuseExisting(target: string): Promise<void> {
  const found = await lstat(target).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined
    throw error
  })
  if (found !== undefined)
    throw failure('USAGE', { reason: `${target} exists: name what does not, or a directory with --into` })
}

/** The reader of archives speaks of recovery points; this archive came from a guest. */
function asRefusal(error: unknown): unknown {
  if (!(error instanceof Error) || !('code' in error) || error.code !== 'FILES_ARCHIVE_INVALID') return error
  return failure('GUEST_FILES_REFUSED', { reason: error.message.replace(/^[^:]*: /, '') }, error)
}

/** Lets through what may become a file here, and counts it. */
class Tally {
  readonly counts = { files: 0, directories: 0, links: 0, sizeBytes: 0, skipped: 0 }
  readonly #options: CopyOptions
  readonly #single: string | undefined
  /** Left out, and what hard links may name: a link to a symbolic link becomes another one. */
  readonly #skipped = new Set<string>()
  readonly #symlinks = new Map<string, Buffer>()
  #entries = 0
  #doneBytes = 0

  constructor(options: CopyOptions, single: string | undefined) {
    this.#options = options
    this.#single = single
  }

  progress(bytes: number): void {
    this.#doneBytes += bytes
    this.#options.onProgress(this.#doneBytes)
  }

  async *acceptable(archive: AsyncIterable<ArchivedEntry>): AsyncGenerator<ArchivedEntry> {
    if (this.#single !== undefined) yield { entry: ownRoot, content: nothing }
    for await (const { entry, content } of archive) {
      if (++this.#entries > mostEntries) {
        throw failure('GUEST_FILES_REFUSED', { reason: `it has more than ${mostEntries} files: copy it in parts` })
      }
      const accepted = this.#accept(entry)
      if (accepted !== undefined)
        yield { entry: this.#single === undefined ? accepted : this.#alone(accepted), content }
    }
  }

  #accept(entry: TreeEntry): TreeEntry | undefined {
    const path = entry.path.toString('latin1')
    const parent = path.slice(0, Math.max(0, path.lastIndexOf('/')))
    if (this.#skipped.has(parent)) return this.#skip(entry, undefined)
    const name = path.slice(path.lastIndexOf('/') + 1)
    if (name.length > longestNameBytes || path.length > longestPathBytes)
      return this.#skip(entry, 'its name is too long')
    if (entry.kind === 'fifo' || entry.kind === 'character-device' || entry.kind === 'block-device') {
      return this.#skip(entry, `it is a ${entry.kind}`)
    }
    if (entry.kind === 'hard-link') return this.#acceptLink(entry)
    if (entry.kind === 'symlink') this.#symlinks.set(path, entry.link as Buffer)
    if (entry.kind === 'directory') this.counts.directories++
    else if (entry.kind === 'symlink') this.counts.links++
    else this.counts.files++
    this.counts.sizeBytes += entry.sizeBytes
    return entry
  }

  #acceptLink(entry: TreeEntry): TreeEntry | undefined {
    const first = (entry.link as Buffer).toString('latin1')
    if (this.#skipped.has(first)) return this.#skip(entry, 'it is left out under its other name')
    this.counts.links++
    const link = this.#symlinks.get(first)
    return link === undefined ? entry : { ...entry, kind: 'symlink', link }
  }

  /** What lies below a directory that is left out is not told one by one. */
  #skip(entry: TreeEntry, reason: string | undefined): undefined {
    const path = entry.path.toString('latin1')
    this.#skipped.add(path)
    this.counts.skipped++
    if (reason === undefined || this.counts.skipped > mostSkipNotes) return
    this.#options.onNote(`${escapeName(path).slice(0, 300)} is left out: ${reason}`)
  }

  #alone(entry: TreeEntry): TreeEntry {
    if (entry.path.toString('latin1') !== this.#single) {
      throw failure('GUEST_FILES_REFUSED', { reason: 'it sends a file that it was not asked for' })
    }
    return { ...entry, path: Buffer.from(singleName) }
  }
}

/** The directory around a single file; it goes at the end. */
const ownRoot: TreeEntry = {
  path: Buffer.alloc(0),
  kind: 'directory',
  mode: 0o700,
  uid: process.getuid?.() ?? 0,
  gid: process.getgid?.() ?? 0,
  mtimeNs: 0n,
  sizeBytes: 0,
}

async function* nothing(): AsyncGenerator<Uint8Array> {
  yield* []
}
