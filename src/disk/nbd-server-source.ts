/**
 * A disk as the server reads it: what can not be read is told, and is no exception to the connection. It waits for nothing
 * itself; a source that is worth waiting for is patient by itself (src/requester/patient-disks.ts).
 */
import type { BlockSource, Extent } from './block-device.ts'

/** A read that was not possible. */
export interface ServedFailure {
  readonly name: string
  readonly offset: number
  readonly length: number
  readonly error: unknown
}

export class ServedSource {
  readonly #name: string
  readonly #source: BlockSource
  readonly #onFailure: (failure: ServedFailure) => void

  constructor(name: string, source: BlockSource, onFailure: (failure: ServedFailure) => void) {
    this.#name = name
    this.#source = source
    this.#onFailure = onFailure
  }

  get sizeBytes(): number {
    return this.#source.sizeBytes
  }

  /** Fills `target`; false when that was not possible, which was told. Rejects with the reason of `signal` if it fails after that. */
  async read(offset: number, target: Uint8Array, signal: AbortSignal): Promise<boolean> {
    const read = async () => {
      await this.#source.read(offset, target)
      return true
    }
    return (await this.#told(offset, target.length, signal, read)) ?? false
  }

  /** The first extents of the range, at most `most`; undefined when they can not be told, which was told. */
  extents(offset: number, length: number, most: number, signal: AbortSignal): Promise<Extent[] | undefined> {
    return this.#told(offset, length, signal, async () => {
      const extents: Extent[] = []
      for await (const extent of this.#source.extents(offset, length)) {
        if (extent.length > 0) extents.push(extent)
        if (extents.length === most) break
      }
      return extents
    })
  }

  async #told<T>(offset: number, length: number, signal: AbortSignal, work: () => Promise<T>): Promise<T | undefined> {
    try {
      return await work()
    } catch (error) {
      signal.throwIfAborted() // nobody asks any more
      this.#onFailure({ name: this.#name, offset, length, error })
      return undefined
    }
  }
}
