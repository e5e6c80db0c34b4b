/**
 * The one stream of session events behind CLI progress, the stored result and the traces in tests. While a guest is
 * frozen events are kept in memory and listeners hear nothing (law 4).
 */
import type { Clock } from '../base/clock.ts'
import type { EmitEvent, SessionEvent } from '../vss/vocabulary.ts'

export class EventStream {
  readonly #clock: Clock
  readonly #beganMs: number
  readonly #listeners: ((event: SessionEvent) => void)[] = []
  readonly #all: SessionEvent[] = []
  #told = 0
  #held = 0

  constructor(clock: Clock) {
    this.#clock = clock
    this.#beganMs = clock.monotonicMs()
  }

  readonly emit: EmitEvent = (event) => {
    this.#all.push({ atMs: Math.round(this.#clock.monotonicMs() - this.#beganMs), ...event })
    this.#tell()
  }

  get all(): readonly SessionEvent[] {
    return this.#all
  }

  listen(listener: (event: SessionEvent) => void): void {
    this.#listeners.push(listener)
  }

  hold(): void {
    this.#held++
  }

  release(): void {
    this.#held--
    this.#tell()
  }

  #tell(): void {
    if (this.#held > 0) return
    for (const event of this.#all.slice(this.#told)) {
      this.#told++
      for (const listener of this.#listeners) listener(event)
    }
  }
}
