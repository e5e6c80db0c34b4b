/**
 * Serves disk images over NBD with one qemu-storage-daemon for all disks of a VM: see "QEMU Storage Daemon" and
 * "QEMU QMP Reference Manual", BlockdevOptions, of the QEMU documentation.
 *
 * Locks. Nodes are opened as what they are (read-only unless `writable`), never with force-share. A reader of a qcow2,
 * VHD or VHDX image, and of every image below it, forbids others to write to that file; it does not mind other readers.
 * So a VM that runs on an overlay is not disturbed, but merging that overlay down (blockcommit) fails with 'Failed to
 * get "write" lock' until the export is disposed. An image that a VM itself writes to cannot be opened. Raw images are
 * the exception: QEMU locks nothing for their readers, so that nobody reads a raw base while it is merged into is our
 * own business. The daemon dies with this process, so no reader is left over.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { untilAborted, withDeadline } from '../base/async.ts'
import { systemClock } from '../base/clock.ts'
import type { Failure } from '../base/failure.ts'
import { connectNbd, type NbdClientOptions, type NbdDevice } from '../disk/nbd-client.ts'
import { failure } from '../errors.ts'
import type { DiskImage } from '../vm/hypervisor.ts'
import { type BlockNode, formatNode, keyObjects } from './block-node.ts'
import { backingChain } from './disk-image.ts'
import { commandEnvironment, dyingWithParent, OutputTail } from './run-command.ts'

export interface ExportedDisk {
  readonly name: string
  readonly image: DiskImage
}

export interface DiskExportOptions {
  /** Where the socket lives: short, because a socket's path has 107 bytes at most, and closed to other users. */
  readonly directory: string
  readonly writable?: boolean
  readonly signal?: AbortSignal | undefined
}

export interface DiskExport extends AsyncDisposable {
  readonly pid: number
  readonly socketPath: string
  /** A connection of its own; the disposal of the export closes it too. */
  open(name: string, options?: Omit<NbdClientOptions, 'socketPath' | 'exportName'>): Promise<NbdDevice>
}

const startDeadlineMs = 10_000
const stopPatienceMs = 5000
const maximumSocketPathBytes = 107
const maximumStderrBytes = 4096

/** Starts serving; disposal closes the clients, stops the daemon (which writes back what it holds) and waits for it. */
export async function exportDisks(disks: readonly ExportedDisk[], options: DiskExportOptions): Promise<DiskExport> {
  const { directory, writable = false, signal } = options
  const socketPath = join(directory, `nbd-${randomBytes(4).toString('hex')}.sock`)
  if (Buffer.byteLength(socketPath) > maximumSocketPathBytes) {
    throw refused(disks, `the path of the socket is longer than ${maximumSocketPathBytes} bytes: ${socketPath}`)
  }
  for (const { image } of disks) await checkBackingChain(image)
  signal?.throwIfAborted()
  const [program, args] = dyingWithParent('qemu-storage-daemon', daemonArguments(disks, socketPath, writable))
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'], env: commandEnvironment() })
  const daemon = new StorageDaemon(child, disks, socketPath)
  try {
    await daemon.ready(signal)
  } catch (error) {
    await daemon[Symbol.asyncDispose]()
    throw error
  }
  return daemon
}

/** The daemon's arguments; JSON throughout, so that no character of a path has a meaning. */
export function daemonArguments(disks: readonly ExportedDisk[], socketPath: string, writable: boolean): string[] {
  const json = (option: string, value: unknown) => [option, JSON.stringify(value)]
  const nodes = disks.map(({ image }, i): BlockNode => formatNode(image.format, image.storage, `disk${i}`, writable))
  const exports = disks.map(({ name }, i) => ({
    type: 'nbd',
    id: `export${i}`,
    'node-name': `disk${i}`,
    name,
    writable,
  }))
  return [
    ...disks.flatMap(({ image }, i) => keyObjects(image.storage, `disk${i}`)).flatMap((key) => json('--object', key)),
    ...nodes.flatMap((node) => json('--blockdev', node)),
    ...json('--nbd-server', { addr: { type: 'unix', path: socketPath } }),
    ...exports.flatMap((each) => json('--export', each)),
    // Last, so that its greeting says that everything before it has succeeded.
    ...['--chardev', 'stdio,id=ready,signal=off', '--monitor', 'chardev=ready'],
  ]
}

