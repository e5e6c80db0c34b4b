/**
 * One qemu-storage-daemon that belongs to this process: started, ready, ended. See "QEMU Storage Daemon" of the QEMU
 * documentation.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { untilAborted, withDeadline } from '../base/async.ts'
import { systemClock } from '../base/clock.ts'
import { commandEnvironment, OutputTail } from '../base/run-command.ts'

const startDeadlineMs = 20_000
const stopPatienceMs = 10_000
const maximumStderrBytes = 4096

/** Last among the arguments: its greeting says that everything before it has succeeded. */
export const readyArguments: readonly string[] = [
  '--chardev',
  'stdio,id=ready,signal=off',
  '--monitor',
  'chardev=ready',
]

/** Disposal ends it, and resolves when it has: what it holds is written back by then. */
export class StorageDaemon implements AsyncDisposable {
  /** Resolves with its last words. */
  readonly ended: Promise<string>
  readonly #child: ChildProcess
  readonly #refused: (reason: string) => Error
  readonly #stderr: OutputTail
  readonly #exited = Promise.withResolvers<void>()
  #hasExited = false

  /** `refused` makes the error of whoever needs it, with the reason. The arguments end with `readyArguments`. */
  constructor([program, args]: readonly [string, readonly string[]], refused: (reason: string) => Error) {
    const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'], env: commandEnvironment() })
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
    this.ended = this.#exited.promise.then(() => this.lastWords())
  }

  get pid(): number {
    return this.#child.pid ?? -1
  }

  get hasEnded(): boolean {
    return this.#hasExited
  }

  /** Resolves with the monitor's greeting. */
  async ready(signal: AbortSignal | undefined): Promise<void> {
    const greeted = new Promise<boolean>((resolve) => this.#child.stdout?.once('data', () => resolve(true)))
    const started = Promise.race([greeted, this.#exited.promise.then(() => false)])
    const limit = { clock: systemClock, limitMs: startDeadlineMs, what: 'starting qemu-storage-daemon' }
    const inTime = withDeadline(started, limit)
    const isReady = await (signal === undefined ? inTime : untilAborted(inTime, signal))
    if (!isReady) throw this.#refused(this.lastWords())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
      if (this.#hasExited) break
      this.#child.kill(signal)
      const limit = { clock: systemClock, limitMs: stopPatienceMs, what: 'stopping qemu-storage-daemon' }
      await withDeadline(this.#exited.promise, limit).catch(() => undefined)
    }
    if (!this.#hasExited) throw this.#refused(`qemu-storage-daemon ${this.pid} can not be ended`)
  }

  lastWords(): string {
    const text = this.#stderr.text.trim()
    return text === '' ? `qemu-storage-daemon ended with ${this.#child.signalCode ?? this.#child.exitCode}` : text
  }
}
