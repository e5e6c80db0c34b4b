/**
 * The helper VM of auto-recovery on the host: a bounded little VM with no network that gets the copies of one VM's disks
 * at a time, rolls them back with its own kernel, and gives them back. So the host's kernel never sees what is on them.
 *
 * It is QEMU with a kernel and an initramfs (helper-vm/build) and talks on one virtio-serial port (helper-vm/init). The
 * copies are hot-added and hot-removed. See "QEMU Invocation" and "QEMU QMP Reference Manual" of the QEMU documentation.
 * What ran over a guest's disks is not trusted again after a failure: the VM is killed, and the next revert starts another.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import type { Duplex } from 'node:stream'
import { untilAborted, withDeadline } from '../base/async.ts'
import { systemClock } from '../base/clock.ts'
import { invariant } from '../base/failure.ts'
import { inSlot, openSlots } from '../base/slots.ts'
import { failure } from '../errors.ts'
import type { DiskImage } from '../vm/hypervisor.ts'
import { formatNode, keyObjects } from './block-node.ts'
import { backingChain } from './disk-image.ts'
import { hardwareVirtualisation } from './hardware-virtualisation.ts'
import type { HelperVmImages } from './helper-vm-images.ts'
import { HelperVmMonitor } from './helper-vm-monitor.ts'
import { BoundedLines, forPeople, type RevertEnd, type RevertedVolume, RevertReply } from './helper-vm-replies.ts'
import { commandEnvironment, dyingWithParent, OutputTail } from './run-command.ts'

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

const bootDeadlineMs = 180_000
const revertDeadlineMs = 10 * 60_000
const stopPatienceMs = 10_000
const maximumStderrBytes = 4096
const sandbox = 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'
const maximumTargets = 250

/** Resolves when it is ready for work, which takes seconds; start it early. */
export async function startHelperVm(options: HelperVmOptions): Promise<HelperVm> {
  const { found } = await hardwareVirtualisation()
  const start = async (signal: AbortSignal | undefined) => {
    try {
      return await boot(helperVmArguments(options, found === 'usable', true), signal)
    } catch (error) {
      // A QEMU that was built without seccomp.
      if (!/sandbox|seccomp/i.test(String(error))) throw error
      return await boot(helperVmArguments(options, found === 'usable', false), signal)
    }
  }
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

async function boot(args: readonly string[], signal: AbortSignal | undefined): Promise<RunningHelperVm> {
  signal?.throwIfAborted()
  const [program, programArgs] = dyingWithParent('qemu-system-x86_64', args)
  // The monitor is on standard input and output, the port on the fourth stream: nothing lies in a directory.
  const child = spawn(program, programArgs, { stdio: ['pipe', 'pipe', 'pipe', 'pipe'], env: commandEnvironment() })
  const vm = new RunningHelperVm(child)
  try {
    await vm.ready(signal)
  } catch (error) {
    await vm[Symbol.asyncDispose]()
    throw error
  }
  return vm
}

export function helperVmArguments(options: HelperVmOptions, accelerated: boolean, sandboxed: boolean): string[] {
  const { images, memoryMiB = 256 } = options
  const words = [
    // A panic ends it. Everything after that only shortens the boot, by seconds where there is no KVM.
    'quiet loglevel=3 panic=-1',
    'no_timer_check tsc=reliable mitigations=off random.trust_cpu=on cryptomgr.notests rcupdate.rcu_expedited=1',
    'initcall_blacklist=init_kprobe_trace,crypto_kdf108_init ipv6.disable=1 lsm= audit=0',
  ]
  return [
    ...['-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none', '-machine', 'q35,usb=off,hpet=off'],
    ...(accelerated
      ? ['-accel', 'kvm', '-cpu', 'host']
      : ['-accel', 'tcg,tb-size=48', '-cpu', 'qemu64,+ssse3,+sse4.2']),
    ...['-m', String(memoryMiB), '-smp', '1', '-kernel', images.kernel, '-initrd', images.initrd],
    ...['-append', words.join(' '), ...(sandboxed ? ['-sandbox', sandbox] : [])],
    ...['-chardev', 'stdio,id=monitor,signal=off', '-mon', 'chardev=monitor,mode=control'],
    ...['-chardev', 'socket,id=port,fd=3', '-device', 'virtio-serial-pci'],
    ...['-device', 'virtserialport,chardev=port,name=org.umbra.helper', '-device', 'virtio-scsi-pci,id=scsi'],
  ]
}

class RunningHelperVm implements AsyncDisposable {
  readonly #child: ChildProcess
  readonly #monitor: HelperVmMonitor
  readonly #port: Duplex
  readonly #stderr: OutputTail
  readonly #exited: Promise<void>
  #onLine: (line: string) => void
  #onEnd: (reason: unknown) => void = () => undefined
  #broken: { readonly reason: unknown } | undefined
  #startError = ''
  #nextTarget = 0

  constructor(child: ChildProcess) {
    this.#child = child
    this.#stderr = new OutputTail(child, maximumStderrBytes)
    const { stdin, stdout } = child
    const port = child.stdio[3] as Duplex | null
    invariant(stdin && stdout && port, 'the helper VM has its streams')
    this.#monitor = new HelperVmMonitor(stdout, stdin)
    this.#port = port
    this.#onLine = () => this.#break(failure('HELPER_VM_FAILED', { reason: 'it speaks without being asked' }))
    const lines = new BoundedLines()
    port.on('error', (error) => this.#break(error))
    port.on('data', (bytes: Buffer) => {
      try {
        for (const line of lines.take(bytes)) this.#onLine(line)
      } catch (error) {
        this.#break(error)
      }
    })
    const exit = Promise.withResolvers<void>()
    child.on('close', () => exit.resolve())
    child.on('error', (error) => {
      if (child.pid === undefined) exit.resolve()
      this.#startError = error.message
    })
    this.#exited = exit.promise.then(() => {
      this.#break(failure('HELPER_VM_FAILED', { reason: `it ended: ${this.#lastWords()}` }))
    })
  }

  get pid(): number {
    return this.#child.pid ?? -1
  }

  get isUsable(): boolean {
    return this.#broken === undefined
  }

  async ready(signal: AbortSignal | undefined): Promise<void> {
    await this.#bounded('starting the helper VM', bootDeadlineMs, signal, async () => {
      const ready = this.#nextLines((line) => (line === 'ready' ? true : undefined))
      await this.#monitor.execute('qmp_capabilities')
      await ready
    })
  }

  async revert(
    set: string,
    copies: readonly CopyToRevert[],
    options: RevertOptions,
  ): Promise<readonly RevertedVolume[]> {
    const { vm, signal, deadlineMs = revertDeadlineMs } = options
    const end = await this.#bounded(`reverting the copies of ${vm}`, deadlineMs, signal, () =>
      this.#revert(set, copies),
    )
    if ('reverted' in end) return end.reverted
    const error = refusal(vm, end)
    await this.#stop(error)
    throw error
  }

  async #revert(set: string, copies: readonly CopyToRevert[]): Promise<RevertEnd> {
    const attached: { node: string; device: string; keys: string[] }[] = []
    for (const { serial, image } of copies) {
      const target = this.#nextTarget++ % maximumTargets
      const node = `copy${target}`
      const device = `disk${target}`
      const keys = keyObjects(image.storage, node)
      for (const key of keys) await this.#monitor.execute('object-add', key)
      await this.#monitor.execute('blockdev-add', formatNode(image.format, image.storage, node, true))
      const place = { bus: 'scsi.0', channel: 0, 'scsi-id': target, lun: 0 }
      await this.#monitor.execute('device_add', { driver: 'scsi-hd', id: device, drive: node, serial, ...place })
      attached.push({ node, device, keys: keys.map((key) => String(key.id)) })
    }
    const reply = new RevertReply()
    const answer = this.#nextLines((line) => reply.take(line))
    this.#port.write(`revert ${[set, ...copies.map(({ serial }) => serial)].join(' ')}\n`)
    const end = await answer
    // After a failure the whole VM goes, and the copies with it.
    if (end.exit !== 0) return end
    for (const { node, device, keys } of attached) {
      await this.#monitor.removeDevice(device)
      // Closing an image writes back what QEMU holds of it.
      await this.#monitor.execute('blockdev-del', { 'node-name': node })
      for (const id of keys) await this.#monitor.execute('object-del', { id })
    }
    return end
  }

  /** Gives lines to `take` until it answers something. */
  #nextLines<T>(take: (line: string) => T | undefined): Promise<T> {
    const silent = this.#onLine
    const { promise, resolve } = Promise.withResolvers<T>()
    this.#onLine = (line) => {
      const value = take(line)
      if (value === undefined) return
      this.#onLine = silent
      resolve(value)
    }
    return promise
  }

  /** Does it, or breaks the VM: when it fails, takes too long, is cancelled, or QEMU ends. */
  async #bounded<T>(
    what: string,
    limitMs: number,
    signal: AbortSignal | undefined,
    work: () => Promise<T>,
  ): Promise<T> {
    if (this.#broken !== undefined) throw this.#broken.reason
    const ended = Promise.withResolvers<never>()
    this.#onEnd = ended.reject
    ended.promise.catch(() => undefined)
    try {
      const done = withDeadline(Promise.race([work(), ended.promise]), { clock: systemClock, limitMs, what })
      return await (signal === undefined ? done : untilAborted(done, signal))
    } catch (error) {
      await this.#stop(error)
      if (signal?.aborted) throw signal.reason
      if (error instanceof Error && 'code' in error && error.code === 'HELPER_VM_FAILED') throw error
      throw failure(
        'HELPER_VM_FAILED',
        { reason: forPeople(String(error instanceof Error ? error.message : error)) },
        error,
      )
    } finally {
      this.#onEnd = () => undefined
    }
  }

  #break(reason: unknown): void {
    this.#broken ??= { reason }
    this.#monitor.end(reason)
    this.#onEnd(reason)
    this.#child.kill('SIGKILL')
  }

  async #stop(reason: unknown): Promise<void> {
    this.#break(reason)
    const limit = { clock: systemClock, limitMs: stopPatienceMs, what: 'ending the helper VM' }
    await withDeadline(this.#exited, limit)
    this.#port.destroy()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Without copies attached there is nothing to write back.
    await this.#stop(failure('HELPER_VM_FAILED', { reason: 'it was closed' }))
  }

  #lastWords(): string {
    const text = forPeople(this.#stderr.text) || this.#startError
    return text === '' ? `with ${this.#child.signalCode ?? this.#child.exitCode}` : text
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
