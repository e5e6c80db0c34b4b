/**
 * The clock of the fault matrix: it stands still while anything can happen without it, and then goes on to the next
 * timer. Files are real here, so "can happen" includes calls to the operating system that are under way.
 */
import { setImmediate, setTimeout } from 'node:timers/promises'
import type { Clock } from '../../src/base/clock.ts'

interface PendingTimer {
  readonly dueMs: number
  readonly callback: () => void
}

/** What `drive` answers when the work waits for something that will never happen. */
export const stuck = Symbol('stuck')

export class FaultClock implements Clock {
  /** Called whenever time has moved, before anything that fell due happens. */
  onMoved: (nowMs: number) => void = () => undefined
  #nowMs: number
  #timers: PendingTimer[] = []

  constructor(nowMs = 0) {
    this.#nowMs = nowMs
  }

  now(): number {
    return Date.UTC(2026, 0, 1) + this.#nowMs
  }

  monotonicMs(): number {
    return this.#nowMs
  }

  timer(ms: number, callback: () => void): { cancel(): void } {
    const timer = { dueMs: this.#nowMs + Math.max(0, ms), callback }
    this.#timers.push(timer)
    return {
      cancel: () => {
        this.#timers = this.#timers.filter((other) => other !== timer)
      },
    }
  }

  async sleep(ms: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted()
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const timer = this.timer(ms, resolve)
    const abort = () => reject(signal?.reason)
    signal?.addEventListener('abort', abort, { once: true })
    await promise.finally(() => {
      timer.cancel()
      signal?.removeEventListener('abort', abort)
    })
  }

  /**
   * Moves time for as long as `work` needs; `stuck` when nothing will ever happen, or not within two hours. Work in threads
   * (compression) is not to be seen from here: `patienceMs` of real time is what it gets before it counts as stuck.
   */
  async drive<T>(work: Promise<T>, patienceMs: () => number = () => 5000): Promise<T | typeof stuck> {
    let settled = false
    const end = () => {
      settled = true
    }
    work.then(end, end)
    const lastMs = this.#nowMs + 2 * 3600_000
    for (let waitedMs = 0; ; ) {
      await idle(() => settled)
      if (settled) return work
      const next = this.#next()
      if (next === undefined || next.dueMs > lastMs) {
        if (waitedMs >= patienceMs()) return stuck
        await setTimeout(10)
        waitedMs += 10
        continue
      }
      waitedMs = 0
      this.#timers = this.#timers.filter((other) => other !== next)
      if (next.dueMs > this.#nowMs) {
        this.#nowMs = next.dueMs
        this.onMoved(this.#nowMs)
      }
      next.callback()
    }
  }

  #next(): PendingTimer | undefined {
    return this.#timers.reduce<PendingTimer | undefined>(
      (first, timer) => (first === undefined || timer.dueMs < first.dueMs ? timer : first),
      undefined,
    )
  }
}

/**
 * Resolves when nothing has been under way for some turns of the event loop. While files are at work it sleeps: turns without
 * a pause would take the processor from the threads that do the work.
 */
export async function idle(enough: () => boolean = () => false): Promise<void> {
  for (let quiet = 0; quiet < 4 && !enough(); ) {
    await setImmediate()
    const isBusy = process.getActiveResourcesInfo().some((kind) => kind.startsWith('FSReq') || kind === 'CloseReq')
    quiet = isBusy ? 0 : quiet + 1
    if (isBusy) await setTimeout(1)
  }
}
