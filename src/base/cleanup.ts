/**
 * Cleanup: named undo steps, last in first out, each with its own deadline, all of them run, one error at the end.
 * Laws 1 to 3: a step is registered before the deed; it is data, and its handler is idempotent; it never sees the
 * caller's cancelled signal. The same records stand in the journal on disk (UndoLog), so that a crash is undone by the
 * same handlers in another process.
 */
import { failure } from '../errors.ts'
import { withDeadline } from './async.ts'
import { type Clock, systemClock } from './clock.ts'
import { describeError } from './failure.ts'

export type Json = string | number | boolean | null | readonly Json[] | { readonly [key: string]: Json | undefined }
export type JsonObject = { readonly [key: string]: Json | undefined }

/** What to undo, by name, with everything its handler needs in another process. */
export interface UndoRecord extends JsonObject {
  readonly undo: string
}

/** Puts one record right. Idempotent; resolves also when there was nothing to do. */
export type UndoHandler = (record: UndoRecord) => Promise<void>
export type UndoHandlers = Readonly<Record<string, UndoHandler>>

/** Where records outlive the process. */
export interface UndoLog {
  /** The record is on stable storage when it resolves; the one it supersedes is done in the same write. */
  add(record: UndoRecord, supersedes?: number): Promise<number>
  /** May be written late: a step undone twice does no harm. */
  done(id: number): void
}

/** A registered step; give it back to `run` or `forget`. */
export interface UndoStep {
  readonly id: number
  readonly record: UndoRecord
}

export class Cleanup implements AsyncDisposable {
  readonly #log: UndoLog
  readonly #handlers: UndoHandlers
  readonly #clock: Clock
  readonly #stepDeadlineMs: number
  #steps: UndoStep[] = []

  constructor(log: UndoLog, handlers: UndoHandlers, options: { clock?: Clock; stepDeadlineMs?: number } = {}) {
    this.#log = log
    this.#handlers = handlers
    this.#clock = options.clock ?? systemClock
    this.#stepDeadlineMs = options.stepDeadlineMs ?? 60 * 60_000
  }

  /** Registers a step; durable when it resolves. Only then may the deed be done. */
  async defer(record: UndoRecord): Promise<UndoStep> {
    const step = { id: await this.#log.add(record), record }
    this.#steps.push(step)
    return step
  }

  /** Replaces a step by another in one durable write: there is no moment with both or neither. */
  async supersede(step: UndoStep, record: UndoRecord): Promise<UndoStep> {
    const next = { id: await this.#log.add(record, step.id), record }
    this.#steps = [...this.#steps.filter((other) => other !== step), next]
    return next
  }

  /** Undoes one step now. When it fails the step stays registered. */
  async run(step: UndoStep): Promise<void> {
    await runUndo(step.record, this.#handlers, this.#clock, this.#stepDeadlineMs)
    this.forget(step)
  }

  /** Drops a step whose deed stands, or was undone in another way. */
  forget(step: UndoStep): void {
    if (!this.#steps.includes(step)) return
    this.#steps = this.#steps.filter((other) => other !== step)
    this.#log.done(step.id)
  }

  /** Runs what is left, newest first; rejects once with CLEANUP_INCOMPLETE, naming every step that failed. */
  async [Symbol.asyncDispose](): Promise<void> {
    const failed: string[] = []
    for (const step of [...this.#steps].reverse()) {
      try {
        await this.run(step)
      } catch (error) {
        failed.push(`${step.record.undo}: ${describeError(error)}`)
      }
    }
    if (failed.length > 0) throw failure('CLEANUP_INCOMPLETE', { steps: failed })
  }
}

/** Runs the handler of one record under a deadline of its own. */
export async function runUndo(
  record: UndoRecord,
  handlers: UndoHandlers,
  clock: Clock,
  limitMs: number,
): Promise<void> {
  const handler = handlers[record.undo]
  if (handler === undefined) throw new Error(`no handler for the undo step ${record.undo}`)
  await withDeadline(handler(record), { clock, limitMs, what: record.undo })
}
