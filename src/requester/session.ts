/**
 * A requester's session: journal, watchdog, cleanup and events in one handle. Its disposal runs every undo step that is
 * left, then says farewell to the watchdog, then closes the journal, which stays on disk if a step could not be run.
 */
import { join } from 'node:path'
import { Cleanup, type UndoHandlers } from '../base/cleanup.ts'
import type { Clock } from '../base/clock.ts'
import { cleanupErrors, describeError, invariant, primaryError } from '../base/failure.ts'
import { makeDirectory } from '../base/make-directory.ts'
import { ownProcessMark, processMarkText } from '../base/process-mark.ts'
import { failure } from '../errors.ts'
import type { ComponentRef } from '../vss/components.ts'
import { fullPath } from '../vss/components.ts'
import type { QuietDuringFreeze } from '../vss/windows.ts'
import { EventStream } from './events.ts'
import { type TryLock, tryLock } from './host-lock.ts'
import { Journal, type JournalHeader } from './journal.ts'
import type { Watchdog } from './watchdog.ts'

export interface SessionOptions {
  readonly what: JournalHeader['what']
  readonly stateDirectory: string
  readonly uri: string
  readonly handlers: UndoHandlers
  readonly clock: Clock
  /** Starts the watchdog of a journal. */
  readonly startWatchdog?: (journalPath: string) => Promise<Watchdog>
  /** The host's own unless a test has to see a process die that lives on. */
  readonly tryLock?: TryLock
  /** The caller's cancellation. */
  readonly signal: AbortSignal
}

export class RequesterSession implements AsyncDisposable {
  readonly id: string
  readonly undo: Cleanup
  readonly events: EventStream
  readonly quiet: QuietDuringFreeze
  readonly signal: AbortSignal
  readonly #stateDirectory: string
  readonly #tryLock: TryLock
  readonly #abandoned: AbortController
  readonly #journal: Journal
  #watchdog: Watchdog | undefined
  readonly #watchdogStarted: Promise<void>
  readonly #locks: AsyncDisposable[] = []

  private constructor(id: string, options: SessionOptions, journal: Journal) {
    this.id = id
    this.#stateDirectory = options.stateDirectory
    this.#tryLock = options.tryLock ?? tryLock
    this.#journal = journal
    this.#watchdogStarted = this.#startWatchdog(options)
    this.#watchdogStarted.catch(() => undefined) // told by `guarded`
    this.#abandoned = new AbortController()
    this.signal = AbortSignal.any([options.signal, this.#abandoned.signal])
    this.events = new EventStream(options.clock)
    this.undo = new Cleanup(journal, options.handlers, { clock: options.clock })
    let windows = 0 // those that are open side by side opened together: the first one's time is the time of all
    this.quiet = {
      settled: () => journal.settled(),
      hold: (windowMs) => {
        if (windows++ > 0) return
        for (const part of [journal, this.events, this.#watchdog]) part?.hold(windowMs)
      },
      release: () => {
        if (--windows > 0) return
        for (const part of [journal, this.events, this.#watchdog]) part?.release()
      },
    }
  }

  async #startWatchdog({ startWatchdog }: SessionOptions): Promise<void> {
    this.#watchdog = await startWatchdog?.(this.#journal.path)
  }

  /** Waits for the watchdog, which starts beside the preparations. Nothing is done to a VM before this has resolved. */
  guarded(): Promise<void> {
    return this.#watchdogStarted
  }

  static async open(options: SessionOptions): Promise<RequesterSession> {
    const id = crypto.randomUUID()
    const directory = journalDirectory(options.stateDirectory)
    await makeDirectory(workDirectory(options.stateDirectory), 0o700)
    const header = {
      session: id,
      what: options.what,
      startedAt: new Date(options.clock.now()).toISOString(),
      uri: options.uri,
      process: processMarkText(await ownProcessMark()),
    }
    return new RequesterSession(id, options, await Journal.create(directory, header, options.tryLock))
  }

  /** Ends the session for a reason found outside of any call. */
  readonly abandon = (reason: Error): void => this.#abandoned.abort(reason)

  /** Host-wide: one snapshot set in creation at a time (VSS_E_SNAPSHOT_SET_IN_PROGRESS). */
  readonly lockSetCreation = async (): Promise<AsyncDisposable> => {
    const lock = await this.#tryLock(this.#stateDirectory, 'snapshot-set')
    if (lock === undefined) throw failure('VSS_SNAPSHOT_SET_IN_PROGRESS')
    return lock
  }

  /** A component belongs to one session at a time, until this session ends. */
  async lockComponent(ref: ComponentRef, label: string): Promise<void> {
    const lock = await this.#tryLock(this.#stateDirectory, fullPath(ref))
    if (lock === undefined)
      throw failure('VM_BUSY', { vm: label, reason: 'another backup or restore of it is under way' })
    this.#locks.push(lock)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await using _locks = {
      [Symbol.asyncDispose]: async () =>
        void (await Promise.all(this.#locks.map((lock) => lock[Symbol.asyncDispose]()))),
    }
    await using _journal = this.#journal
    await using _watchdog = {
      [Symbol.asyncDispose]: async () => {
        await this.#watchdogStarted.catch(() => undefined)
        await this.#watchdog?.[Symbol.asyncDispose]()
      },
    }
    await this.undo[Symbol.asyncDispose]()
  }
}

export const journalDirectory = (stateDirectory: string): string => join(stateDirectory, 'journal')
export const workDirectory = (stateDirectory: string): string => join(stateDirectory, 'work')

/** Where work puts its result as soon as that stands. */
export interface Made<T> {
  result?: T
}

/**
 * Runs a session's work. Once it has made its result that stands, whatever fails afterwards: then the result comes with
 * the names of what is left to clean up.
 */
export async function keepingResult<T>(work: (made: Made<T>) => Promise<void>): Promise<T & { cleanup: string[] }> {
  const made: Made<T> = {}
  let cleanup: string[] = []
  try {
    await work(made)
  } catch (error) {
    if (made.result === undefined) throw error
    cleanup = [primaryError(error), ...cleanupErrors(error)].map(describeError)
  }
  invariant(made.result !== undefined, 'work that did not fail has a result')
  return { ...made.result, cleanup }
}
