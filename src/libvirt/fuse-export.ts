/**
 * Served disks as read-only files by FUSE: one qemu-storage-daemon, client of our NBD server on one side and FUSE file
 * system on the other. See "QEMU Storage Daemon", `--export type=fuse`: it mounts a file over a file. The daemon ends with
 * this process, by SIGTERM, so that it unmounts even after kill -9 of Umbra.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { constants } from 'node:fs'
import { access, lstat, open, rm } from 'node:fs/promises'
import { untilAborted, withDeadline } from '../base/async.ts'
import { systemClock } from '../base/clock.ts'
import { failure } from '../errors.ts'
import { commandEnvironment, OutputTail, runCommand } from './run-command.ts'

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
const startDeadlineMs = 20_000
const stopPatienceMs = 10_000
const maximumStderrBytes = 4096

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
  const child = spawn('setpriv', args, { stdio: ['pipe', 'pipe', 'pipe'], env: commandEnvironment() })
  const daemon = unfinished.use(new FuseDaemon(child, refused))
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
    await runCommand(program, [...args, path], { deadlineMs: stopPatienceMs })
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
    // Last, so that its greeting says that everything before it has succeeded.
    ...['--chardev', 'stdio,id=ready,signal=off', '--monitor', 'chardev=ready'],
  ]
}

class FuseDaemon implements AsyncDisposable {
  readonly ended: Promise<string>
  readonly #child: ChildProcess
  readonly #refused: (reason: string) => Error
  readonly #stderr: OutputTail
  readonly #exited = Promise.withResolvers<void>()
  #hasExited = false

  constructor(child: ChildProcess, refused: (reason: string) => Error) {
    this.#child = child
    this.#refused = refused
    this.#stderr = new OutputTail(child, maximumStderrBytes)
    const exited = () => {
      this.#hasExited = true
      this.#exited.resolve()
    }
    child.on('close', exited)
    child.on('error', () => child.pid === undefined && exited())
    child.stdin?.on('error', () => undefined)
    this.ended = this.#exited.promise.then(() => this.#lastWords())
  }

  get pid(): number {
    return this.#child.pid ?? -1
  }

  /** Resolves with the monitor's greeting, which follows the last export. */
  async ready(signal: AbortSignal | undefined): Promise<void> {
    const greeted = new Promise<boolean>((resolve) => this.#child.stdout?.once('data', () => resolve(true)))
    const started = Promise.race([greeted, this.#exited.promise.then(() => false)])
    const limit = { clock: systemClock, limitMs: startDeadlineMs, what: 'starting qemu-storage-daemon' }
    const inTime = withDeadline(started, limit)
    const isReady = await (signal === undefined ? inTime : untilAborted(inTime, signal))
    if (!isReady) throw this.#refused(this.#lastWords())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
      if (this.#hasExited) break
      this.#child.kill(signal)
      const limit = { clock: systemClock, limitMs: stopPatienceMs, what: 'stopping qemu-storage-daemon' }
      await withDeadline(this.#exited.promise, limit).catch(() => undefined)
    }
    if (!this.#hasExited) throw this.#refused(`qemu-storage-daemon ${this.#child.pid} can not be ended`)
  }

  #lastWords(): string {
    const text = this.#stderr.text.trim()
    return text === '' ? `qemu-storage-daemon ended with ${this.#child.signalCode ?? this.#child.exitCode}` : text
  }
}
