/**
 * The helper VM of auto-recovery on the host: a bounded little VM with no network that gets the copies of one VM's disks
 * at a time, rolls them back with its own kernel, and gives them back. So the host's kernel never sees what is on them.
 *
 * The copies are hot-added and hot-removed. See "QEMU QMP Reference Manual" of the QEMU documentation.
 * What ran over a guest's disks is not trusted again after a failure: the VM is killed, and the next revert starts another.
 */
import { invariant } from '../base/failure.ts'
import { inSlot, openSlots } from '../base/slots.ts'
import { failure } from '../errors.ts'
import type { DiskImage } from '../vm/hypervisor.ts'
import { formatNode, keyObjects } from './block-node.ts'
import { backingChain } from './disk-image.ts'
import type { HelperVmImages } from './helper-vm-images.ts'
import { type HelperVmProcess, startHelperVmProcess } from './helper-vm-process.ts'
import { type RevertEnd, type RevertedVolume, RevertReply } from './helper-vm-replies.ts'

export interface HelperVmOptions {
  readonly images: HelperVmImages
  readonly memoryMiB?: number
  readonly signal?: AbortSignal | undefined
}

export interface CopyToRevert {
  /** How the helper VM finds it; at most 36 letters, digits, and ._- */
  readonly serial: string
  readonly image: DiskImage
}

export interface RevertOptions {
  /** Whose copies they are: for messages. */
  readonly vm: string
  readonly signal?: AbortSignal | undefined
  readonly deadlineMs?: number
}

export interface HelperVm extends AsyncDisposable {
  /** Of the QEMU that runs now. */
  readonly pid: number
  /**
   * Rolls all copies of one VM back to the guest's snapshot of `set`, and tells what was rolled back. Several calls wait
   * for each other. Rejects with GUEST_SET_LOST or HELPER_VM_FAILED; then that QEMU is gone, and the copies are released.
   */
  revert(set: string, copies: readonly CopyToRevert[], options: RevertOptions): Promise<readonly RevertedVolume[]>
}

const revertDeadlineMs = 10 * 60_000
const maximumTargets = 250

/** Resolves when it is ready for work, which takes seconds; start it early. */
export async function startHelperVm(options: HelperVmOptions): Promise<HelperVm> {
  const start = async (signal: AbortSignal | undefined) =>
    new RunningHelperVm(await startHelperVmProcess({ ...options, signal }))
  return new RenewedHelperVm(start, await start(options.signal))
}

type Start = (signal: AbortSignal | undefined) => Promise<RunningHelperVm>

/** One VM's copies at a time, and another QEMU after one that failed. */
class RenewedHelperVm implements HelperVm {
  readonly #start: Start
  readonly #turn = openSlots(1)
  #running: RunningHelperVm
  #isClosed = false

  constructor(start: Start, first: RunningHelperVm) {
    this.#start = start
    this.#running = first
  }

  get pid(): number {
    return this.#running.pid
  }

  async revert(
    set: string,
    copies: readonly CopyToRevert[],
    options: RevertOptions,
  ): Promise<readonly RevertedVolume[]> {
    invariant(/^[0-9a-f]{1,32}$/.test(set), 'a set is named by hex digits')
    invariant(copies.length > 0 && copies.length < maximumTargets, 'there are copies to revert')
    for (const { serial } of copies)
      invariant(/^[A-Za-z0-9._-]{1,36}$/.test(serial), 'a serial has no other characters')
    return inSlot(this.#turn, async () => {
      options.signal?.throwIfAborted()
      for (const { image } of copies) await checkBackingChain(image)
      if (!this.#running.isUsable && !this.#isClosed) this.#running = await this.#start(options.signal)
      return this.#running.revert(set, copies, options)
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true
    await this.#running[Symbol.asyncDispose]()
    // One that was being started meanwhile.
    await inSlot(this.#turn, () => this.#running[Symbol.asyncDispose]())
  }
}

/** One QEMU, until the first failure. */
class RunningHelperVm implements AsyncDisposable {
  readonly #process: HelperVmProcess
  #nextTarget = 0

  constructor(process: HelperVmProcess) {
    this.#process = process
  }

  get pid(): number {
    return this.#process.pid
  }

  get isUsable(): boolean {
    return this.#process.isUsable
  }

  async revert(
    set: string,
    copies: readonly CopyToRevert[],
    options: RevertOptions,
  ): Promise<readonly RevertedVolume[]> {
    const { vm, signal, deadlineMs = revertDeadlineMs } = options
    const end = await this.#process.bounded(`reverting the copies of ${vm}`, deadlineMs, signal, () =>
      this.#revert(set, copies),
    )
    if ('reverted' in end) return end.reverted
    const error = refusal(vm, end)
    await this.#process.stop(error)
    throw error
  }

  async #revert(set: string, copies: readonly CopyToRevert[]): Promise<RevertEnd> {
    const attached: { node: string; device: string; keys: string[] }[] = []
    for (const { serial, image } of copies) {
      const target = this.#nextTarget++ % maximumTargets
      const node = `copy${target}`
      const device = `disk${target}`
      const keys = keyObjects(image.storage, node)
      for (const key of keys) await this.#process.monitor.execute('object-add', key)
      await this.#process.monitor.execute('blockdev-add', formatNode(image.format, image.storage, node, true))
      const place = { bus: 'scsi.0', channel: 0, 'scsi-id': target, lun: 0 }
      await this.#process.monitor.execute('device_add', {
        driver: 'scsi-hd',
        id: device,
        drive: node,
        serial,
        ...place,
      })
      attached.push({ node, device, keys: keys.map((key) => String(key.id)) })
    }
    const reply = new RevertReply()
    const answer = this.#process.nextLines((line) => reply.take(line))
    this.#process.send(`revert ${[set, ...copies.map(({ serial }) => serial)].join(' ')}`)
    const end = await answer
    // After a failure the whole VM goes, and the copies with it.
    if (end.exit !== 0) return end
    for (const { node, device, keys } of attached) {
      await this.#process.monitor.removeDevice(device)
      // Closing an image writes back what QEMU holds of it.
      await this.#process.monitor.execute('blockdev-del', { 'node-name': node })
      for (const id of keys) await this.#process.monitor.execute('object-del', { id })
    }
    return end
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Without copies attached there is nothing to write back.
    await this.#process[Symbol.asyncDispose]()
  }
}

function refusal(vm: string, { exit, reason }: { exit: number; reason: string }) {
  const code = exit === 5 || exit === 6 ? 'GUEST_SET_LOST' : 'HELPER_VM_FAILED'
  return failure(code, { vm, reason })
}

/** QEMU must not guess the format of a backing file from what a guest has written. */
async function checkBackingChain({ format, storage }: DiskImage): Promise<void> {
  const hasBackingFiles = format === 'qcow2' || format === 'qed' || format === 'vmdk'
  if (hasBackingFiles && 'file' in storage) await backingChain(storage.file, format)
}
