/**
 * A clock that stands still until a test moves it. `advance` fires what falls due, in order, and lets the code that
 * waited run in between; `drive` moves time for as long as a promise needs, and says so when nothing can ever happen.
 */
import { setImmediate, setTimeout } from 'node:timers/promises'
import type { Clock } from '../../src/base/clock.ts'

interface PendingTimer {
  readonly dueMs: number
  readonly callback: () => void
}

export class ManualClock implements Clock {
  readonly #epochMs: number
  #elapsedMs = 0
  #timers: PendingTimer[] = []

  constructor(epochMs = Date.UTC(2026, 0, 1)) {
    this.#epochMs = epochMs
  }

  now(): number {
    return this.#epochMs + this.#elapsedMs
  }

  monotonicMs(): number {
    return this.#elapsedMs
  }

  timer(ms: number, callback: () => void): { cancel(): void } {
    const timer = { dueMs: this.#elapsedMs + Math.max(0, ms), callback }
    this.#timers.push(timer)
    return {
      cancel: () => {
        this.#timers = this.#timers.filter((other) => other !== timer)
      },
    }
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    if (signal?.aborted) {
      reject(signal.reason)
      return promise
    }
    const abort = () => {
      timer.cancel()
      reject(signal?.reason)
    }
    const timer = this.timer(ms, () => {
      signal?.removeEventListener('abort', abort)
      resolve()
    })
    signal?.addEventListener('abort', abort, { once: true })
    return promise
  }

  /** How many timers and sleeps are waiting. */
  get pending(): number {
    return this.#timers.length
  }

  /** Moves time by `ms`; every timer on the way fires at its own moment. */
  async advance(ms: number): Promise<void> {
    const endMs = this.#elapsedMs + ms
    await quiet()
    for (let next = this.#next(); next !== undefined && next.dueMs <= endMs; next = this.#next()) {
      this.#fire(next)
      await quiet()
    }
    this.#elapsedMs = endMs
  }

  /**
   * Moves time from timer to timer until `work` settles, and answers with its result. Code under test that also waits
   * for the real world (files, sockets) needs `idleMs`: how long nothing may happen before time moves on.
   */
  async drive<T>(work: Promise<T>, options: { idleMs?: number; limitMs?: number } = {}): Promise<T> {
    const limitMs = this.#elapsedMs + (options.limitMs ?? 24 * 3600_000)
    let settled = false
    const watched = work.finally(() => {
      settled = true
    })
    watched.catch(() => undefined)
    for (let rests = 0; !settled; ) {
      await quiet()
      if (options.idleMs !== undefined && !settled) await setTimeout(options.idleMs)
      if (settled) break
      const next = this.#next()
      if (next !== undefined && next.dueMs <= limitMs) this.#fire(next)
      else if (++rests > 20) throw new Error('stuck: the work waits for something that will never happen')
      else await setTimeout(rests)
    }
    return watched
  }

  #next(): PendingTimer | undefined {
    return this.#timers.reduce<PendingTimer | undefined>(
      (first, timer) => (first === undefined || timer.dueMs < first.dueMs ? timer : first),
      undefined,
    )
  }

  #fire(timer: PendingTimer): void {
    this.#timers = this.#timers.filter((other) => other !== timer)
    this.#elapsedMs = Math.max(this.#elapsedMs, timer.dueMs)
    timer.callback()
  }
}

/** Lets everything run that can run without time passing. */
async function quiet(): Promise<void> {
  for (let round = 0; round < 3; round++) await setImmediate()
}
