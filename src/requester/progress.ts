/**
 * Progress of a transfer: how far, how fast, how long still. The rate is of the last ten seconds, so that a hole of a
 * terabyte does not promise the impossible.
 */
import type { Clock } from '../base/clock.ts'

export interface Progress {
  /** What is being dealt with, for people. */
  readonly what: string
  readonly doneBytes: number
  readonly totalBytes: number
  readonly bytesPerSecond: number
  /** Undefined until a rate is known. */
  readonly etaSeconds: number | undefined
}

const windowMs = 10_000
const tellEveryMs = 200

export class ProgressMeter {
  readonly #clock: Clock
  readonly #listener: ((progress: Progress) => void) | undefined
  #what = ''
  #done = 0
  #total = 0
  #samples: { atMs: number; done: number }[] = []
  #toldMs = Number.NEGATIVE_INFINITY

  constructor(clock: Clock, listener?: (progress: Progress) => void) {
    this.#clock = clock
    this.#listener = listener
  }

  /** A new disk or file; its size is added to the total. */
  begin(what: string, sizeBytes: number): void {
    this.#what = what
    this.#total += sizeBytes
    this.#tell()
  }

  advance(bytes: number): void {
    this.#done += bytes
    const atMs = this.#clock.monotonicMs()
    this.#samples.push({ atMs, done: this.#done })
    while ((this.#samples[0]?.atMs ?? atMs) < atMs - windowMs) this.#samples.shift()
    if (atMs - this.#toldMs >= tellEveryMs || this.#done >= this.#total) this.#tell()
  }

  #tell(): void {
    if (this.#listener === undefined) return
    this.#toldMs = this.#clock.monotonicMs()
    const first = this.#samples[0]
    const seconds = first === undefined ? 0 : (this.#toldMs - first.atMs) / 1000
    const bytesPerSecond = first === undefined || seconds <= 0 ? 0 : (this.#done - first.done) / seconds
    const etaSeconds = bytesPerSecond > 0 ? (this.#total - this.#done) / bytesPerSecond : undefined
    this.#listener({ what: this.#what, doneBytes: this.#done, totalBytes: this.#total, bytesPerSecond, etaSeconds })
  }
}
