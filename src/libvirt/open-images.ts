/**
 * Images at rest, opened for reading: raw files as the files they are, all others through one server of QEMU's.
 */
import { invariant } from '../base/failure.ts'
import type { BlockSource } from '../disk/block-device.ts'
import { type DiskExport, type DiskExportOptions, type ExportedDisk, exportDisks } from './disk-export.ts'
import { openRawImage } from './raw-image.ts'

export interface OpenedImages extends AsyncDisposable {
  /** By the name of the disk; disposal of all closes those that are still open. */
  open(name: string): Promise<BlockSource>
}

export async function openImagesAtRest(
  images: readonly ExportedDisk[],
  options: Omit<DiskExportOptions, 'writable'>,
): Promise<OpenedImages> {
  const files = new Map<string, string>()
  for (const { name, image } of images) {
    if (image.format === 'raw' && 'file' in image.storage) files.set(name, image.storage.file)
  }
  const others = images.filter(({ name }) => !files.has(name))
  const served: DiskExport | undefined = others.length === 0 ? undefined : await exportDisks(others, options)
  const open = new Set<BlockSource>()
  return {
    async open(name) {
      const file = files.get(name)
      if (file === undefined) {
        invariant(served !== undefined, `no image ${name} was named`)
        return await served.open(name)
      }
      const source = await openRawImage(file)
      open.add(source)
      return source
    },
    async [Symbol.asyncDispose]() {
      await using _served = served
      for (const source of open) await source[Symbol.asyncDispose]()
    },
  }
}
