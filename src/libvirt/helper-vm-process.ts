/**
 * One QEMU that runs the helper VM: Umbra's own kernel and initramfs, without network or disk of its own. It talks on one
 * virtio-serial port (helper-vm/init) and is killed at the first thing that goes wrong, because it has seen what guests have
 * written. See "QEMU Invocation" and "QEMU QMP Reference Manual" of the QEMU documentation.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import type { Duplex } from 'node:stream'
import { untilAborted, withDeadline } from '../base/async.ts'
import { systemClock } from '../base/clock.ts'
import { invariant } from '../base/failure.ts'
import { commandEnvironment, dyingWithParent, OutputTail } from '../base/run-command.ts'
import { failure } from '../errors.ts'
import { hardwareVirtualisation } from './hardware-virtualisation.ts'
import type { HelperVmImages } from './helper-vm-images.ts'
import { HelperVmMonitor } from './helper-vm-monitor.ts'
import { BoundedLines, forPeople } from './helper-vm-replies.ts'

export interface HelperVmStart {
  readonly images: HelperVmImages
  readonly memoryMiB?: number
  /** More words for QEMU: the disks it has from the beginning. */
  readonly devices?: readonly string[]
  /** The largest file that it may write; without it, as large as it likes. */
  readonly largestFileBytes?: number
  readonly signal?: AbortSignal | undefined
}

const bootDeadlineMs = 180_000
const stopPatienceMs = 10_000
const maximumStderrBytes = 4096
/** What waits to be read before QEMU is let wait. */
const mostWaitingBytes = 4 * 1024 * 1024
const sandbox = 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'

/** Resolves when it is ready for work, which takes seconds. HELPER_VM_FAILED. */
export async function startHelperVmProcess(options: HelperVmStart): Promise<HelperVmProcess> {
  const accelerated = (await hardwareVirtualisation()).found === 'usable'
  try {
    return await boot(options, helperVmArguments(options, accelerated, true))
  } catch (error) {
    // A QEMU that was built without seccomp.
    if (!/sandbox|seccomp/i.test(String(error))) throw error
    return await boot(options, helperVmArguments(options, accelerated, false))
  }
}

async function boot({ largestFileBytes, signal }: HelperVmStart, args: readonly string[]): Promise<HelperVmProcess> {
  signal?.throwIfAborted()
  const limit = largestFileBytes === undefined ? [] : ['prlimit', `--fsize=${largestFileBytes}`]
  const [command = '', ...words] = [...limit, 'qemu-system-x86_64', ...args]
  const [program, programArgs] = dyingWithParent(command, words)
  // The monitor is on standard input and output, the port on the fourth stream: nothing lies in a directory.
  const child = spawn(program, programArgs, { stdio: ['pipe', 'pipe', 'pipe', 'pipe'], env: commandEnvironment() })
  const vm = new HelperVmProcess(child)
  try {
    await vm.ready(signal)
  } catch (error) {
    await vm[Symbol.asyncDispose]()
    throw error
  }
  return vm
}

export function helperVmArguments(options: HelperVmStart, accelerated: boolean, sandboxed: boolean): string[] {
  const { images, memoryMiB = 256, devices = [] } = options
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
    ...devices,
  ]
}

export class HelperVmProcess implements AsyncDisposable {
  readonly #child: ChildProcess
  readonly monitor: HelperVmMonitor
  readonly #port: Duplex
  readonly #stderr: OutputTail
  readonly #exited: Promise<void>
  #onLine: (line: string) => void
  #onBytes: (bytes: Buffer) => void
  #onEnd: (reason: unknown) => void = () => undefined
  #broken: { readonly reason: unknown } | undefined
  #startError = ''

  constructor(child: ChildProcess) {
    this.#child = child
    this.#stderr = new OutputTail(child, maximumStderrBytes)
    const { stdin, stdout } = child
    const port = child.stdio[3] as Duplex | null
    invariant(stdin && stdout && port, 'the helper VM has its streams')
    this.monitor = new HelperVmMonitor(stdout, stdin)
    this.#port = port
    this.#onLine = () => this.#break(failure('HELPER_VM_FAILED', { reason: 'it speaks without being asked' }))
    const lines = new BoundedLines()
    this.#onBytes = (bytes) => {
      for (const line of lines.take(bytes)) this.#onLine(line)
    }
    port.on('error', (error) => this.#break(error))
    port.on('data', (bytes: Buffer) => {
      try {
        this.#onBytes(bytes)
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
    await this.bounded('starting the helper VM', bootDeadlineMs, signal, async () => {
      const ready = this.nextLines((line) => (line === 'ready' ? true : undefined))
      await this.monitor.execute('qmp_capabilities')
      await ready
    })
  }

  /** Gives lines to `take` until it answers something. */
  nextLines<T>(take: (line: string) => T | undefined): Promise<T> {
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

  /** One line for helper-vm/init. */
  send(line: string): void {
    this.#port.write(`${line}\n`)
  }

  /**
   * Sends a line, and gives what comes until the caller breaks off. Each wait for more is bounded; the caller's own time is
   * not, and meanwhile only a few MiB are taken. Whoever breaks off before the answer's end must end the VM.
   */
  async *bytesAfter(line: string, what: string, limitMs: number, signal?: AbortSignal): AsyncGenerator<Buffer> {
    const silent = this.#onBytes
    const arrived: Buffer[] = []
    let waitingBytes = 0
    let more = Promise.withResolvers<void>()
    this.#onBytes = (bytes) => {
      arrived.push(bytes)
      waitingBytes += bytes.length
      if (waitingBytes > mostWaitingBytes) this.#port.pause()
      more.resolve()
    }
    try {
      this.send(line)
      for (;;) {
        await this.bounded(what, limitMs, signal, () => more.promise)
        more = Promise.withResolvers()
        const parts = arrived.splice(0)
        waitingBytes = 0
        this.#port.resume()
        yield* parts
      }
    } finally {
      this.#onBytes = silent
    }
  }

  /** Does it, or breaks the VM: when it fails, takes too long, is cancelled, or QEMU ends. */
  async bounded<T>(what: string, limitMs: number, signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    if (this.#broken !== undefined) throw this.#broken.reason
    const ended = Promise.withResolvers<never>()
    this.#onEnd = ended.reject
    ended.promise.catch(() => undefined)
    try {
      const done = withDeadline(Promise.race([work(), ended.promise]), { clock: systemClock, limitMs, what })
      return await (signal === undefined ? done : untilAborted(done, signal))
    } catch (error) {
      await this.stop(error)
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
    this.monitor.end(reason)
    this.#onEnd(reason)
    this.#child.kill('SIGKILL')
  }

  async stop(reason: unknown): Promise<void> {
    this.#break(reason)
    const limit = { clock: systemClock, limitMs: stopPatienceMs, what: 'ending the helper VM' }
    await withDeadline(this.#exited, limit)
    this.#port.destroy()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Without copies attached there is nothing to write back.
    await this.stop(failure('HELPER_VM_FAILED', { reason: 'it was closed' }))
  }

  #lastWords(): string {
    const text = forPeople(this.#stderr.text) || this.#startError
    return text === '' ? `with ${this.#child.signalCode ?? this.#child.exitCode}` : text
  }
}
