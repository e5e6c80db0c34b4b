/**
 * The watchdog: a second process that outlives a killed Umbra. It is connected and ready before the first Freeze; a pipe
 * tells it what is going on. When the pipe breaks without a farewell it replays the session's journal at once; when a
 * freeze lasts beyond its window, because Umbra hangs, it thaws. The other end is src/cli/watchdog-main.ts.
 */
import { once } from 'node:events'
import { withDeadline } from '../base/async.ts'
import { type Clock, systemClock } from '../base/clock.ts'
import type { OwnProcess } from '../base/own-programs.ts'
import { failure } from '../errors.ts'
import type { QuietDuringFreeze } from '../vss/windows.ts'

/** Beyond the freeze window, before the watchdog steps in. */
const graceMs = 2000

export interface Watchdog extends QuietDuringFreeze, AsyncDisposable {
  readonly pid: number
}

export interface WatchdogOptions {
  readonly process: OwnProcess
  /** Path of the session's journal. */
  readonly journal: string
  readonly clock?: Clock
  readonly startDeadlineMs?: number
}

/** Tells the process its session; resolves when it is ready. Disposal says farewell and waits for its end. */
export async function startWatchdog(options: WatchdogOptions): Promise<Watchdog> {
  const { child } = options.process
  child.stdin?.write(`${options.journal}\n`)
  const limit = {
    clock: options.clock ?? systemClock,
    limitMs: options.startDeadlineMs ?? 20_000,
    what: 'the start of the watchdog',
  }
  try {
    await withDeadline(readiness(options.process), limit)
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

async function readiness({ child, error }: OwnProcess): Promise<void> {
  const tooEarly = (code: unknown) => {
    throw failure('SESSION_INTERRUPTED', { steps: `the watchdog ended at its start with code ${code}` })
  }
  const before = error()
  if (before !== undefined) throw before
  if (child.exitCode !== null || child.signalCode !== null) tooEarly(child.exitCode ?? child.signalCode)
  const ready = once(child.stdout ?? child, 'data')
  const ended = once(child, 'exit').then(([code]) => tooEarly(code))
  const failed = once(child, 'error').then(([told]) => {
    throw told
  })
  await Promise.race([ready, ended, failed])
  for (const late of [ended, failed]) late.catch(() => undefined)
}

/** The watchdog's side: what it is told, line by line; a line cut short by the end is none. */
export async function* linesOf(input: NodeJS.ReadableStream): AsyncGenerator<string, undefined> {
  let rest = ''
  for await (const data of input) {
    const lines = (rest + String(data)).split('\n')
    rest = lines.pop() ?? ''
    yield* lines
  }
}

/** Follows a session to its end, after the line with its journal; answers whether the session said farewell. */
export async function followSession(
  lines: AsyncIterable<string>,
  clock: Clock,
  onOverdue: () => Promise<void>,
): Promise<'farewell' | 'broken off'> {
  let timer: { cancel(): void } | undefined
  let farewell = false
  for await (const line of lines) {
    timer?.cancel()
    if (line === 'end') farewell = true
    const hold = /^hold (\d+)$/.exec(line)
    if (hold !== null) timer = clock.timer(Number(hold[1]), () => void onOverdue().catch(() => undefined))
  }
  timer?.cancel()
  return farewell ? 'farewell' : 'broken off'
}
