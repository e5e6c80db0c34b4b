/**
 * Disks of a recovery point for a guest that runs on them: patient while the repository is away (its requests wait, and
 * are answered when it is back), and sure before it calls anything damaged. A repository that is away may look damaged
 * (its objects are missing), so whatever fails is tried once more on a repository that was opened anew.
 */
import { type Clock, systemClock } from '../base/clock.ts'
import { Failure } from '../base/failure.ts'
import type { BlockSource, Extent } from '../disk/block-device.ts'

/** The repository and the disks opened in it; disposal closes all of it. */
export interface OpenDisks extends AsyncDisposable {
  readonly sources: ReadonlyMap<string, BlockSource>
}

export interface PatienceOptions {
  /** Opens the repository anew; rejects while it is away. */
  readonly open: () => Promise<OpenDisks>
  /** Ends all waiting, when the server ends. */
  readonly signal: AbortSignal
  readonly clock?: Clock
  /** A disk's read waits for the repository; told once for each time it is away. */
  readonly onAway?: (error: unknown) => void
}

const firstPauseMs = 250
const longestPauseMs = 5000
/** A repository that opens and yet can not be read there for a minute and more is not away. */
const mostReopened = 20
const damage: readonly string[] = ['REPOSITORY_CHUNK_CORRUPT', 'REPOSITORY_DAMAGED', 'REPOSITORY_OBJECT_MISSING']

const mostPlaces = 10_000
const placeOf = (error: unknown): string => (error instanceof Failure ? `${error.code} ${error.message}` : '')

const isDamage = (error: unknown): boolean => error instanceof Failure && damage.includes(error.code)

export class PatientDisks implements AsyncDisposable {
  readonly #options: PatienceOptions
  readonly #clock: Clock
  #open: OpenDisks
  #reopening: Promise<void> | undefined
  readonly #damaged = new Set<string>()

  constructor(open: OpenDisks, options: PatienceOptions) {
    this.#open = open
    this.#options = options
    this.#clock = options.clock ?? systemClock
  }

  /** The disk of that name. */
  source(name: string): BlockSource {
    const { sizeBytes } = this.#of(name)
    return {
      sizeBytes,
      read: (offset, target) => this.#patiently(() => this.#of(name).read(offset, target)),
      extents: (offset, length) => this.#extents(name, offset, length),
      [Symbol.asyncDispose]: async () => undefined,
    }
  }

  #of(name: string): BlockSource {
    const source = this.#open.sources.get(name)
    if (source === undefined) throw new Error(`bug: no disk ${name} is served`)
    return source
  }

  /** One after the other, each as patiently as a read. */
  async *#extents(name: string, offset: number, length: number): AsyncIterable<Extent> {
    const end = offset + length
    for (let at = offset; at < end; ) {
      const extent = await this.#patiently(() => firstOf(this.#of(name).extents(at, end - at)))
      if (extent === undefined || extent.length === 0) return
      yield extent
      at = extent.offset + extent.length
    }
  }

  async #patiently<T>(work: () => Promise<T>): Promise<T> {
    const { signal } = this.#options
    for (let pauseMs = firstPauseMs, reopened = 0; ; pauseMs = Math.min(pauseMs * 2, longestPauseMs), reopened++) {
      const used = this.#open
      try {
        return await work()
      } catch (error) {
        signal.throwIfAborted()
        if (isDamage(error)) this.#judge(error, reopened > 0)
        else if (reopened > mostReopened) throw error
        if (!isDamage(error)) await this.#clock.sleep(pauseMs, signal)
        await this.#reopen(used, error)
      }
    }
  }

  /**
   * Throws what is surely damaged: by a repository opened anew, now or at an earlier read of that place. A guest tries such a
   * place many times, and opening a repository takes a second, for the sake of its passphrase.
   */
  #judge(error: unknown, surely: boolean): void {
    const place = placeOf(error)
    if (surely && this.#damaged.size < mostPlaces) this.#damaged.add(place)
    if (surely || this.#damaged.has(place)) throw error
  }

  /** Resolves when the repository has been opened after `used`, by whomever. */
  async #reopen(used: OpenDisks, why: unknown): Promise<void> {
    if (this.#open !== used) return
    this.#reopening ??= this.#openAnew(why).finally(() => {
      this.#reopening = undefined
    })
    await this.#reopening
  }

  async #openAnew(why: unknown): Promise<void> {
    const { open, signal, onAway } = this.#options
    for (let pauseMs = firstPauseMs, told = false; ; pauseMs = Math.min(pauseMs * 2, longestPauseMs)) {
      signal.throwIfAborted()
      try {
        const former = this.#open
        this.#open = await open()
        await closed(former)
        return
      } catch {
        if (!told) onAway?.(why)
        told = true
        await this.#clock.sleep(pauseMs, signal)
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#reopening?.catch(() => undefined)
    await this.#open[Symbol.asyncDispose]()
  }
}

async function firstOf(extents: AsyncIterable<Extent>): Promise<Extent | undefined> {
  for await (const extent of extents) return extent
  return undefined
}

/** What it had open went with the repository. */
async function closed(disks: OpenDisks): Promise<void> {
  try {
    await disks[Symbol.asyncDispose]()
  } catch {
    // whatever it says, nobody reads from it any more
  }
}