async function checkBackingChain({ format, storage }: DiskImage): Promise<void> {
  const hasBackingFiles = format === 'qcow2' || format === 'qed' || format === 'vmdk'
  if (hasBackingFiles && 'file' in storage) await backingChain(storage.file, format)
}

function refused(disks: readonly ExportedDisk[], reason: string, cause?: unknown): Failure {
  return failure('DISK_EXPORT_FAILED', { disks: disks.map(({ name }) => name), reason }, cause)
}

class StorageDaemon implements DiskExport {
  readonly socketPath: string
  readonly #child: ChildProcess
  readonly #disks: readonly ExportedDisk[]
  readonly #stderr: OutputTail
  readonly #exited: Promise<void>
  readonly #clients = new Set<NbdDevice>()
  #hasExited = false
  #disposal: Promise<void> | undefined

  constructor(child: ChildProcess, disks: readonly ExportedDisk[], socketPath: string) {
    this.#child = child
    this.#disks = disks
    this.socketPath = socketPath
    this.#stderr = new OutputTail(child, maximumStderrBytes)
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#exited = promise.then(() => {
      this.#hasExited = true
    })
    child.on('close', () => resolve())
    child.on('error', () => child.pid === undefined && resolve())
    child.stdin?.on('error', () => undefined)
  }

  get pid(): number {
    return this.#child.pid ?? -1
  }

  /** Resolves with the monitor's greeting, which follows the last export. */
  async ready(signal: AbortSignal | undefined): Promise<void> {
    const greeted = new Promise<boolean>((resolve) => this.#child.stdout?.once('data', () => resolve(true)))
    const started = Promise.race([greeted, this.#exited.then(() => false)])
    const limit = { clock: systemClock, limitMs: startDeadlineMs, what: 'starting qemu-storage-daemon' }
    const inTime = withDeadline(started, limit)
    const isReady = await (signal === undefined ? inTime : untilAborted(inTime, signal))
    if (!isReady) throw refused(this.#disks, this.#lastWords())
  }

  async open(name: string, options: Omit<NbdClientOptions, 'socketPath' | 'exportName'> = {}): Promise<NbdDevice> {
    if (this.#hasExited) throw refused(this.#disks, `qemu-storage-daemon has ended: ${this.#lastWords()}`)
    const device = await connectNbd({ ...options, socketPath: this.socketPath, exportName: name })
    if (this.#disposal !== undefined) {
      await device[Symbol.asyncDispose]()
      throw refused(this.#disks, 'the export was closed meanwhile')
    }
    this.#clients.add(device)
    return device
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#disposal ??= this.#stop()
    return this.#disposal
  }

  async #stop(): Promise<void> {
    await Promise.all([...this.#clients].map((client) => client[Symbol.asyncDispose]()))
    for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
      if (this.#hasExited) break
      this.#child.kill(signal)
      const limit = { clock: systemClock, limitMs: stopPatienceMs, what: 'stopping qemu-storage-daemon' }
      await withDeadline(this.#exited, limit).catch(() => undefined)
    }
    await rm(this.socketPath, { force: true })
    if (!this.#hasExited) throw refused(this.#disks, `qemu-storage-daemon ${this.pid} cannot be killed`)
  }

  #lastWords(): string {
    const text = this.#stderr.text.trim()
    return text === '' ? `it ended with ${this.#child.signalCode ?? this.#child.exitCode}` : text
  }
}
