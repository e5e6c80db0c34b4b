/**
 * The three windows of DoSnapshotSet: Freeze to Thaw, held writes, and auto-recovery. Each is a value that only its
 * opener can make (law 5) and whose disposal closes it. A window has a limit of its own: when that expires it closes
 * itself, whatever hangs inside, and its body fails.
 */
import { untilAborted } from '../base/async.ts'
import type { Clock } from '../base/clock.ts'
import { failure } from '../errors.ts'
import type { ShadowCopy } from './provider.ts'
import type { SessionLimits, Veto } from './vocabulary.ts'

/** The writers of one instant, as the windows see them. A rejection of either is the judged sum of all vetoes. */
export interface Freezable {
  freeze(signal: AbortSignal): Promise<void>
  /** Follows every freeze attempt, exactly once per window; runs under its own clock. */
  thaw(): Promise<void>
  /** The window has expired: whoever is not thawed yet has failed. Answers with a reason for each. */
  expire(): readonly string[]
}

/** Law 4: what must keep still between Freeze and Thaw (journal, event output). */
export interface QuietDuringFreeze {
  /** Resolves when what was written before a window is on its disk; comes right before `hold`. */
  settled?(): Promise<void>
  hold(windowMs: number): void
  release(): void
}

/** Proof that the writers of an instant are frozen. */
export class FrozenWriters implements AsyncDisposable {
  readonly #window: Window
  readonly #writers: Freezable
  readonly #quiet: QuietDuringFreeze
  #thawing: Promise<void> | undefined

  private constructor(writers: Freezable, quiet: QuietDuringFreeze, window: Window) {
    this.#writers = writers
    this.#quiet = quiet
    this.#window = window
  }

  /** Freezes; when that fails the writers are thawed again before this rejects. */
  static async open(
    writers: Freezable,
    quiet: QuietDuringFreeze,
    limits: SessionLimits,
    clock: Clock,
  ): Promise<FrozenWriters> {
    await quiet.settled?.()
    const window = new Window(clock, limits.freezeMs, () =>
      failure('VSS_WRITER_TIMEOUT', { limitMs: limits.freezeMs, reasons: writers.expire() }),
    )
    const frozen = new FrozenWriters(writers, quiet, window)
    window.onExpiry(() => void frozen.#thawOnce().catch(() => undefined)) // disposal waits for it and reports
    quiet.hold(limits.freezeMs)
    try {
      await window.within(writers.freeze(window.signal))
      return frozen
    } catch (error) {
      await frozen[Symbol.asyncDispose]().catch((thawError) => {
        throw new SuppressedError(thawError, error, 'freezing failed, and thawing after it')
      })
      throw error
    }
  }

  /** Aborts when the window has expired. */
  get signal(): AbortSignal {
    return this.#window.signal
  }

  get open(): boolean {
    return this.#window.open
  }

  /** Waits for work that belongs into this window, but not beyond its end. */
  within<T>(work: Promise<T>): Promise<T> {
    return this.#window.within(work)
  }

  #thawOnce(): Promise<void> {
    this.#thawing ??= this.#writers.thaw()
    return this.#thawing
  }

  /** Thaw. Rejects when the window had expired, or when a writer was not frozen to its end. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#window.close()
    try {
      await this.#thawOnce()
    } finally {
      this.#quiet.release()
    }
    this.#window.rejectIfExpiredUnnoticed()
  }
}

/** Proof that writes are held: the only place where copies may be committed. */
export class HeldWrites implements AsyncDisposable {
  readonly #window: Window

  private constructor(window: Window) {
    this.#window = window
  }

  /**
   * Opens the commit window inside the freeze. Nothing has to be held by hand: each provider's commit is one
   * transaction of the hypervisor, which drains and holds the VM's requests for its duration.
   */
  static open(frozen: FrozenWriters, limits: SessionLimits, clock: Clock): HeldWrites {
    if (frozen.signal.aborted) throw frozen.signal.reason
    if (!frozen.open) throw failure('VSS_BAD_STATE', { call: 'holding writes', state: 'thawed' })
    return new HeldWrites(
      new Window(clock, limits.holdWritesMs, () =>
        failure('VSS_HOLD_WRITES_TIMEOUT', { limitMs: limits.holdWritesMs }),
      ),
    )
  }

  within<T>(work: Promise<T>): Promise<T> {
    return this.#window.within(work)
  }

  /** Aborts when the window has expired. */
  get signal(): AbortSignal {
    return this.#window.signal
  }

  get open(): boolean {
    return this.#window.open
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#window.close()
    this.#window.rejectIfExpiredUnnoticed()
  }
}

/** The copies while auto-recovery may write them: between PreFinalCommit and the end of PostSnapshot. */
export class WritableCopies implements AsyncDisposable {
  readonly copies: readonly ShadowCopy[]
  readonly #close: () => Promise<void>
  #open = true

  constructor(copies: readonly ShadowCopy[], close: () => Promise<void>) {
    this.copies = copies
    this.#close = close
  }

  get open(): boolean {
    return this.#open
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#open = false
    await this.#close()
  }
}

/** A limit that runs from construction to `close`. */
class Window {
  readonly #controller = new AbortController()
  readonly #timer: { cancel(): void }
  #open = true
  #noticed = false

  constructor(clock: Clock, limitMs: number, onLimit: () => Error) {
    this.#timer = clock.timer(limitMs, () => {
      if (this.#open) this.#controller.abort(onLimit())
    })
  }

  get signal(): AbortSignal {
    return this.#controller.signal
  }

  get open(): boolean {
    return this.#open && !this.signal.aborted
  }

  onExpiry(action: () => void): void {
    this.signal.addEventListener('abort', action, { once: true })
  }

  async within<T>(work: Promise<T>): Promise<T> {
    try {
      if (!this.#open) throw failure('VSS_BAD_STATE', { call: 'a step of a window', state: 'closed' })
      return await untilAborted(work, this.signal)
    } catch (error) {
      work.catch(() => undefined)
      this.#noticed ||= this.signal.aborted
      throw error
    }
  }

  /** A body that outlived its window without ever asking it fails all the same. */
  rejectIfExpiredUnnoticed(): void {
    if (this.signal.aborted && !this.#noticed) throw this.signal.reason
  }

  close(): void {
    this.#open = false
    this.#timer.cancel()
  }
}

/** One sentence for each veto, in the order given. */
export function describeVetoes(vetoes: readonly Veto[]): string[] {
  return vetoes.map(({ component, writer, reason }) => `${component ?? writer}: ${reason}`)
}
