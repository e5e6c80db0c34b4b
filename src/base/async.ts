/**
 * Waiting, in the four ways this project waits: all of them and then judge, a few at a time, until a deadline,
 * and until somebody says stop. Law 8: whoever stops waiting says who releases what arrives late.
 */
import { failure } from '../errors.ts'
import type { Clock } from './clock.ts'

export interface Settled<T, R> {
  readonly item: T
  readonly outcome: { readonly ok: true; readonly value: R } | { readonly ok: false; readonly error: unknown }
}

/** Starts the work on all items (at most `limit` at a time) and waits for every one, whatever the others do. */
export async function settleAll<T, R>(
  items: Iterable<T>,
  work: (item: T) => Promise<R>,
  limit = Number.POSITIVE_INFINITY,
): Promise<Settled<T, R>[]> {
  const list = [...items]
  const results = new Array<Settled<T, R>>(list.length)
  let next = 0
  const lane = async () => {
    while (next < list.length) {
      const index = next++
      const item = list[index] as T
      try {
        results[index] = { item, outcome: { ok: true, value: await work(item) } }
      } catch (error) {
        results[index] = { item, outcome: { ok: false, error } }
      }
    }
  }
  await Promise.all(Array.from({ length: Math.min(limit, list.length) }, lane))
  return results
}

/** As `settleAll`, but the first error is thrown, after all work has ended. */
export async function mapLimit<T, R>(items: Iterable<T>, limit: number, work: (item: T) => Promise<R>): Promise<R[]> {
  const settled = await settleAll(items, work, limit)
  return settled.map(({ outcome }) => {
    if (!outcome.ok) throw outcome.error
    return outcome.value
  })
}

/** Waits for `work` no longer than `limitMs`; then rejects with DEADLINE_EXCEEDED, and `onLate` gets what still arrives. */
export async function withDeadline<T>(
  work: Promise<T>,
  limit: { clock: Clock; limitMs: number; what: string },
  onLate: (late: T) => void = () => undefined,
): Promise<T> {
  const expired = Promise.withResolvers<never>()
  const timer = limit.clock.timer(limit.limitMs, () =>
    expired.reject(failure('DEADLINE_EXCEEDED', { what: limit.what, limitMs: limit.limitMs })),
  )
  return firstOf(work, expired.promise, onLate).finally(() => timer.cancel())
}

/** Waits for `work` or until the signal aborts (rejects with its reason); `onLate` gets what arrives after that. */
export async function untilAborted<T>(
  work: Promise<T>,
  signal: AbortSignal,
  onLate: (late: T) => void = () => undefined,
): Promise<T> {
  const stop = Promise.withResolvers<never>()
  const abort = () => stop.reject(signal.reason)
  if (signal.aborted) abort()
  else signal.addEventListener('abort', abort, { once: true })
  return firstOf(work, stop.promise, onLate).finally(() => signal.removeEventListener('abort', abort))
}

/** Not Promise.race: who wins must be known before the result is handed on, or what arrives in between is lost. */
function firstOf<T>(work: Promise<T>, end: Promise<never>, onLate: (late: T) => void): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    let waiting = true
    end.catch((reason) => {
      waiting = false
      reject(reason)
    })
    // A failure after the wait has nothing to give back.
    work.then((value) => (waiting ? resolve(value) : onLate(value)), reject)
  })
}
