/**
 * BlockGatherer: collects blocks of one stream, in the order of their arrival, into records of a chunk's size. One buffer:
 * who comes while it is being stored waits.
 */
import type { ChunkBuffer } from '../chunks/chunk-buffer.ts'
import { blockSizeBytes } from '../format.ts'
import type { GatheredBlocks } from './map-log.ts'

export interface BlockBytes {
  readonly block: number
  /** A whole block, or the short one at the end of the disk. */
  readonly bytes: Buffer
}

export interface BufferLender {
  lendBuffer(): ChunkBuffer
}

/** Answers the id of a record, which stands at the beginning of `from`; the bytes are its own until then. */
export type StoreRecord = (plain: Buffer, from: ChunkBuffer) => Promise<Buffer>

/** Disposal gives its buffer back. */
export class BlockGatherer implements Disposable {
  readonly #recordBytes: number
  readonly #lender: BufferLender
  readonly #store: StoreRecord
  readonly #ids: Buffer[] = []
  #buffer: ChunkBuffer | undefined
  #filled = 0
  #turn: Promise<void> = Promise.resolve()

  constructor(recordBytes: number, lender: BufferLender, store: StoreRecord) {
    this.#recordBytes = recordBytes
    this.#lender = lender
    this.#store = store
  }

  /**
   * Takes blocks of one chunk. Tells where they stand: all of them in one record, or in two. Resolves when their bytes may be
   * used again; the error of a record that could not be stored is thrown to this and every later call.
   */
  add(blocks: readonly BlockBytes[], placed: (gathered: GatheredBlocks) => void): Promise<void> {
    const turn = this.#turn.then(() => this.#add(blocks, placed))
    this.#turn = turn
    return turn
  }

  /** Stores what is left. Answers the ids of all records, by their numbers. */
  async finish(): Promise<readonly Buffer[]> {
    await this.#turn
    await this.#flush()
    return this.#ids
  }

  async #add(blocks: readonly BlockBytes[], placed: (gathered: GatheredBlocks) => void): Promise<void> {
    for (let next = 0; next < blocks.length; ) {
      const free = (this.#recordBytes - this.#filled) / blockSizeBytes
      const some = blocks.slice(next, next + free)
      const position = this.#filled / blockSizeBytes
      placed({ blocks: some.map(({ block }) => block), record: this.#ids.length, position })
      for (const { bytes } of some) this.#copy(bytes)
      next += some.length
      if (this.#filled === this.#recordBytes) await this.#flush()
    }
  }

  /** Every block takes a block's room: a short one is followed by zeros. */
  #copy(bytes: Buffer): void {
    this.#buffer ??= this.#lender.lendBuffer()
    bytes.copy(this.#buffer.bytes, this.#filled)
    this.#buffer.bytes.fill(0, this.#filled + bytes.length, this.#filled + blockSizeBytes)
    this.#filled += blockSizeBytes
  }

  async #flush(): Promise<void> {
    if (this.#buffer === undefined) return
    using buffer = this.#buffer
    this.#buffer = undefined
    this.#ids.push(await this.#store(buffer.bytes.subarray(0, this.#filled), buffer))
    this.#filled = 0
  }

  [Symbol.dispose](): void {
    this.#buffer?.[Symbol.dispose]()
    this.#buffer = undefined
  }
}
