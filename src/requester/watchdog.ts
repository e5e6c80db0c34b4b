/**
 * The watchdog: a second process that outlives a killed Umbra. It is connected and ready before the first Freeze; a pipe
 * tells it what is going on. When the pipe breaks without a farewell it replays the session's journal at once; when a
 * freeze lasts beyond its window, because Umbra hangs, it thaws. The other end is src/cli/watchdog-main.ts.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { withDeadline } from '../base/async.ts'
import { type Clock, systemClock } from '../base/clock.ts'
import { failure } from '../errors.ts'
import type { QuietDuringFreeze } from '../vss/windows.ts'

/** Beyond the freeze window, before the watchdog steps in. */
const graceMs = 2000

export interface Watchdog extends QuietDuringFreeze, AsyncDisposable {
  readonly pid: number
}

export interface WatchdogOptions {
  /** Program and arguments of the watchdog process. */
  readonly command: readonly string[]
  readonly clock?: Clock
  readonly startDeadlineMs?: number
}

/** Starts the watchdog; resolves when it is ready. Disposal says farewell and waits for its end. */
export async function startWatchdog(options: WatchdogOptions): Promise<Watchdog> {
  const [program = '', ...args] = options.command
  // Detached: a terminal's ^C is not for the watchdog.
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'ignore'], detached: true })
  child.stdin?.on('error', () => undefined) // it has ended; nothing to tell it any more
  const limit = {
    clock: options.clock ?? systemClock,
    limitMs: options.startDeadlineMs ?? 20_000,
    what: 'the start of the watchdog',
  }
  try {
    await withDeadline(readiness(child), limit)
  } catch (error) {
    child.kill('SIGKILL')
    throw error
  }
  child.unref()
  return {
    pid: child.pid ?? 0,
    hold: (windowMs) => void child.stdin?.write(`hold ${windowMs + graceMs}\n`),
    release: () => void child.stdin?.write('release\n'),
    async [Symbol.asyncDispose]() {
      if (child.exitCode !== null || child.signalCode !== null) return
      const ended = once(child, 'exit')
      child.stdin?.end('end\n')
      await ended
    },
  }
}

async function readiness(child: ChildProcess): Promise<void> {
  const ready = once(child.stdout ?? child, 'data')
  const ended = once(child, 'exit').then(([code]) => {
    throw failure('SESSION_INTERRUPTED', { steps: `the watchdog ended at its start with code ${code}` })
  })
  const failed = once(child, 'error').then(([error]) => {
    throw error
  })
  await Promise.race([ready, ended, failed])
  for (const late of [ended, failed]) late.catch(() => undefined)
}

/** The watchdog's side: reads what it is told until the end; answers whether the session said farewell. */
export async function followSession(
  input: NodeJS.ReadableStream,
  clock: Clock,
  onOverdue: () => Promise<void>,
): Promise<'farewell' | 'broken off'> {
  let timer: { cancel(): void } | undefined
  let rest = ''
  let farewell = false
  for await (const data of input) {
    const lines = (rest + String(data)).split('\n')
    rest = lines.pop() ?? ''
    for (const line of lines) {
      timer?.cancel()
      if (line === 'end') farewell = true
      const hold = /^hold (\d+)$/.exec(line)
      if (hold !== null) timer = clock.timer(Number(hold[1]), () => void onOverdue().catch(() => undefined))
    }
  }
  timer?.cancel()
  return farewell ? 'farewell' : 'broken off'
}
