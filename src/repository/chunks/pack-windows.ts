/**
 * PackWindows: packs for who reads their records in order, a window of each at a time and the next ones under way: one
 * request for several records. Records here and there are read alone.
 */
import { type Clock, systemClock } from '../../base/clock.ts'
import { packSizeBytes } from '../format.ts'
import type { Backend } from '../storage/backend.ts'
import { AlignedBuffers, type SharedBuffer } from './aligned-buffers.ts'

/** Windows begin at multiples of it. */
export const windowBytes = 2 * 1024 * 1024
/** Windows under way behind the one that is read. */
const windowsAhead = 2
/** 64 MiB, if so many packs are read in turn. */
const windowsKept = 32
/** So many windows in vain, and records are read alone for a while: they lie in more packs than there are windows. */
const wastedMost = 4
/** What one record that is read alone takes off the windows in vain. */
const forgiven = 1 / 64
/** So near to the end of another read begins who reads in order; several at once are a little apart. */
const nearBytes = 1024 * 1024
const readsRemembered = 32
/** So long after its deletion a pack might still be read. */
const windowLivesMs = 30_000

const lastWindow = windowAt(packSizeBytes - 1)

/** The process's, as the buffers of packs. */
const buffers = new AlignedBuffers(windowBytes, 0)

/** Disposal gives the bytes back. */
export interface LentBytes extends Disposable {
  readonly bytes: SharedBuffer
}

interface Window {
  readonly buffer: SharedBuffer
  /** How many bytes of it there are, fewer where the pack ends; undefined when it could not be read. */
  readonly filled: Promise<number | undefined>
  readonly sinceMs: number
  endsPack: boolean
  /** Records that were read out of it. */
  reads: number
  /** Who needs its buffer now: readers, and the reading of it. */
  users: number
  isKept: boolean
}

export class PackWindows {
  readonly #backend: Pick<Backend, 'read'>
  readonly #clock: Clock
  /** Those used last stand last. */
  readonly #kept = new Map<string, Window>()
  /** Where the last reads ended. */
  readonly #ends: { readonly pack: string; readonly end: number }[] = []
  /** Windows that went before two records were read out of them, less those that served. */
  #wasted = 0

  constructor(backend: Pick<Backend, 'read'>, clock: Clock = systemClock) {
    this.#backend = backend
    this.#clock = clock
  }

  /** What is read from now on is read anew. */
  forget(): void {
    for (const window of this.#kept.values()) this.#letGo(window)
    this.#kept.clear()
  }

  /**
   * The bytes of `pack` from `offset` on, as many as `target` has, fewer where it ends; in a window that is lent, or in `target`.
   * Undefined where they should be read alone: nobody reads in order, or a window could not be read. They may be as they
   * were a while ago: who finds them damaged reads alone before believing it.
   */
  async lend(pack: string, offset: number, target: SharedBuffer): Promise<LentBytes | undefined> {
    const first = windowAt(offset)
    const last = windowAt(offset + target.length - 1)
    const isKept = this.#kept.has(nameOf(pack, first))
    const isInOrder = this.#isInOrder(pack, offset, target.length) && this.#wasted < wastedMost
    if (!(isKept || isInOrder) || last - first > 1 || last > lastWindow) {
      this.#wasted = Math.max(0, this.#wasted - forgiven)
      return undefined
    }
    const windows = this.#windows(pack, first, last)
    let isLent = false
    try {
      const filled = await Promise.all(windows.map(({ filled }) => filled))
      const start = offset - first * windowBytes
      const [window, second] = windows
      const [bytes, secondBytes] = filled
      if (window === undefined || bytes === undefined) return undefined
      if (second === undefined || bytes < windowBytes) {
        isLent = true
        const end = Math.min(bytes, start + target.length)
        return {
          bytes: window.buffer.subarray(Math.min(start, end), end),
          [Symbol.dispose]: () => this.#release(windows),
        }
      }
      if (secondBytes === undefined) return undefined
      const head = window.buffer.copy(target, 0, start, windowBytes)
      return unlent(target.subarray(0, head + second.buffer.copy(target, head, 0, secondBytes)))
    } finally {
      if (!isLent) this.#release(windows)
    }
  }

  #isInOrder(pack: string, offset: number, length: number): boolean {
    const inOrder = this.#ends.some((one) => one.pack === pack && Math.abs(offset - one.end) < nearBytes)
    this.#ends.push({ pack, end: offset + length })
    if (this.#ends.length > readsRemembered) this.#ends.shift()
    return inOrder
  }

  /** Those from `first` to `last`, taken for a reader; where it is not the first, the next ones are on their way. */
  #windows(pack: string, first: number, last: number): Window[] {
    const taken: Window[] = []
    for (let number = first; number <= last; number += 1) {
      const window = this.#window(pack, number)
      window.reads += 1
      window.users += 1
      taken.push(window)
      if (window.endsPack) return taken
    }
    if ((taken[0]?.reads ?? 0) < 2) return taken
    for (let number = last + 1; number <= Math.min(last + windowsAhead, lastWindow); number += 1) {
      if (this.#window(pack, number).endsPack) break
    }
    return taken
  }

  #window(pack: string, number: number): Window {
    const name = nameOf(pack, number)
    const kept = this.#kept.get(name)
    if (kept !== undefined) {
      this.#kept.delete(name)
      if (this.#clock.monotonicMs() - kept.sinceMs < windowLivesMs) {
        this.#kept.set(name, kept)
        return kept
      }
      this.#letGo(kept)
    }
    const window = this.#fetch(pack, number)
    this.#kept.set(name, window)
    const [oldest] = this.#kept
    if (oldest !== undefined && this.#kept.size > windowsKept) {
      this.#kept.delete(oldest[0])
      this.#letGo(oldest[1])
      this.#wasted = Math.max(0, this.#wasted + (oldest[1].reads < 2 ? 1 : -1))
    }
    return window
  }

  #fetch(pack: string, number: number): Window {
    const buffer = buffers.take()
    const fetched = async () => {
      try {
        const bytes = await this.#backend.read(pack, number * windowBytes, buffer)
        window.endsPack = bytes < windowBytes
        return bytes
      } catch {
        return undefined // it is kept, so that who reads on does not try again and again
      } finally {
        this.#release([window])
      }
    }
    // The one user is the reading itself.
    const common = { buffer, sinceMs: this.#clock.monotonicMs(), endsPack: false, reads: 0, users: 1, isKept: true }
    const window: Window = { ...common, filled: Promise.resolve().then(fetched) }
    return window
  }

  #letGo(window: Window): void {
    window.isKept = false
    if (window.users === 0) buffers.give(window.buffer)
  }

  #release(windows: readonly Window[]): void {
    for (const window of windows) {
      window.users -= 1
      if (window.users === 0 && !window.isKept) buffers.give(window.buffer)
    }
  }
}

const unlent = (bytes: SharedBuffer): LentBytes => ({ bytes, [Symbol.dispose]: () => undefined })
const nameOf = (pack: string, window: number) => `${pack} ${window}`

function windowAt(offset: number): number {
  return Math.floor(offset / windowBytes)
}
