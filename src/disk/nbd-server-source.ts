/**
 * A disk as the server reads it: patient while what the disk is read from is away, so that a guest sees its I/O pause
 * and not fail; and telling when it gives up.
 */
import type { Clock } from '../base/clock.ts'
import { Failure } from '../base/failure.ts'
import type { BlockSource, Extent } from './block-device.ts'

/** A read that was not, or not yet, possible. */
export interface ServedFailure {
  readonly name: string
  readonly offset: number
  readonly length: number
  readonly error: unknown
}

export interface Patience {
  readonly clock: Clock
  /** How long a read is tried again while `isPassing`; 0 for never. */
  readonly patienceMs: number
  readonly isPassing: (error: unknown) => boolean
  /** The read waits: called once for each. */
  readonly onWaiting: (failure: ServedFailure) => void
  /** The read was given up, and its client told EIO. */
  readonly onFailure: (failure: ServedFailure) => void
}

const firstPauseMs = 250
const longestPauseMs = 5000
const goneCodes: readonly string[] = ['REPOSITORY_IO', 'REPOSITORY_NOT_FOUND', 'REPOSITORY_OBJECT_MISSING']

/** True when the repository, or an object in it, could not be reached; false when what was read is damaged. */
export function isRepositoryGone(error: unknown): boolean {
  if (error instanceof Failure && goneCodes.includes(error.code)) return true
  return error instanceof Error && error.cause !== undefined && isRepositoryGone(error.cause)
}

export class PatientSource {
  readonly #name: string
  readonly #source: BlockSource
  readonly #patience: Patience

  constructor(name: string, source: BlockSource, patience: Patience) {
    this.#name = name
    this.#source = source
    this.#patience = patience
  }

  get sizeBytes(): number {
    return this.#source.sizeBytes
  }

  /** Fills `target`; false when that was not possible, which was told. Rejects with the reason of `signal`. */
  read(offset: number, target: Uint8Array, signal: AbortSignal): Promise<boolean> {
    const read = async () => {
      await this.#source.read(offset, target)
      return true
    }
    return this.#tryAgain(offset, target.length, signal, read).then((done) => done ?? false)
  }

  /** The first extents of the range, at most `most`; undefined when they can not be told, which was told. */
  extents(offset: number, length: number, most: number, signal: AbortSignal): Promise<Extent[] | undefined> {
    return this.#tryAgain(offset, length, signal, async () => {
      const extents: Extent[] = []
      for await (const extent of this.#source.extents(offset, length)) {
        if (extent.length > 0) extents.push(extent)
        if (extents.length === most) break
      }
      return extents
    })
  }

  async #tryAgain<T>(
    offset: number,
    length: number,
    signal: AbortSignal,
    work: () => Promise<T>,
  ): Promise<T | undefined> {
    const { clock, patienceMs, isPassing, onWaiting, onFailure } = this.#patience
    const beganMs = clock.monotonicMs()
    for (let pauseMs = firstPauseMs, tries = 1; ; pauseMs = Math.min(pauseMs * 2, longestPauseMs), tries++) {
      try {
        return await work()
      } catch (error) {
        signal.throwIfAborted()
        const failed = { name: this.#name, offset, length, error }
        const leftMs = beganMs + patienceMs - clock.monotonicMs()
        if (leftMs <= 0 || !isPassing(error)) {
          onFailure(failed)
          return undefined
        }
        if (tries === 1) onWaiting(failed)
        await clock.sleep(Math.min(pauseMs, leftMs), signal)
      }
    }
  }
}
