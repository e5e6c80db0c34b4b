/**
 * BlockGatherer: collects blocks of one stream, in the order of their arrival, into records of a chunk's size. One buffer:
 * who comes while it is being stored waits.
 */
import { blockSizeBytes } from './format.ts'
import type { GatheredBlocks } from './map-log.ts'

export interface BlockBytes {
  readonly block: number
  /** A whole block, or the short one at the end of the disk. */
  readonly bytes: Buffer
}

export class BlockGatherer {
  readonly #recordBytes: number
  readonly #store: (plain: Buffer) => Promise<Buffer>
  readonly #ids: Buffer[] = []
  #buffer: Buffer | undefined
  #filled = 0
  #turn: Promise<void> = Promise.resolve()

  /** `store` answers the id of a record; the bytes are its own until then. */
  constructor(recordBytes: number, store: (plain: Buffer) => Promise<Buffer>) {
    this.#recordBytes = recordBytes
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
    this.#buffer = undefined
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
    this.#buffer ??= Buffer.alloc(this.#recordBytes)
    this.#buffer.set(bytes, this.#filled)
    this.#buffer.fill(0, this.#filled + bytes.length, this.#filled + blockSizeBytes)
    this.#filled += blockSizeBytes
  }

  async #flush(): Promise<void> {
    if (this.#buffer === undefined || this.#filled === 0) return
    this.#ids.push(await this.#store(this.#buffer.subarray(0, this.#filled)))
    this.#filled = 0
  }
}
