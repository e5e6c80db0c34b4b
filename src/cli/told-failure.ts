/**
 * A failure as it is told: the same code, message and hint as one JSON document or as two lines for people, and the exit
 * code that goes with it. docs/errors.md lists the codes.
 */
import {
  cleanupErrors,
  describeError,
  Failure,
  type FailureContext,
  isCancellation,
  primaryError,
} from '../base/failure.ts'
import { errorEntry, failure } from '../errors.ts'
import { oneLine } from './output.ts'
import type { Screen } from './screen.ts'

export const exitCodes = { done: 0, failed: 1, usage: 2, leftovers: 3, cancelled: 130 } as const

export interface ToldFailure {
  readonly code: string
  readonly message: string
  readonly hint: string
  readonly context: FailureContext
  /** What could not be put back. */
  readonly cleanup?: readonly string[]
}

export interface FailureEnd {
  readonly told: ToldFailure
  readonly exitCode: number
  /** Only of a bug. */
  readonly trace?: string
}

/** `cancelled`: the user had asked to stop; what then failed, failed because of that. */
export function tellFailure(error: unknown, cancelled: boolean): FailureEnd {
  const left = cleanupErrors(error).map(describeError)
  const end = tellPrimary(primaryError(error), cancelled)
  return left.length === 0 ? end : { ...end, told: { ...end.told, cleanup: left } }
}

function tellPrimary(error: unknown, cancelled: boolean): FailureEnd {
  if (isCancellation(error)) {
    const hint = 'Everything that had been begun was put back.'
    return { told: { code: 'CANCELLED', message: 'cancelled', hint, context: {} }, exitCode: exitCodes.cancelled }
  }
  const known = error instanceof Failure ? error : hostFailure(error)
  if (known === undefined) return tellBug(error)
  const { code, message, hint = '', context } = known
  const exitCode = cancelled ? exitCodes.cancelled : (errorEntry(known)?.exitCode ?? exitCodes.failed)
  return { told: { code, message: oneLine(message), hint, context }, exitCode }
}

/** The operating system said no where nobody expected it: still the world's fault, not a bug. */
function hostFailure(error: unknown): Failure | undefined {
  if (!(error instanceof Error) || !('syscall' in error)) return undefined
  return failure('HOST_IO', { reason: error.message }, error)
}

function tellBug(error: unknown): FailureEnd {
  const message = oneLine(describeError(error))
  const trace = error instanceof Error ? error.stack : undefined
  return {
    told: { code: 'BUG', message, hint: 'This is a mistake in Umbra: report it with the trace.', context: {} },
    exitCode: exitCodes.failed,
    ...(trace === undefined ? {} : { trace }),
  }
}

/** Prints the end that a failure is. With --json: one document. */
export async function printFailure({ told, trace }: FailureEnd, screen: Screen, json: boolean): Promise<void> {
  if (trace !== undefined) screen.noteMore(trace)
  if (!json) {
    screen.note(told.message)
    screen.noteMore(`  -> ${told.cleanup === undefined ? told.hint : 'Run umbra recover once the cause is gone.'}`)
    for (const step of told.cleanup ?? []) screen.noteMore(`  left: ${oneLine(step)}`)
  }
  await screen.result({ error: told }, '')
}
