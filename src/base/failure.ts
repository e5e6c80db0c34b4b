/**
 * Failure: something in the world said no, told so that an operator can act on it.
 * Bugs are `invariant` violations; cancellation is the caller's AbortSignal reason and is never wrapped.
 * The codes live in src/errors.ts; this file only knows how a failure looks.
 */

export type FailureContext = Readonly<Record<string, string | number | boolean | readonly string[]>>

/** A coded failure. `message` is one sentence for the operator; `hint` says what to do; `cause` is what was underneath. */
export class Failure extends Error {
  readonly code: string
  readonly context: FailureContext
  readonly hint: string | undefined

  constructor(
    code: string,
    message: string,
    options: { context?: FailureContext; hint?: string; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = 'Failure'
    this.code = code
    this.context = options.context ?? {}
    this.hint = options.hint
  }
}

/** A broken promise of our own code. Nobody catches it except the edge of the process. */
export function invariant(condition: unknown, why: string): asserts condition {
  if (!condition) throw new Error(`bug: ${why}`)
}

/**
 * The failure that came first. `await using` hides the body's error in `.suppressed` when a disposer fails as well;
 * the body's error is what went wrong, the disposer's is what is left to clean up.
 */
export function primaryError(error: unknown): unknown {
  return error instanceof SuppressedError ? primaryError(error.suppressed) : error
}

/** The failures of disposers that ran after `primaryError`, in the order they happened. */
export function cleanupErrors(error: unknown): unknown[] {
  return error instanceof SuppressedError ? [...cleanupErrors(error.suppressed), error.error] : []
}

/** True for the reason of an aborted signal: passed through untouched, exit code 130. */
export function isCancellation(error: unknown): boolean {
  return error instanceof Error && error.name === 'AbortError'
}

/** One line for people: the message, and the messages underneath when they add something. */
export function describeError(error: unknown): string {
  const first = primaryError(error)
  if (!(first instanceof Error)) return String(first)
  const inner = first.cause === undefined ? '' : describeError(first.cause)
  return inner === '' || first.message.includes(inner) ? first.message : `${first.message}: ${inner}`
}
