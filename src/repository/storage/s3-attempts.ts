/**
 * Tries again what may pass by itself, and no longer than the limits say. The pause doubles from attempt to attempt, and a
 * random half of it keeps many writers from coming back at the same moment.
 */
import type { Clock } from '../../base/clock.ts'
import { describeError } from '../../base/failure.ts'
import { failure } from '../../errors.ts'
import { isPassing, isUnanswered } from './s3-errors.ts'

export interface S3Limits {
  readonly attempts: number
  /** Before the second attempt; doubles up to 10 s. */
  readonly pauseMs: number
  /** For a connection to be made. */
  readonly connectMs: number
  /** Without a byte in either direction; then the attempt has failed. */
  readonly idleMs: number
  /** For one operation with all its attempts. */
  readonly totalMs: number
}

/** An outage of about half a minute passes unnoticed. */
export const s3Limits: S3Limits = {
  attempts: 10,
  pauseMs: 200,
  connectMs: 10_000,
  idleMs: 60_000,
  totalMs: 600_000,
}

/** A store that never answered since it was opened: more likely a wrong address than an outage. */
const attemptsBeforeAnswer = 3
const longestPauseMs = 10_000

export interface Attempts extends Disposable {
  /**
   * Runs `deed`, which is about `path`, until it succeeds, fails for good, or there were attempts enough: then rejects
   * with the last error. REPOSITORY_IO when the time is over or this was disposed.
   */
  run<T>(path: string, deed: (signal: AbortSignal) => Promise<T>): Promise<T>
}

/** Disposal ends what is under way. */
export function openAttempts(limits: S3Limits, clock: Clock): Attempts {
  const running = new Set<AbortController>()
  let closed = false
  let answered = false

  async function once<T>(deed: (signal: AbortSignal) => Promise<T>, signal: AbortSignal): Promise<T> {
    try {
      const result = await deed(signal)
      answered = true
      return result
    } catch (error) {
      if (!isUnanswered(error)) answered = true
      throw error
    }
  }

  return {
    async run(path, deed) {
      const end = new AbortController()
      const timer = clock.timer(limits.totalMs, () => end.abort())
      running.add(end)
      let last: unknown
      try {
        for (let attempt = 1; ; attempt++) {
          try {
            return await once(deed, end.signal)
          } catch (error) {
            if (closed) throw failure('REPOSITORY_IO', { path, reason: 'the repository was closed' })
            if (end.signal.aborted) {
              throw failure('REPOSITORY_IO', { path, reason: gaveUp(limits.totalMs, last) }, last)
            }
            if (!isPassing(error)) throw error
            last = error
            if (attempt >= (answered ? limits.attempts : Math.min(limits.attempts, attemptsBeforeAnswer))) throw error
            const pauseMs = Math.min(limits.pauseMs * 2 ** (attempt - 1), longestPauseMs)
            // Where the pause was ended the next attempt is not made, and says why.
            await clock.sleep(pauseMs * (0.5 + Math.random() / 2), end.signal).catch(() => undefined)
          }
        }
      } finally {
        running.delete(end)
        timer.cancel()
      }
    },
    [Symbol.dispose]() {
      closed = true
      for (const end of running) end.abort()
    },
  }
}

function gaveUp(totalMs: number, last: unknown): string {
  const why = last === undefined ? '' : `: ${describeError(last)}`
  return `not done within ${Math.round(totalMs / 1000)} s${why}`
}
