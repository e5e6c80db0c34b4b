/**
 * Disks of a recovery point for who reads them while the repository may go away: patient until it is back (a guest sees its
 * I/O pause and not fail), and sure before it calls anything damaged. A repository that is away may look damaged (its
 * objects are missing), so whatever fails is tried once more on a repository that was opened anew.
 */
import { type Clock, systemClock } from '../base/clock.ts'
import { Failure } from '../base/failure.ts'
import type { BlockSource, Extent } from '../disk/block-device.ts'
import type { RecoveryPoint, Repository } from '../repository/repository.ts'

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
  /** How long one read waits before it fails with what the repository said last; for ever unless told. */
  readonly patienceMs?: number
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
  #reopening: Promise<{ readonly error: unknown } | undefined> | undefined
  /** Until the next attempt to open it; undefined while the repository is there. */
  #awayPauseMs: number | undefined
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
    const { signal, patienceMs = Number.POSITIVE_INFINITY } = this.#options
    const untilMs = this.#clock.monotonicMs() + patienceMs
    for (let pauseMs = firstPauseMs, reopened = 0; ; pauseMs = Math.min(pauseMs * 2, longestPauseMs), reopened++) {
      const used = this.#open
      try {
        return await work()
      } catch (error) {
        signal.throwIfAborted()
        if (isDamage(error)) this.#judge(error, reopened > 0)
        else if (reopened > mostReopened || this.#clock.monotonicMs() >= untilMs) throw error
        if (!isDamage(error)) await this.#clock.sleep(pauseMs, signal)
        await this.#reopen(used, error, untilMs)
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

  /** Resolves when the repository has been opened after `used`, by whomever; rejects when that takes too long. */
  async #reopen(used: OpenDisks, why: unknown, untilMs: number): Promise<void> {
    while (this.#open === used) {
      this.#reopening ??= this.#openAnew(why).finally(() => {
        this.#reopening = undefined
      })
      const refused = await this.#reopening
      if (refused !== undefined && this.#clock.monotonicMs() >= untilMs) throw refused.error
    }
  }

  /** One attempt for all who wait, and the pause after one that failed. */
  async #openAnew(why: unknown): Promise<{ readonly error: unknown } | undefined> {
    const { open, signal, onAway } = this.#options
    signal.throwIfAborted()
    try {
      const former = this.#open
      this.#open = await open()
      this.#awayPauseMs = undefined
      await closed(former)
      return undefined
    } catch (error) {
      if (this.#awayPauseMs === undefined) onAway?.(why)
      const pauseMs = this.#awayPauseMs ?? firstPauseMs
      this.#awayPauseMs = Math.min(pauseMs * 2, longestPauseMs)
      await this.#clock.sleep(pauseMs, signal)
      return { error }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#reopening?.catch(() => undefined)
    await this.#open[Symbol.asyncDispose]()
  }
}

interface PointDisk {
  /** What it is called among those that are opened. */
  readonly name: string
  /** Of the stream in the recovery point. */
  readonly stream: string
  readonly sizeBytes: number
}

/** Disks of a recovery point, whose repository stays the caller's. Rejects when one is not as long as it was. */
export async function openDisksOf(point: RecoveryPoint, disks: readonly PointDisk[]): Promise<OpenDisks> {
  await using stack = new AsyncDisposableStack()
  const sources = new Map<string, BlockSource>()
  for (const { name, stream, sizeBytes } of disks) {
    const source = stack.use(await point.openStream(stream))
    if (source.sizeBytes !== sizeBytes) throw new Error(`${name} has ${source.sizeBytes} bytes, not ${sizeBytes}`)
    sources.set(name, source)
  }
  const all = stack.move()
  return { sources, [Symbol.asyncDispose]: () => all.disposeAsync() }
}

/** The same with the repository that is opened for it, which is closed with them. */
export async function openDisksIn(
  repository: Promise<Repository>,
  pointId: string,
  disks: readonly PointDisk[],
): Promise<OpenDisks> {
  await using stack = new AsyncDisposableStack()
  const point = await stack.use(await repository).point(pointId)
  const { sources } = stack.use(await openDisksOf(point, disks))
  const all = stack.move()
  return { sources, [Symbol.asyncDispose]: () => all.disposeAsync() }
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
