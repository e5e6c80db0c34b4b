/**
 * A stretch of a disk: the whole disk or a partition, read and written at offsets of its own and never outside of it.
 * Everything on these disks was written by a guest: what does not fit is refused here, with the disk's name.
 */
import type { BlockSink, BlockSource } from '../disk/block-device.ts'
import { failure } from '../errors.ts'

/** Takes reads and writes at any offset and length. */
export type RevertDevice = BlockSource & BlockSink

export interface RevertDisk {
  readonly name: string
  readonly device: RevertDevice
}

export interface Stretch {
  readonly disk: RevertDisk
  readonly offset: number
  readonly sizeBytes: number
}

/** Nothing that is held in memory at once is larger than this. */
export const largestReadBytes = 16 * 1024 * 1024

export const wholeDisk = (disk: RevertDisk): Stretch => ({ disk, offset: 0, sizeBytes: disk.device.sizeBytes })

export function refuse(disk: string, reason: string): never {
  throw failure('VOLUMES_NOT_UNDERSTOOD', { disk, reason })
}

export function fits(stretch: Stretch, offset: number, length: number): boolean {
  return Number.isSafeInteger(offset) && offset >= 0 && length >= 0 && offset <= stretch.sizeBytes - length
}

export async function readStretch(stretch: Stretch, offset: number, length: number): Promise<Buffer> {
  if (!fits(stretch, offset, length)) refuse(stretch.disk.name, `it ends before ${offset} + ${length}`)
  if (length > largestReadBytes) refuse(stretch.disk.name, `${length} bytes are too many to be read at once`)
  const bytes = Buffer.alloc(length)
  await stretch.disk.device.read(stretch.offset + offset, bytes)
  return bytes
}

export async function writeStretch(stretch: Stretch, offset: number, data: Uint8Array): Promise<void> {
  if (!fits(stretch, offset, data.length)) refuse(stretch.disk.name, `it ends before ${offset} + ${data.length}`)
  await stretch.disk.device.write(stretch.offset + offset, data)
}

export async function flushAll(disks: Iterable<RevertDisk>): Promise<void> {
  for (const disk of new Set(disks)) await disk.device.flush()
}
