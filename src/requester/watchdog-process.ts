/**
 * The process of the next watchdog, started early. It is told its session through its pipe, and ends by itself when the pipe
 * does.
 */
import { type OwnProcess, startProgram } from '../base/own-programs.ts'

let early: OwnProcess | undefined

/** Starts the process for the session that will be opened next. */
export function startEarly(): OwnProcess {
  early ??= startProgram('watchdog')
  return early
}

/** The process started early, or one that starts now. */
export function takeWatchdogProcess(): OwnProcess {
  const taken = early
  early = undefined
  return taken !== undefined && lives(taken) ? taken : startProgram('watchdog')
}

/** One that was killed before its session began guards nobody. */
const lives = ({ child }: OwnProcess): boolean => child.exitCode === null && child.signalCode === null
