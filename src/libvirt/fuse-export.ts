/**
 * Served disks as read-only files by FUSE: one qemu-storage-daemon, client of our NBD server on one side and FUSE file
 * system on the other. See "QEMU Storage Daemon", `--export type=fuse`: it mounts a file over a file. The daemon ends with
 * this process, by SIGTERM, so that it unmounts even after kill -9 of Umbra.
 */
import { constants } from 'node:fs'
import { access, lstat, open, rm } from 'node:fs/promises'
import { runCommand } from '../base/run-command.ts'
import { failure } from '../errors.ts'
import { readyArguments, StorageDaemon } from './storage-daemon.ts'

export interface MountedDisk {
  /** Name of its export at the NBD server. */
  readonly exportName: string
  /** The file to make; nothing of that name may be there. */
  readonly path: string
}

export interface FuseOptions {
  /** Of the NBD server. */
  readonly socketPath: string
  readonly signal?: AbortSignal | undefined
}

/** Disposal unmounts and removes the files. */
export interface FuseMount extends AsyncDisposable {
  /** Resolves with the reason when the daemon has ended without being told to. */
  readonly ended: Promise<string>
  readonly pid: number
}

const fuseDevice = '/dev/fuse'
const mountPointMode = 0o400
const unmountDeadlineMs = 10_000

/** The files can be read when it resolves. MOUNT_FAILED; then nothing stays behind. */
export async function mountDisks(disks: readonly MountedDisk[], options: FuseOptions): Promise<FuseMount> {
  const { socketPath, signal } = options
  const paths = disks.map(({ path }) => path)
  const refused = (reason: string, cause?: unknown) => failure('MOUNT_FAILED', { paths, reason }, cause)
  await access(fuseDevice, constants.R_OK | constants.W_OK).catch((error: Error) => {
    throw refused(`there is no FUSE here (${error.message})`, error)
  })
  await using unfinished = new AsyncDisposableStack()
  for (const path of paths) {
    await makeMountPoint(path).catch((error: Error) => {
      throw refused(error.message, error)
    })
    unfinished.defer(() => removeMountPoint(path))
  }
  signal?.throwIfAborted()
  const args = ['--pdeathsig', 'TERM', '--', 'qemu-storage-daemon', ...fuseArguments(disks, socketPath)]
  const daemon = unfinished.use(new StorageDaemon(['setpriv', args], refused))
  await daemon.ready(signal)
  const kept = unfinished.move()
  return { pid: daemon.pid, ended: daemon.ended, [Symbol.asyncDispose]: () => kept.disposeAsync() }
}

/** An empty file; one that is left of a mount that was killed is taken again. */
async function makeMountPoint(path: string): Promise<void> {
  const left = await lstat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error
  })
  if (left?.isFile() && left.size === 0 && (left.mode & 0o777) === mountPointMode) return
  const file = await open(path, 'wx', mountPointMode)
  await file.close()
}

/** A daemon that was killed leaves the mount behind, of which nothing can be read any more. */
async function removeMountPoint(path: string): Promise<void> {
  try {
    await rm(path, { force: true })
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code !== 'EBUSY' && code !== 'ENOTCONN') throw error
    const [program, args] = process.getuid?.() === 0 ? ['umount', ['-l', '--']] : ['fusermount3', ['-u', '-z', '--']]
    await runCommand(program, [...args, path], { deadlineMs: unmountDeadlineMs })
    await rm(path, { force: true })
  }
}

/** The daemon's arguments; JSON throughout, so that no character of a path has a meaning. */
export function fuseArguments(disks: readonly MountedDisk[], socketPath: string): string[] {
  const json = (option: string, value: unknown) => [option, JSON.stringify(value)]
  const nodes = disks.map(({ exportName }, i) => ({
    driver: 'nbd',
    'node-name': `disk${i}`,
    'read-only': true,
    server: { type: 'unix', path: socketPath },
    export: exportName,
  }))
  const exports = disks.map(({ path }, i) => ({
    type: 'fuse',
    id: `export${i}`,
    'node-name': `disk${i}`,
    mountpoint: path,
  }))
  return [
    ...nodes.flatMap((node) => json('--blockdev', node)),
    ...exports.flatMap((each) => json('--export', each)),
    ...readyArguments,
  ]
}
