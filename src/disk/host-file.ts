/**
 * A plain file of the host as a disk: memory images, firmware variables, and raw images that nobody else writes to.
 * Reads and writes at offsets. A host that can not read or write (EIO, ENOSPC) is told with the file and the offset.
 */
import { constants } from 'node:fs'
import { copyFile, type FileHandle, open, rm } from 'node:fs/promises'
import { openDirect, pageBytes } from '../base/direct-file.ts'
import { failure } from '../errors.ts'
import { type BlockSink, type BlockSource, bytesOf, type Extent, oneByOne } from './block-device.ts'

/** Opens an existing file for reading; its size is taken once. */
export async function openHostFile(path: string): Promise<BlockSource> {
  const file = await open(path, constants.O_RDONLY)
  return new HostFile(path, file, (await file.stat()).size)
}

/**
 * Creates a file of that size, all holes, private to its owner; it must not exist. What is written from aligned memory goes
 * past the kernel's cache where the file system can: a restored disk would push everything else out of it, and take twice
 * as long.
 */
export async function createHostFile(path: string, sizeBytes: number): Promise<BlockSource & BlockSink> {
  const file = await open(path, constants.O_CREAT | constants.O_EXCL | constants.O_RDWR, 0o600)
  try {
    await file.truncate(sizeBytes)
    return new HostFile(path, file, sizeBytes, await openDirect(path))
  } catch (error) {
    await file.close()
    throw error
  }
}

/**
 * Makes a clone that shares the blocks of `from` until one of both is written to (ioctl_ficlone(2): btrfs, XFS), and opens
 * it; `path` must not exist. Undefined where the file system can not, or when `from` has another size.
 */
export async function cloneHostFile(
  from: string,
  path: string,
  sizeBytes: number,
): Promise<(BlockSource & BlockSink) | undefined> {
  try {
    await copyFile(from, path, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE_FORCE)
  } catch {
    return undefined
  }
  const file = await open(path, constants.O_RDWR)
  try {
    if ((await file.stat()).size === sizeBytes) return new HostFile(path, file, sizeBytes, await openDirect(path))
  } catch (error) {
    await file.close()
    throw error
  }
  await file.close()
  await rm(path)
  return undefined
}

class HostFile implements BlockSource, BlockSink {
  readonly sizeBytes: number
  readonly #path: string
  readonly #file: FileHandle
  readonly #direct: FileHandle | undefined
  #closing: Promise<void> | undefined

  constructor(path: string, file: FileHandle, sizeBytes: number, direct?: FileHandle) {
    this.#path = path
    this.#file = file
    this.#direct = direct
    this.sizeBytes = sizeBytes
  }

  async read(offset: number, target: Uint8Array): Promise<void> {
    const failed = (reason: string, at = offset, cause?: unknown) =>
      failure('DISK_READ_FAILED', { disk: this.#path, offset: at, reason }, cause)
    if (this.#closing !== undefined) throw failed('it is closed')
    if (offset < 0 || offset + target.length > this.sizeBytes) throw failed(`it has ${this.sizeBytes} bytes`)
    for (let done = 0; done < target.length; ) {
      const at = offset + done
      const { bytesRead } = await this.#file.read(target, done, target.length - done, at).catch((error: Error) => {
        throw failed(error.message, at, error)
      })
      if (bytesRead === 0) throw failed('the file has become shorter', at)
      done += bytesRead
    }
  }

  async readParts(offset: number, targets: readonly Uint8Array[]): Promise<void> {
    const wanted = bytesOf(targets)
    const read = this.#holds(offset, wanted) && (await this.#file.readv(targets, offset).catch(() => undefined))
    // One by one, to tell why, and where.
    if (!read || read.bytesRead < wanted) await oneByOne(offset, targets, (at, target) => this.read(at, target))
  }

  /** Files are read whole: what is a hole in them only the reader of the bytes can tell. */
  async *extents(offset: number, length: number): AsyncGenerator<Extent> {
    if (length > 0) yield { offset, length, data: true }
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    const failed = (reason: string, cause?: unknown) =>
      failure('DISK_WRITE_FAILED', { disk: this.#path, offset, reason }, cause)
    if (this.#closing !== undefined) throw failed('it is closed')
    if (offset < 0 || offset + data.length > this.sizeBytes) throw failed(`it has ${this.sizeBytes} bytes`)
    for (let done = await this.#writeDirect(offset, data); done < data.length; ) {
      const { bytesWritten } = await this.#file
        .write(data, done, data.length - done, offset + done)
        .catch((error: Error) => {
          throw failed(error.message, error)
        })
      done += bytesWritten
    }
  }

  async writeParts(offset: number, parts: readonly Uint8Array[]): Promise<void> {
    const wanted = bytesOf(parts)
    const isAligned = offset % pageBytes === 0 && parts.every(({ length }) => length % pageBytes === 0)
    const file = (isAligned ? this.#direct : undefined) ?? this.#file
    const written = this.#holds(offset, wanted) && (await file.writev(parts, offset).catch(() => undefined))
    if (!written || written.bytesWritten < wanted) await oneByOne(offset, parts, (at, data) => this.write(at, data))
  }

  /** Answers how much was written: what is not aligned, or can not be written, is left to the usual way, which says why. */
  async #writeDirect(offset: number, data: Uint8Array): Promise<number> {
    const isAligned = offset % pageBytes === 0 && data.length % pageBytes === 0
    if (this.#direct === undefined || !isAligned) return 0
    const written = await this.#direct.write(data, 0, data.length, offset).catch(() => undefined)
    return written?.bytesWritten ?? 0
  }

  #holds(offset: number, bytes: number): boolean {
    return this.#closing === undefined && offset >= 0 && offset + bytes <= this.sizeBytes
  }

  async flush(): Promise<void> {
    const failed = (reason: string, cause?: unknown) =>
      failure('DISK_WRITE_FAILED', { disk: this.#path, offset: 0, reason }, cause)
    if (this.#closing !== undefined) throw failed('it is closed')
    await this.#file.sync().catch((error: Error) => {
      throw failed(error.message, error)
    })
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#closing ??= Promise.all([this.#file.close(), this.#direct?.close()]).then(() => undefined)
    return this.#closing
  }
}
