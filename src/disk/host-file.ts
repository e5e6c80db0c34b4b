/**
 * A plain file of the host as a disk: memory images, firmware variables. Reads and writes at offsets.
 */
import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { failure } from '../errors.ts'
import type { BlockSink, BlockSource, Extent } from './block-device.ts'

/** Opens an existing file for reading; its size is taken once. */
export async function openHostFile(path: string): Promise<BlockSource> {
  const file = await open(path, constants.O_RDONLY)
  const { size } = await file.stat()
  return {
    sizeBytes: size,
    async read(offset, target) {
      for (let done = 0; done < target.length; ) {
        const { bytesRead } = await file.read(target, done, target.length - done, offset + done)
        if (bytesRead === 0)
          throw failure('DISK_READ_FAILED', {
            disk: path,
            offset: offset + done,
            reason: 'the file has become shorter',
          })
        done += bytesRead
      }
    },
    async *extents(offset, length): AsyncGenerator<Extent> {
      if (length > 0) yield { offset, length, data: true }
    },
    [Symbol.asyncDispose]: () => file.close(),
  }
}

/** Creates a file of that size, private to its owner; it must not exist. */
export async function createHostFile(path: string, sizeBytes: number): Promise<BlockSink> {
  const file: FileHandle = await open(path, constants.O_CREAT | constants.O_EXCL | constants.O_RDWR, 0o600)
  await file.truncate(sizeBytes)
  return {
    sizeBytes,
    async write(offset, data) {
      try {
        for (let done = 0; done < data.length; ) {
          done += (await file.write(data, done, data.length - done, offset + done)).bytesWritten
        }
      } catch (error) {
        throw failure('DISK_WRITE_FAILED', { disk: path, offset, reason: (error as Error).message }, error)
      }
    },
    flush: () => file.sync(),
    [Symbol.asyncDispose]: () => file.close(),
  }
}
