/**
 * What change tracking wants to know of an image: what marks it, which states and bitmaps lie in it (QEMU documentation,
 * "QEMU disk image utility"; docs/interop/qcow2.txt, "Bitmaps"). A VM may have it in use.
 */
import { stat } from 'node:fs/promises'
import { isAbsolute } from 'node:path'
import { z } from 'zod'
import { runCommand } from '../base/run-command.ts'
import type { ImageMark } from '../vm/backup-job.ts'
import type { DomainDisk } from './domain-disks.ts'

export interface ImageContents {
  /** Number of internal snapshots. */
  readonly states: number
  /** Names of the bitmaps that were in it when it was last closed. */
  readonly bitmaps: readonly string[]
  /** False for qcow2 of the first kind (compat=0.10), which can keep none. */
  readonly keepsBitmaps: boolean
}

const contents = z.object({
  snapshots: z.array(z.object({ id: z.string() })).optional(),
  'format-specific': z
    .object({
      data: z.object({ compat: z.string().optional(), bitmaps: z.array(z.object({ name: z.string() })).optional() }),
    })
    .optional(),
})

const limitMs = 30_000
const unknownContents: ImageContents = { states: 0, bitmaps: [], keepsBitmaps: true }

const pathOf = ({ image }: DomainDisk): string | undefined => {
  if (image === undefined) return undefined
  if ('file' in image.storage) return image.storage.file
  return 'blockDevice' in image.storage ? image.storage.blockDevice : undefined
}

/** Of an image that is not on this host, or can not be read, nothing is known. */
export async function imageContents(disk: DomainDisk): Promise<ImageContents> {
  const path = pathOf(disk)
  if (path === undefined || !isAbsolute(path) || disk.image?.format !== 'qcow2') return unknownContents
  const args = ['info', '--output=json', '--force-share', '-f', 'qcow2', '--', path]
  try {
    const { stdout } = await runCommand('qemu-img', args, { deadlineMs: limitMs })
    const parsed = contents.parse(JSON.parse(stdout))
    const data = parsed['format-specific']?.data
    return {
      states: parsed.snapshots?.length ?? 0,
      bitmaps: data?.bitmaps?.map(({ name }) => name) ?? [],
      keepsBitmaps: data?.compat !== '0.10',
    }
  } catch {
    return unknownContents
  }
}

/** A file that was replaced is another one: its number or the time of its birth differ. */
export async function imageMark(disk: DomainDisk, sizeBytes: number | undefined): Promise<ImageMark> {
  const path = pathOf(disk)
  const file = path === undefined ? undefined : await stat(path, { bigint: true }).catch(() => undefined)
  return {
    location: disk.location,
    ...(sizeBytes === undefined ? {} : { sizeBytes }),
    ...(file?.isFile() ? { file: `${file.ino}-${file.birthtimeNs}` } : {}),
  }
}

/** Why libvirt can record nothing of a disk, for people. */
export function untrackable(disk: DomainDisk, { keepsBitmaps }: ImageContents): string | undefined {
  const format = disk.image?.format ?? 'unknown'
  if (format !== 'qcow2')
    return `${format} disks have no bitmaps: read whole and compared (qcow2 would make it cheaper)`
  return keepsBitmaps ? undefined : 'qcow2 of version 2 has no bitmaps: read whole and compared (compat=1.1 would do)'
}
