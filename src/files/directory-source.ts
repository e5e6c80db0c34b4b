/**
 * A directory tree as a disk that can be read: a tar archive that nobody ever writes. Only the list of names is in memory;
 * headers are made and files are read when their part of the archive is asked for. The same tree gives the same bytes.
 */
import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import type { BlockSource, Extent } from '../disk/block-device.ts'
import { failure } from '../errors.ts'
import type { Volume } from '../vss/provider.ts'
import { blockBytes, encodeHeaders, paddedBytes } from './tar-header.ts'
import { type ListingOptions, listTree, type TreeEntry } from './tree-listing.ts'

/** The archive's size is a multiple of this, so that a file that grows a little does not change it. */
const roundingBytes = 1024 * 1024
/** An archive ends with two blocks of zeros. */
const endBytes = 2 * blockBytes

export class DirectorySource implements BlockSource {
  readonly sizeBytes: number
  readonly fileCount: number
  readonly #root: string
  readonly #entries: readonly TreeEntry[]
  /** Where the headers of each entry begin; one more for the end of the last. */
  readonly #starts: Float64Array
  readonly #headerBytes: Uint32Array

  private constructor(root: string, entries: readonly TreeEntry[]) {
    this.#root = root
    this.#entries = entries
    this.#starts = new Float64Array(entries.length + 1)
    this.#headerBytes = new Uint32Array(entries.length)
    let at = 0
    for (const [index, entry] of entries.entries()) {
      const headerBytes = encodeHeaders(entry).length
      this.#starts[index] = at
      this.#headerBytes[index] = headerBytes
      at += headerBytes + paddedBytes(entry.sizeBytes)
    }
    this.#starts[entries.length] = at
    this.sizeBytes = Math.ceil((at + endBytes) / roundingBytes) * roundingBytes
    this.fileCount = entries.length
  }

  /** Lists the tree, which must not change until the last read. */
  static async open(path: string, options: ListingOptions = {}): Promise<DirectorySource> {
    return new DirectorySource(path, await listTree(path, options))
  }

  async read(offset: number, target: Uint8Array): Promise<void> {
    const end = offset + target.length
    if (end > this.sizeBytes) throw this.#failed(offset, 'beyond its end')
    target.fill(0)
    for (let index = this.#entryAt(offset); index < this.#entries.length; index++) {
      const start = this.#starts[index] as number
      if (start >= end) return
      const entry = this.#entries[index] as TreeEntry
      const dataStart = start + (this.#headerBytes[index] as number)
      if (dataStart > offset) place(encodeHeaders(entry), start, offset, target)
      const from = Math.max(dataStart, offset)
      const to = Math.min(dataStart + entry.sizeBytes, end)
      if (from < to) await this.#readFile(entry, from - dataStart, target.subarray(from - offset, to - offset), from)
    }
  }

  async *extents(offset: number, length: number): AsyncGenerator<Extent> {
    const end = offset + length
    const data = Math.min(Math.max(this.#starts[this.#entries.length] as number, offset), end)
    if (data > offset) yield { offset, length: data - offset, data: true }
    if (end > data) yield { offset: data, length: end - data, data: false }
  }

  /** Nothing stays open between reads. */
  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve()
  }

  /** The file must be the one that was listed, and as long as it was then. */
  async #readFile(entry: TreeEntry, position: number, target: Uint8Array, offset: number): Promise<void> {
    const path = Buffer.concat([Buffer.from(`${this.#root}/`), entry.path])
    const changed = (reason: string, cause?: unknown) => this.#failed(offset, `${path.toString()}: ${reason}`, cause)
    const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK
    const handle = await open(path, flags).catch((error: Error) => {
      throw changed(error.message, error)
    })
    await using file = handle
    const { ino, size, mtimeNs } = await file.stat({ bigint: true })
    if (ino !== entry.inode) throw changed('it was replaced since it was listed')
    if (Number(size) !== entry.sizeBytes || mtimeNs !== entry.mtimeNs) throw changed('it changed since it was listed')
    for (let done = 0; done < target.length; ) {
      const { bytesRead } = await file.read(target, done, target.length - done, position + done)
      if (bytesRead === 0) throw changed('it has become shorter')
      done += bytesRead
    }
  }

  /** The last entry that begins at or before `offset`. */
  #entryAt(offset: number): number {
    let [low, high] = [0, this.#entries.length - 1]
    while (low < high) {
      const middle = Math.ceil((low + high) / 2)
      if ((this.#starts[middle] as number) <= offset) low = middle
      else high = middle - 1
    }
    return low
  }

  #failed(offset: number, reason: string, cause?: unknown): Error {
    return failure('DISK_READ_FAILED', { disk: this.#root, offset, reason }, cause)
  }
}

/** A copy of a btrfs subvolume lies in its root, and another session's may be seen there. */
const ownCopies = '/.umbra-*'

/** A volume of the Files writer, where it lies or at `path`, where a provider has put its copy: what the writer excludes is. */
export function openDirectory(
  path: string,
  { properties }: Volume,
  options: Omit<ListingOptions, 'exclude'> = {},
): Promise<DirectorySource> {
  const exclude = Array.isArray(properties.exclude) ? properties.exclude.map(String) : []
  return DirectorySource.open(path, { ...options, exclude: [...exclude, ownCopies] })
}

/** Copies the part of `bytes`, which begin at `start`, that falls into `target`, which begins at `offset`. */
function place(bytes: Uint8Array, start: number, offset: number, target: Uint8Array): void {
  const skip = Math.max(0, offset - start)
  const at = Math.max(0, start - offset)
  target.set(bytes.subarray(skip, skip + Math.min(bytes.length - skip, target.length - at)), at)
}
