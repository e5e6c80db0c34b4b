/**
 * Room for the bytes of a chunk, lent by the codec threads. Whoever is handed its content may keep it: what is stored from
 * such a buffer is not copied.
 */
import { invariant } from '../../base/failure.ts'
import type { SharedBuffer } from './aligned-buffers.ts'
import type { CodecThreads } from './codec-threads.ts'

type Pool = Pick<CodecThreads, 'takeBuffer' | 'giveBuffer'>

/** Disposal gives the buffer back, unless it was kept. */
export class ChunkBuffer implements Disposable {
  readonly #pool: Pool
  #buffer: SharedBuffer | undefined

  constructor(pool: Pool) {
    this.#pool = pool
    this.#buffer = pool.takeBuffer()
  }

  get bytes(): SharedBuffer {
    invariant(this.#buffer !== undefined, 'the buffer is not on loan any more')
    return this.#buffer
  }

  /** For who was handed `data`, which stands at the beginning: gives the buffer back to the pool in the lender's stead. */
  keep(data: Uint8Array): SharedBuffer {
    const kept = this.bytes
    invariant(data.buffer === kept.buffer && data.byteOffset === kept.byteOffset, 'data that stands elsewhere')
    this.#buffer = undefined
    return kept
  }

  [Symbol.dispose](): void {
    if (this.#buffer !== undefined) this.#pool.giveBuffer(this.#buffer)
    this.#buffer = undefined
  }
}
