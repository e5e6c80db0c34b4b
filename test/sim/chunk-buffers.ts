/**
 * Buffers on loan as the repository lends them, without its threads; counts those that did not come back.
 */
import { ChunkBuffer } from '../../src/repository/chunks/chunk-buffer.ts'

export class ChunkBuffers {
  outstanding = 0
  readonly #bytes: number

  constructor(bytes: number) {
    this.#bytes = bytes
  }

  readonly lendBuffer = (): ChunkBuffer => {
    const giveBuffer = () => {
      this.outstanding -= 1
    }
    const takeBuffer = () => {
      this.outstanding += 1
      return Buffer.from(new SharedArrayBuffer(this.#bytes))
    }
    return new ChunkBuffer({ takeBuffer, giveBuffer })
  }
}
