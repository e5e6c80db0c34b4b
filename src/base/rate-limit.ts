/**
 * A limit on bytes per second: a token bucket. Whoever wants to move bytes takes them first; who came first goes first,
 * whoever else shares the limit. At most one timer runs, and none when nobody waits.
 */
import type { Clock } from './clock.ts'
import { invariant } from './failure.ts'

/** What may go at once after a rest, as a time at the limit's rate. */
const burstMs = 250

export interface RateLimit {
  readonly bytesPerSecond: number
  /**
   * Resolves when `bytes` may be moved. Over any time no more goes than the rate allows, and a burst of 250 ms or the
   * largest request, whichever is larger. Rejects with the signal's reason when it aborts; what waits behind moves up.
   */
  take(bytes: number, signal?: AbortSignal): Promise<void>
}

interface Waiting {
  readonly bytes: number
  readonly go: () => void
}

/** `bytesPerSecond` is more than 0. Nothing has to be released: what waits is ended by its signal. */
export function openRateLimit(bytesPerSecond: number, clock: Clock): RateLimit {
  invariant(bytesPerSecond > 0 && Number.isFinite(bytesPerSecond), `a rate of ${bytesPerSecond} bytes per second`)
  return new TokenBucket(bytesPerSecond, clock)
}

class TokenBucket implements RateLimit {
  readonly bytesPerSecond: number
  readonly #clock: Clock
  readonly #capacity: number
  /** Less than 0 after a request that is larger than the bucket: it is paid for afterwards. */
  #tokens: number
  #filledAtMs: number
  #waiting: Waiting[] = []
  #timer: { cancel(): void } | undefined

  constructor(bytesPerSecond: number, clock: Clock) {
    this.bytesPerSecond = bytesPerSecond
    this.#clock = clock
    this.#capacity = (bytesPerSecond * burstMs) / 1000
    this.#tokens = this.#capacity
    this.#filledAtMs = clock.monotonicMs()
  }

  take(bytes: number, signal?: AbortSignal): Promise<void> {
    invariant(Number.isSafeInteger(bytes) && bytes >= 0, `${bytes} bytes`)
    if (signal?.aborted) return Promise.reject(signal.reason)
    if (bytes === 0) return Promise.resolve()
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const abort = () => {
      this.#waiting = this.#waiting.filter((other) => other !== own)
      this.#letGo()
      reject(signal?.reason)
    }
    const go = () => {
      signal?.removeEventListener('abort', abort)
      resolve()
    }
    const own = { bytes, go }
    signal?.addEventListener('abort', abort, { once: true })
    this.#waiting.push(own)
    this.#letGo()
    return promise
  }

  /** Lets go whoever is first for as long as there is enough, and sets the timer for the next. */
  #letGo(): void {
    this.#timer?.cancel()
    this.#timer = undefined
    this.#fill()
    for (;;) {
      const [first] = this.#waiting
      if (first === undefined) return
      const missing = Math.min(first.bytes, this.#capacity) - this.#tokens
      if (missing > 0) {
        // At least a millisecond: a timer that fires a little early must not be set again and again.
        const waitMs = Math.max(1, Math.ceil((missing * 1000) / this.bytesPerSecond))
        this.#timer = this.#clock.timer(waitMs, () => this.#letGo())
        return
      }
      this.#tokens -= first.bytes
      this.#waiting.shift()
      first.go()
    }
  }

  #fill(): void {
    const nowMs = this.#clock.monotonicMs()
    const earned = ((nowMs - this.#filledAtMs) * this.bytesPerSecond) / 1000
    this.#tokens = Math.min(this.#capacity, this.#tokens + earned)
    this.#filledAtMs = nowMs
  }
}
