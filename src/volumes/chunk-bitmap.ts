/**
 * Which chunks were seen, in memory bounded by how many there are and not by how large a volume claims to be.
 */
const chunksPerPage = 4096

/** Thrown when the chunks lie further apart than any real guest's would. */
export class TooManyChunksError extends Error {}

export class ChunkBitmap {
  readonly #pages = new Map<number, Uint8Array>()
  readonly #mostPages: number

  /** 128 MiB with their keys: chunks of 4 KiB of 4 TiB, when all of it was written. */
  constructor(mostPages = 256 * 1024) {
    this.#mostPages = mostPages
  }

  /** False when it was there already. */
  add(chunk: number): boolean {
    const number = Math.floor(chunk / chunksPerPage)
    let page = this.#pages.get(number)
    if (page === undefined) {
      if (this.#pages.size >= this.#mostPages) throw new TooManyChunksError('too many chunks')
      page = new Uint8Array(chunksPerPage / 8)
      this.#pages.set(number, page)
    }
    const at = chunk % chunksPerPage
    const byte = page[at >> 3] ?? 0
    const bit = 1 << (at & 7)
    page[at >> 3] = byte | bit
    return (byte & bit) === 0
  }
}
