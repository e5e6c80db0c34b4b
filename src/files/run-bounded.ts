/**
 * Runs one program to its end, never longer than allowed: it has a process group of its own, which is killed as a whole
 * when the time is up or the session is cancelled, and it dies with us. What it leaves in the background on purpose, after
 * a good end, goes on. See Node's "Child process" and setpriv(1).
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { failure } from '../errors.ts'

export interface BoundedRun {
  readonly limitMs: number
  readonly environment?: Readonly<Record<string, string>>
  readonly signal?: AbortSignal
  /** An open file that the program finds as its file descriptor 3. */
  readonly fd?: number
}

const keptBytes = 2048

/** Rejects with COMMAND_FAILED, DEADLINE_EXCEEDED or the signal's reason; the program is gone by then. */
export async function runBounded(command: string, args: readonly string[], run: BoundedRun): Promise<void> {
  const { limitMs, environment = {}, signal, fd } = run
  signal?.throwIfAborted()
  const what = [command, ...args].join(' ').slice(0, 200)
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', command, ...args], {
    stdio: ['ignore', 'ignore', 'pipe', ...(fd === undefined ? [] : [fd])],
    env: { ...process.env, LC_ALL: 'C', LANGUAGE: '', ...environment },
    detached: true,
  })
  let said = Buffer.alloc(0)
  child.stderr?.on('data', (bytes: Buffer) => {
    said = Buffer.concat([said, bytes]).subarray(-keptBytes)
  })
  let stopped: Error | undefined
  const stop = (reason: Error) => {
    stopped ??= reason
    killGroup(child)
  }
  const timer = setTimeout(() => stop(failure('DEADLINE_EXCEEDED', { what, limitMs })), limitMs)
  const onAbort = () => stop(signal?.reason as Error)
  signal?.addEventListener('abort', onAbort, { once: true })
  try {
    const end = await ended(child)
    if (stopped !== undefined) throw stopped
    if (end === '0') return
    const reason = said
      .toString('utf8')
      .trim()
      .replace(/\s*\n\s*/g, '; ')
    throw failure('COMMAND_FAILED', { command: what, reason: reason || `it ended with ${end}` })
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', onAbort)
    child.stderr?.destroy() // what runs on in the background may hold it open
  }
}

function killGroup({ pid }: ChildProcess): void {
  if (pid === undefined) return
  try {
    process.kill(-pid, 'SIGKILL')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}

function ended(child: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    child.on('error', (error) =>
      reject(failure('COMMAND_FAILED', { command: 'setpriv', reason: error.message }, error)),
    )
    // Not `close`: a background process that inherited standard error would put that off. What was said before the end
    // has arrived by the next turn.
    child.on('exit', (status, signal) => setImmediate(() => resolve(String(signal ?? status))))
  })
}
