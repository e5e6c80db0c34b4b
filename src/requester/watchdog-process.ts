/**
 * The process of a watchdog. It takes as long to start as Umbra itself: whoever knows early that a session will come starts
 * it then, and the session finds it ready. It is told its session through its pipe, and ends by itself when the pipe does.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

export interface WatchdogProcess {
  readonly child: ChildProcess
  /** Why it could not be started. */
  readonly error: () => Error | undefined
}

const main = fileURLToPath(new URL('../cli/watchdog-main.ts', import.meta.url))
/** With as little memory as bin/umbra gives Umbra. */
const command = [process.execPath, '--max-semi-space-size=4', main]
let early: WatchdogProcess | undefined

/** Starts the process for the session that will be opened next. */
export function startEarly(): WatchdogProcess {
  early ??= spawnWatchdog(command)
  return early
}

/** The process started early, or one that starts now. */
export function takeWatchdogProcess(): WatchdogProcess {
  const taken = early
  early = undefined
  return taken !== undefined && lives(taken) ? taken : spawnWatchdog(command)
}

/** One that was killed before its session began guards nobody. */
const lives = ({ child }: WatchdogProcess): boolean => child.exitCode === null && child.signalCode === null

export function spawnWatchdog([program = '', ...args]: readonly string[]): WatchdogProcess {
  // Detached: a terminal's ^C is not for the watchdog.
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'ignore'], detached: true })
  let failed: Error | undefined
  child.on('error', (error) => {
    failed = error
  })
  child.stdin?.on('error', () => undefined) // it has ended; nothing to tell it any more
  return { child, error: () => failed }
}
