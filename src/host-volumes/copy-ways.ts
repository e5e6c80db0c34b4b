/**
 * The two ways of copying a volume where it lies, as values: what has to be copied so that the volume is, what the copy is
 * called, how it is made and unmade. A name of ours is never anybody else's, and only such names are ever removed.
 */
import { lstat, readdir, rm } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { z } from 'zod'
import type { UndoHandlers, UndoRecord } from '../base/cleanup.ts'
import { failure } from '../errors.ts'
import type { DiskImage } from '../vm/hypervisor.ts'
import type { Volume } from '../vss/provider.ts'
import type { HostFileSystems } from './host-file-systems.ts'
import { imageParts } from './image-parts.ts'

/** The file or directory that a volume is. */
export interface LyingVolume {
  readonly path: string
  /** Undefined for a directory. */
  readonly format?: DiskImage['format']
}

export interface CopyWay {
  readonly id: string
  readonly name: string
  /** What `supports` answers. */
  readonly specificity: number
  /** The smallest thing that can be copied and has the volume in it; undefined when this way is not for the volume. */
  wholeOf(volume: LyingVolume): Promise<string | undefined>
  /** `mark` is of the set, and different for each copy of one whole. */
  copyPath(whole: string, mark: string): string
  readonly undo: string
  make(whole: string, copy: string, signal: AbortSignal): Promise<void>
}

/**
 * The volume as a thing on this host's file systems; undefined for what this folder has no business with. A disk must be
 * at rest: its VM does not write while the copies are made. A link is left alone: beside it, its image is not.
 */
export async function lyingVolume(
  { properties }: Volume,
  fileSystems: HostFileSystems,
): Promise<LyingVolume | undefined> {
  const { kind, atRest, image, path } = properties
  if (kind === 'host-directory' && typeof path === 'string' && resolve(path) === path) {
    return (await fileSystems.facts(path))?.isDirectory() === true ? { path } : undefined
  }
  if (kind !== 'vm-disk' || atRest !== true || image === undefined) return undefined
  const { format, storage } = image as unknown as DiskImage
  if (!('file' in storage) || resolve(storage.file) !== storage.file) return undefined
  const facts = await fileSystems.facts(storage.file)
  return facts?.isFile() === true ? { path: storage.file, format } : undefined
}

/** One snapshot for everything of a subvolume. Never of the host's root: that would be a copy of the whole system. */
export function subvolumeWay(fileSystems: HostFileSystems): CopyWay {
  return {
    id: '5f0c9d4a-3f0e-4b0b-8d51-6a1f7c2b9e02',
    name: 'Umbra Btrfs Provider',
    specificity: 30,
    async wholeOf({ path, format }) {
      const whole = await fileSystems.subvolumeOf(path)
      if (whole === undefined || whole === '/') return undefined
      if (format === undefined) return (await fileSystems.isOnePiece(path)) ? whole : undefined
      const { oneFile, relativeBacking } = await imageParts(path, format)
      return oneFile && !relativeBacking ? whole : undefined
    },
    copyPath: (whole, mark) => join(whole, `.${mark}`),
    undo: 'delete-subvolume',
    make: (whole, copy, signal) => fileSystems.copySubvolume(whole, copy, signal),
  }
}

/** A reflink of each file, beside it, where a relative name in it still means the same. */
export function reflinkWay(fileSystems: HostFileSystems): CopyWay {
  return {
    id: 'c4b7e1d8-90a2-4c36-a7f4-1d5e8b3f6a03',
    name: 'Umbra Reflink Provider',
    specificity: 20,
    async wholeOf({ path, format }) {
      if (!(await fileSystems.reflinks(dirname(path)))) return undefined
      if (format === undefined) return (await fileSystems.isOnePiece(path)) && (await isBeside(path)) ? path : undefined
      const { oneFile } = await imageParts(path, format)
      return oneFile && (await fileSystems.sharesExtents(path)) ? path : undefined
    },
    copyPath: (whole, mark) => `${whole}.${mark}.copy`,
    undo: 'remove-copy',
    make: (whole, copy, signal) => fileSystems.reflink(whole, copy, signal),
  }

  /** A directory that something is mounted on has no place beside it on its own file system. */
  async function isBeside(path: string): Promise<boolean> {
    const [facts, above] = await Promise.all([fileSystems.facts(path), fileSystems.facts(dirname(path))])
    return facts !== undefined && facts.dev === above?.dev
  }
}

/** `umbra-` and 8 digits of the set; a number for a second copy of the same whole. */
export const markOf = (setId: string, earlier: number): string =>
  `umbra-${setId.slice(0, 8)}${earlier === 0 ? '' : `-${earlier}`}`

const record = (name: RegExp) =>
  z.object({
    path: z.string().refine((path) => resolve(path) === path && name.test(basename(path)), 'is not a name of ours'),
    /** Of the directory above: another one means that the file system is not mounted there. */
    directoryInode: z.number(),
  })
const subvolumeRecord = record(/^\.umbra-[0-9a-f]{8}(-\d+)?$/)
const reflinkRecord = record(/\.umbra-[0-9a-f]{8}(-\d+)?\.copy$/)

/** The undo steps of both ways. Records come back from a journal on disk and are read, not trusted (S2). */
export function volumeUndoHandlers(fileSystems: HostFileSystems): UndoHandlers {
  return {
    'delete-subvolume': async (step: UndoRecord) => {
      const { path, directoryInode } = subvolumeRecord.parse(step)
      await requireDirectory(path, directoryInode)
      await fileSystems.deleteSubvolume(path)
    },
    'remove-copy': async (step: UndoRecord) => {
      const { path, directoryInode } = reflinkRecord.parse(step)
      await requireDirectory(path, directoryInode)
      if ((await readdir(dirname(path))).includes(basename(path))) await rm(path, { recursive: true, force: true })
    },
  }
}

/** "There is no copy" is only true where the copy would be: after a crash its file system may not be mounted yet. */
async function requireDirectory(copy: string, inode: number): Promise<void> {
  const facts = await lstat(dirname(copy)).catch(() => undefined)
  if (facts?.ino === inode) return
  const reason = `${dirname(copy)} is not the directory that it was: is its file system mounted?`
  throw failure('VOLUME_COPY_FAILED', { path: copy, reason })
}
