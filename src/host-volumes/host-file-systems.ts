/**
 * What the file systems of this host can do for copies that lie where their originals lie: one snapshot of a btrfs
 * subvolume, or reflinks on btrfs and XFS. Whatever asks only looks: a trial is made between two files without a name.
 * Sources: statfs(2), ioctl_ficlone(2), open(2) on O_TMPFILE, btrfs-subvolume(8), chattr(1) on the attribute C.
 */
import { constants, type Stats } from 'node:fs'
import { chmod, copyFile, lstat, open, opendir, readdir, realpath, statfs } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { runCommand } from '../base/run-command.ts'
import { failure } from '../errors.ts'

/** The port to the host's file systems; tests put another in its place. */
export interface HostFileSystems {
  /** Undefined when nothing is there, or something that can not be looked at. */
  facts(path: string): Promise<Stats | undefined>
  /** The root of the btrfs subvolume in which a file or directory lies; undefined when its root is not to be seen. */
  subvolumeOf(path: string): Promise<string | undefined>
  /** Whether files of this directory can be reflinked. */
  reflinks(directory: string): Promise<boolean>
  /** Whether a copy made in the file's directory could share its extents: on btrfs both or neither may be without CoW. */
  sharesExtents(file: string): Promise<boolean>
  /** Whether everything below a directory lies on its own file system and subvolume. */
  isOnePiece(directory: string): Promise<boolean>
  /** Free bytes for this process. */
  freeBytes(directory: string): Promise<number>
  /** Makes a read-only snapshot of a whole subvolume, at one instant. */
  copySubvolume(subvolume: string, copy: string, signal: AbortSignal): Promise<void>
  deleteSubvolume(copy: string): Promise<void>
  /** Reflinks one file, or the files of a directory one after the other; the copy is for its owner to read. */
  reflink(from: string, copy: string, signal: AbortSignal): Promise<void>
}

const btrfsMagic = 0x9123683e
const xfsMagic = 0x58465342
/** What a subvolume's own directory always has. */
const subvolumeInode = 256
/** Of open(2), where Node has no name for it: a file without a name. */
const temporaryFile = 0o20000000 | constants.O_DIRECTORY
/** The copy of a subvolume, which lies in it; of another session, here. */
const oursByName = /^\.umbra-[0-9a-f]{8}/
const quickMs = 10_000
const copyMs = 60_000
const deleteMs = 120_000

/** The file systems as they are. What was found out about a directory is not asked again. */
export function hostFileSystems(): HostFileSystems {
  const once = remembering()
  const hasBtrfsProgram = () => once('btrfs', () => succeeds('btrfs', ['--version']))
  return {
    facts: factsOf,
    subvolumeOf: async (path) => ((await hasBtrfsProgram()) ? subvolumeOf(path) : undefined),
    reflinks: (directory) => once(`reflinks ${directory}`, () => tryReflink(directory)),
    sharesExtents,
    isOnePiece,
    freeBytes: async (directory) => {
      const { bavail, bsize } = await statfs(directory)
      return bavail * bsize
    },
    copySubvolume: async (subvolume, copy, signal) => {
      const args = ['subvolume', 'snapshot', '-r', '--', subvolume, copy]
      await runCommand('btrfs', args, { deadlineMs: copyMs, signal, diesWithUs: true })
    },
    deleteSubvolume,
    reflink,
  }
}

function remembering() {
  const known = new Map<string, Promise<boolean>>()
  return (what: string, look: () => Promise<boolean>): Promise<boolean> => {
    const found = known.get(what) ?? look()
    known.set(what, found)
    return found
  }
}

async function factsOf(path: string): Promise<Stats | undefined> {
  return lstat(path).catch(() => undefined)
}

async function isBtrfs(path: string): Promise<boolean> {
  return (await statfs(path)).type === btrfsMagic
}

/**
 * Upwards as long as it is the same subvolume; a mount of something inside a subvolume ends before its root. Not through
 * links: one of them, copied with all the rest, would lead from the copy back to the original.
 */
async function subvolumeOf(path: string): Promise<string | undefined> {
  if (!(await isBtrfs(path)) || (await realpath(path)) !== path) return undefined
  const { dev } = await lstat(path)
  for (let at = path; ; at = dirname(at)) {
    const facts = await lstat(at)
    if (facts.dev !== dev) return undefined
    if (facts.isDirectory() && facts.ino === subvolumeInode) return at
    if (at === '/') return undefined
  }
}

async function tryReflink(directory: string): Promise<boolean> {
  try {
    const { type } = await statfs(directory)
    if (type !== btrfsMagic && type !== xfsMagic) return false
    await using from = await open(directory, temporaryFile | constants.O_RDWR, 0o600)
    await using to = await open(directory, temporaryFile | constants.O_RDWR, 0o600)
    await from.write(Buffer.alloc(4096, 1))
    await copyFile(`/proc/self/fd/${from.fd}`, `/proc/self/fd/${to.fd}`, constants.COPYFILE_FICLONE_FORCE)
    return true
  } catch {
    return false
  }
}

/** A file that was made before its directory got the attribute C, or after, can not be reflinked beside itself. */
async function sharesExtents(file: string): Promise<boolean> {
  if (!(await isBtrfs(file))) return true
  try {
    const { stdout } = await runCommand('lsattr', ['-d', '--', file, dirname(file)], { deadlineMs: quickMs })
    const withoutCopyOnWrite = stdout
      .split('\n')
      .slice(0, 2)
      .map((line) => line.split(' ')[0]?.includes('C'))
    return withoutCopyOnWrite[0] === withoutCopyOnWrite[1]
  } catch {
    return false
  }
}

async function isOnePiece(directory: string): Promise<boolean> {
  const { dev } = await lstat(directory)
  const left = [directory]
  for (let at = left.pop(); at !== undefined; at = left.pop()) {
    const facts = await factsOf(at)
    if (facts === undefined) continue // removed meanwhile
    if (facts.dev !== dev) return false
    for await (const entry of await opendir(at)) {
      if (entry.isDirectory() && !oursByName.test(entry.name)) left.push(join(at, entry.name))
    }
  }
  return true
}

/**
 * Idempotent. The directory above is read, not only asked for the name: reading waits for a snapshot that a killed
 * process is still making there.
 */
async function deleteSubvolume(copy: string): Promise<void> {
  if (!(await readdir(dirname(copy))).includes(basename(copy))) return
  const facts = await lstat(copy)
  if (!facts.isDirectory() || facts.ino !== subvolumeInode || !(await isBtrfs(copy))) {
    throw failure('VOLUME_COPY_FAILED', { path: copy, reason: 'it is no subvolume, and was left as it is' })
  }
  await runCommand('btrfs', ['subvolume', 'delete', '--', copy], { deadlineMs: deleteMs })
}

async function reflink(from: string, copy: string, signal: AbortSignal): Promise<void> {
  if ((await lstat(from)).isDirectory()) {
    const args = ['--archive', '--reflink=always', '--no-target-directory', '--', from, copy]
    await runCommand('cp', args, { deadlineMs: copyMs, signal, diesWithUs: true })
    return
  }
  await copyFile(from, copy, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE_FORCE)
  await chmod(copy, 0o400)
}

async function succeeds(command: string, args: readonly string[]): Promise<boolean> {
  return runCommand(command, args, { deadlineMs: quickMs }).then(
    () => true,
    () => false,
  )
}
