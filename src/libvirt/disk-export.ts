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
import { randomBytes } from 'node:crypto'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { Failure } from '../base/failure.ts'
import { dyingWithParent } from '../base/run-command.ts'
import { connectNbd, type NbdClientOptions, type NbdDevice } from '../disk/nbd-client.ts'
import { failure } from '../errors.ts'
import type { DiskImage } from '../vm/hypervisor.ts'
import { type BlockNode, formatNode, keyObjects } from './block-node.ts'
import { backingChain } from './disk-image.ts'
import { readyArguments, StorageDaemon } from './storage-daemon.ts'

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

const maximumSocketPathBytes = 107

/** Starts serving; disposal closes the clients, stops the daemon (which writes back what it holds) and waits for it. */
export async function exportDisks(disks: readonly ExportedDisk[], options: DiskExportOptions): Promise<DiskExport> {
  const { directory, writable = false, signal } = options
  const socketPath = join(directory, `nbd-${randomBytes(4).toString('hex')}.sock`)
  const refused = (reason: string) => failure('DISK_EXPORT_FAILED', { disks: disks.map(({ name }) => name), reason })
  if (Buffer.byteLength(socketPath) > maximumSocketPathBytes)
    throw refused(`the path of the socket is longer than ${maximumSocketPathBytes} bytes: ${socketPath}`)
  for (const { image } of disks) await checkBackingChain(image)
  signal?.throwIfAborted()
  const command = dyingWithParent('qemu-storage-daemon', daemonArguments(disks, socketPath, writable))
  const daemon = new StorageDaemon(command, refused)
  const served = new ServedDisks(daemon, socketPath, refused)
  try {
    await daemon.ready(signal)
  } catch (error) {
    await served[Symbol.asyncDispose]()
    throw error
  }
  return served
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
    ...readyArguments,
  ]
}

async function checkBackingChain({ format, storage }: DiskImage): Promise<void> {
  const hasBackingFiles = format === 'qcow2' || format === 'qed' || format === 'vmdk'
  if (hasBackingFiles && 'file' in storage) await backingChain(storage.file, format)
}

class ServedDisks implements DiskExport {
  readonly socketPath: string
  readonly #daemon: StorageDaemon
  readonly #refused: (reason: string) => Failure
  readonly #clients = new Set<NbdDevice>()
  #disposal: Promise<void> | undefined

  constructor(daemon: StorageDaemon, socketPath: string, refused: (reason: string) => Failure) {
    this.#daemon = daemon
    this.#refused = refused
    this.socketPath = socketPath
  }

  get pid(): number {
    return this.#daemon.pid
  }

  async open(name: string, options: Omit<NbdClientOptions, 'socketPath' | 'exportName'> = {}): Promise<NbdDevice> {
    if (this.#daemon.hasEnded) throw this.#refused(`qemu-storage-daemon has ended: ${this.#daemon.lastWords()}`)
    const device = await connectNbd({ ...options, socketPath: this.socketPath, exportName: name })
    if (this.#disposal !== undefined) {
      await device[Symbol.asyncDispose]()
      throw this.#refused('the export was closed meanwhile')
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
    await using stack = new AsyncDisposableStack()
    stack.defer(() => rm(this.socketPath, { force: true }))
    stack.use(this.#daemon)
  }
}
