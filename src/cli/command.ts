/**
 * What every command is given, what it answers, and what most of them do first: replay interrupted sessions, open the
 * hypervisor and the repository.
 */
import type { Command } from 'commander'
import { describeError } from '../base/failure.ts'
import { recover } from '../compose.ts'
import type { Configuration } from '../config.ts'
import { failure } from '../errors.ts'
import { openRepository, type Repository, type Unlock } from '../repository/repository.ts'
import type { BackendLimits } from '../repository/storage/limited-backend.ts'
import type { Recovered } from '../requester/journal.ts'
import { countText } from './output.ts'
import { unlockOf } from './passphrase.ts'
import type { Screen } from './screen.ts'

export interface CommandContext {
  readonly settings: Configuration
  /** Aborts with the first SIGINT or SIGTERM. */
  readonly signal: AbortSignal
  readonly screen: Screen
}

/** The end of a command: one document for programs, text for people. */
export interface Report {
  readonly document: unknown
  readonly text: string
  /** 0 unless told: 1 damage was found, 3 something is left to clean up. */
  readonly exitCode?: 0 | 1 | 3
}

export interface RunOptions {
  /** The command itself ends when the signal aborts, and puts everything back; others are left where they stand. */
  readonly unwinds?: boolean
}

/** Runs a command with what the global options say. */
export type Run = (command: (context: CommandContext) => Promise<Report>, options?: RunOptions) => Promise<void>

/** Adds one verb to the program. */
export type AddCommand = (program: Command, run: Run) => void

/**
 * Replays what interrupted sessions left, and tells what it did. When a step fails listings `continue`, because they
 * change nothing; what would build upon it must `refuse`.
 */
export async function recoverFirst(
  { settings, screen }: CommandContext,
  whenNotUndone: 'continue' | 'refuse',
): Promise<void> {
  const failed: string[] = []
  try {
    for (const recovered of await recover(settings)) {
      screen.note(recoveredText(recovered))
      failed.push(...recovered.failed)
    }
  } catch (error) {
    failed.push(describeError(error))
  }
  if (failed.length === 0) return
  const told = failure('SESSION_INTERRUPTED', { steps: failed })
  if (whenNotUndone === 'refuse') throw told
  screen.note(`${told.message} (go on: nothing is changed here)`)
}

export function recoveredText({ what, startedAt, undone, failed }: Recovered): string {
  const steps = undone.length === 0 ? 'there was nothing to undo' : `${countText(undone.length, 'step')} undone`
  const kept = failed.length === 0 ? '' : `, ${countText(failed.length, 'step')} could not be`
  return `the ${what} begun ${startedAt} was interrupted: ${steps}${kept}`
}

export function repositoryDirectory({ repository }: Configuration): string {
  if (repository !== undefined) return repository
  throw failure('USAGE', {
    reason: 'no repository is named: use --repository, UMBRA_REPOSITORY, or repository: in the configuration file',
  })
}

/** With the key that was named, else one that a terminal is asked for; with `unlock` it is asked for once. */
export async function openSettledRepository(
  settings: Configuration,
  limits: BackendLimits = {},
  unlock: Unlock = unlockOf(settings),
): Promise<Repository> {
  return openRepository(repositoryDirectory(settings), { ...limits, unlock })
}
