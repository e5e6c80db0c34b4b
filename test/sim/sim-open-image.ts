/**
 * Images of the simulated host opened for the data path, with the locks QEMU would take: a reader keeps everybody
 * from writing to any layer it reads, a writer keeps out everybody else.
 */
import type { BlockSink, BlockSource } from '../../src/disk/block-device.ts'
import { failure } from '../../src/errors.ts'
import type { DiskImage } from '../../src/vm/hypervisor.ts'
import { NoSpaceError } from './host-files.ts'
import { type SimDisk, storageKey } from './sim-disk.ts'
import type { SimWorld } from './sim-world.ts'

/** Somebody outside of the VMs who has an image open. */
export interface ImageHandle {
  readonly mode: 'read' | 'write'
  /** The keys of the layers, top first. */
  readonly keys: readonly string[]
}

/** `evenIfInUse` reads an image while a VM writes to it: what one gets is of no instant. */
export function openForReading(
  world: SimWorld,
  image: DiskImage,
  options: { evenIfInUse?: boolean } = {},
): BlockSource {
  const disk = world.files.disk(image)
  if (options.evenIfInUse !== true) refuseLocked(world, image, 'read')
  const handle = register(world, disk, 'read')
  const key = storageKey(image.storage)
  return {
    sizeBytes: disk.sizeBytes,
    async read(offset, target) {
      await world.called()
      checkOpen(world, handle, 'DISK_READ_FAILED', key, offset)
      disk.read(offset, target)
    },
    async *extents(offset, length) {
      await world.called()
      checkOpen(world, handle, 'DISK_READ_FAILED', key, offset)
      yield* disk.extents(offset, length)
    },
    async [Symbol.asyncDispose]() {
      world.handles.delete(handle)
    },
  }
}

export function openForWriting(world: SimWorld, image: DiskImage): BlockSink {
  const disk = world.files.disk(image)
  refuseLocked(world, image, 'write')
  const handle = register(world, disk, 'write')
  const key = storageKey(image.storage)
  return {
    sizeBytes: disk.sizeBytes,
    async write(offset, data) {
      await world.called()
      checkOpen(world, handle, 'DISK_WRITE_FAILED', key, offset)
      try {
        disk.write(offset, data)
      } catch (error) {
        if (!(error instanceof NoSpaceError)) throw error
        throw failure('DISK_WRITE_FAILED', { disk: key, offset, reason: error.message })
      }
    },
    async flush() {
      await world.called()
      checkOpen(world, handle, 'DISK_WRITE_FAILED', key, 0)
    },
    async [Symbol.asyncDispose]() {
      world.handles.delete(handle)
    },
  }
}

/** Both at once, as a copy is opened that is to be reverted. */
export function openWritable(world: SimWorld, image: DiskImage): BlockSource & BlockSink {
  const sink = openForWriting(world, image)
  const disk = world.files.disk(image)
  return {
    ...sink,
    async read(offset, target) {
      await world.called()
      disk.read(offset, target)
    },
    async *extents(offset, length) {
      await world.called()
      yield* disk.extents(offset, length)
    },
  }
}

function register(world: SimWorld, disk: SimDisk, mode: ImageHandle['mode']): ImageHandle {
  const handle = { mode, keys: disk.keys }
  world.handles.add(handle)
  return handle
}

function refuseLocked(world: SimWorld, image: DiskImage, mode: ImageHandle['mode']): void {
  const problem = world.lockProblem(image, { writes: mode === 'write' })
  if (problem === undefined) return
  const code = mode === 'read' ? 'DISK_READ_FAILED' : 'DISK_WRITE_FAILED'
  throw failure(code, { disk: storageKey(image.storage), offset: 0, reason: problem })
}

function checkOpen(
  world: SimWorld,
  handle: ImageHandle,
  code: 'DISK_READ_FAILED' | 'DISK_WRITE_FAILED',
  disk: string,
  offset: number,
): void {
  if (!world.handles.has(handle)) throw failure(code, { disk, offset, reason: 'the disk is closed' })
}
