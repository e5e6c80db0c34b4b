/**
 * The watchdogs of a host: the product's own code on a pipe of the process it watches, with a connection and a clock of its own,
 * so that it outlives that process.
 */
import { readFile } from 'node:fs/promises'
import { PassThrough } from 'node:stream'
import { runUndo, type UndoHandlers } from '../../src/base/cleanup.ts'
import type { Clock } from '../../src/base/clock.ts'
import { readJournal } from '../../src/requester/journal.ts'
import { followSession, linesOf, type Watchdog } from '../../src/requester/watchdog.ts'
import { vmThawSteps } from '../../src/vm/undo.ts'

/** Beyond the window; the watchdog's own. */
const graceMs = 2000

/** When a watchdog will thaw what the journal of its session names. */
interface Wait {
  readonly dueMs: number
  readonly journal: string
}

export class Watchdogs {
  readonly #clock: Clock
  readonly #handlers: UndoHandlers
  readonly #waits = new Set<Wait>()

  /** `waits`: of watchdogs that were there before. */
  constructor(clock: Clock, handlers: UndoHandlers, waits: readonly Wait[] = []) {
    this.#clock = clock
    this.#handlers = handlers
    for (const { dueMs, journal } of waits)
      this.#wait(dueMs, journal, () => void this.#thaw(journal).catch(() => undefined))
  }

  get waits(): readonly Wait[] {
    return [...this.#waits]
  }

  /** One more. Its pipe ends with the process that has it. */
  start(journal: string): { readonly watchdog: Watchdog; readonly pipe: PassThrough } {
    const pipe = new PassThrough()
    const clock = {
      now: () => this.#clock.now(),
      monotonicMs: () => this.#clock.monotonicMs(),
      sleep: (ms: number, signal?: AbortSignal) => this.#clock.sleep(ms, signal),
      timer: (ms: number, callback: () => void) => this.#wait(this.#clock.monotonicMs() + ms, journal, callback),
    }
    const followed = followSession(linesOf(pipe), clock, () => this.#thaw(journal)).catch(() => undefined)
    const watchdog: Watchdog = {
      pid: 0,
      hold: (windowMs) => void pipe.write(`hold ${windowMs + graceMs}\n`),
      release: () => void pipe.write('release\n'),
      async [Symbol.asyncDispose]() {
        pipe.end('end\n')
        await followed
      },
    }
    return { watchdog, pipe }
  }

  #wait(dueMs: number, journal: string, callback: () => void): { cancel(): void } {
    const wait = { dueMs, journal }
    this.#waits.add(wait)
    const timer = this.#clock.timer(dueMs - this.#clock.monotonicMs(), () => {
      this.#waits.delete(wait)
      callback()
    })
    return {
      cancel: () => {
        this.#waits.delete(wait)
        timer.cancel()
      },
    }
  }

  async #thaw(journal: string): Promise<void> {
    const { left } = readJournal(await readFile(journal, 'utf8'))
    for (const record of left)
      if (vmThawSteps.includes(record.undo)) await runUndo(record, this.#handlers, this.#clock, 20_000)
  }
}
