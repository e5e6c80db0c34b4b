/**
 * Runs one program to its end: an argument list and never a shell, LC_ALL=C, bounded output, a deadline.
 * See Node's "Child process". When the promise settles, the program is gone.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { failure } from '../errors.ts'

export interface RunOptions {
  readonly deadlineMs: number
  /** What the program reads from its standard input; without it, nothing. */
  readonly input?: string | Uint8Array
  readonly signal?: AbortSignal | undefined
  /** Kills the program when this process dies, even by kill -9: for what holds a lock on an image. */
  readonly diesWithUs?: boolean
  /**
   * For a program that starts others: it has a process group of its own, which is killed as a whole. What it leaves in the
   * background on purpose, after its end, goes on and is not waited for; its standard output is nobody's.
   */
  readonly hasOwnGroup?: boolean
  /** Beside ours. */
  readonly environment?: Readonly<Record<string, string>>
  /** An open file that the program finds as its file descriptor 3. */
  readonly fd?: number
}

export interface CommandOutput {
  readonly stdout: string
  readonly stderr: string
}

const maximumStdoutBytes = 16 * 1024 * 1024
const maximumStderrBytes = 4096

/** Rejects with COMMAND_FAILED when the program cannot run or says no, DEADLINE_EXCEEDED, or the signal's reason. */
export async function runCommand(
  command: string,
  args: readonly string[],
  options: RunOptions,
): Promise<CommandOutput> {
  const { deadlineMs, input, signal, diesWithUs = false, hasOwnGroup = false, environment, fd } = options
  signal?.throwIfAborted()
  const [program, programArgs] = diesWithUs ? dyingWithParent(command, args) : [command, args]
  const child = spawn(program, programArgs, {
    stdio: [
      input === undefined ? 'ignore' : 'pipe',
      hasOwnGroup ? 'ignore' : 'pipe',
      'pipe',
      ...(fd === undefined ? [] : [fd]),
    ],
    env: { ...commandEnvironment(), ...environment },
    detached: hasOwnGroup,
  })
  const stdout = new OutputHead(child, maximumStdoutBytes)
  const stderr = new OutputTail(child, maximumStderrBytes)
  const refuse = (reason: string, cause?: unknown) =>
    failure('COMMAND_FAILED', { command: commandLine(command, args), reason }, cause)
  let stop: { readonly reason: unknown } | undefined
  const kill = (reason: unknown) => {
    stop ??= { reason }
    if (hasOwnGroup) killGroup(child)
    else child.kill('SIGKILL')
    child.stdout?.destroy()
    child.stderr?.destroy()
  }
  stdout.onOverflow = () => kill(refuse(`it wrote more than ${maximumStdoutBytes} bytes`))
  const onAbort = () => kill(signal?.reason)
  signal?.addEventListener('abort', onAbort, { once: true })
  const what = commandLine(command, args)
  const timer = setTimeout(() => kill(failure('DEADLINE_EXCEEDED', { what, limitMs: deadlineMs })), deadlineMs)
  try {
    // A program that does not read its input to the end has its reasons, and says them by its exit status.
    child.stdin?.on('error', () => undefined)
    child.stdin?.end(input)
    const end = await ended(child, hasOwnGroup)
    if (stop !== undefined) throw stop.reason
    if (end.error !== undefined) throw refuse(end.error.message, end.error)
    if (end.status !== '0') throw refuse(oneLine(stderr.text) || `it ended with ${end.status}`)
    return { stdout: stdout.text, stderr: stderr.text }
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', onAbort)
    child.stderr?.destroy() // what runs on in the background may hold it open
  }
}

/** The environment of every program we start: messages that can be read by us and by whoever reads a report. */
export function commandEnvironment(): NodeJS.ProcessEnv {
  return { ...process.env, LC_ALL: 'C', LANGUAGE: '' }
}

/**
 * The same program, killed by the kernel when the thread that starts it ends. Start it from the main thread.
 * The setting survives exec but not fork, so the program must not put itself in the background.
 */
export function dyingWithParent(command: string, args: readonly string[]): [string, string[]] {
  return ['setpriv', ['--pdeathsig', 'KILL', '--', command, ...args]]
}

/** The last part of what a program says on standard error: the reason for its end is there. */
export class OutputTail {
  readonly #limit: number
  #bytes = Buffer.alloc(0)

  constructor({ stderr }: ChildProcess, limit: number) {
    this.#limit = limit
    stderr?.on('data', (bytes: Buffer) => {
      this.#bytes = Buffer.concat([this.#bytes, bytes]).subarray(-this.#limit)
    })
  }

  get text(): string {
    return this.#bytes.toString('utf8')
  }
}

/** Standard output as a whole, up to a limit. */
class OutputHead {
  onOverflow: () => void = () => undefined
  readonly #parts: Buffer[] = []
  #length = 0

  constructor({ stdout }: ChildProcess, limit: number) {
    stdout?.on('data', (bytes: Buffer) => {
      this.#length += bytes.length
      if (this.#length > limit) this.onOverflow()
      else this.#parts.push(bytes)
    })
  }

  get text(): string {
    return Buffer.concat(this.#parts).toString('utf8')
  }
}

/** Its streams are waited for too, unless others may hold them open: then what was said before the end has arrived by the next turn. */
function ended(child: ChildProcess, mayLeaveOthers: boolean): Promise<{ status: string; error?: Error }> {
  return new Promise((resolve) => {
    child.on('error', (error) => {
      if (child.pid === undefined) resolve({ status: 'none', error })
    })
    const end = (status: number | null, signal: string | null) => resolve({ status: String(signal ?? status) })
    if (mayLeaveOthers) child.on('exit', (status, signal) => setImmediate(end, status, signal))
    else child.on('close', end)
  })
}

const oneLine = (text: string): string => text.trim().replace(/\s*\n\s*/g, '; ')

function killGroup({ pid }: ChildProcess): void {
  if (pid === undefined) return
  try {
    process.kill(-pid, 'SIGKILL')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}

function commandLine(command: string, args: readonly string[]): string {
  return [command, ...args].join(' ').slice(0, 300)
}
