/**
 * DecodedChunks: the chunks that were read last, decoded. Two kinds are kept apart, because readers in order use the one once
 * and the other again and again: whole chunks, and records that give blocks to many places. After twenty incremental
 * backups a restore takes blocks from twenty such records in turn, between which it reads whole chunks.
 */
import type { SharedBuffer } from './aligned-buffers.ts'

export interface DecodedChunk {
  readonly buffer: SharedBuffer
  readonly plain: Buffer
}

export type KeptAs = 'whole' | 'parts'

/** Enough that some sequential readers do not decode a chunk twice. */
const mostWhole = 12
/** One for each incremental backup since the last full one, and as many again. */
const mostParts = 64
/** For both kinds together; at least half of it for parts. */
const memoryBytes = 60 * 1024 * 1024

/** A decoded chunk, or one on its way, in a buffer that goes back when nobody needs it. */
interface KeptChunk {
  readonly decoded: Promise<DecodedChunk>
  users: number
  evicted: boolean
}

export class DecodedChunks {
  readonly #kept = { whole: new Map<string, KeptChunk>(), parts: new Map<string, KeptChunk>() }
  readonly #most: Readonly<Record<KeptAs, number>>
  readonly #decode: (id: Buffer) => Promise<DecodedChunk>
  readonly #giveBuffer: (buffer: SharedBuffer) => void

  /** A decoded chunk takes `bufferBytes`. `decode` gives its buffer back itself when it fails. */
  constructor(
    bufferBytes: number,
    decode: (id: Buffer) => Promise<DecodedChunk>,
    giveBuffer: (buffer: SharedBuffer) => void,
  ) {
    const most = Math.floor(memoryBytes / bufferBytes)
    const whole = Math.min(mostWhole, Math.floor(most / 2))
    this.#most = { whole, parts: Math.min(mostParts, most - whole) }
    this.#decode = decode
    this.#giveBuffer = giveBuffer
  }

  /** Calls `use` with the plain bytes of the chunk, which are valid until it has resolved. */
  async with<T>(id: Buffer, keptAs: KeptAs, use: (plain: Buffer) => T | Promise<T>): Promise<T> {
    const name = id.toString('latin1')
    const keptHere = this.#kept.parts.has(name) ? 'parts' : keptAs
    const kept = this.#kept[keptHere]
    const chunk = kept.get(name) ?? { decoded: this.#decode(id), users: 0, evicted: false }
    chunk.users += 1
    kept.delete(name)
    kept.set(name, chunk)
    this.#evictOldest(kept, this.#most[keptHere])
    try {
      return await use((await chunk.decoded).plain)
    } catch (error) {
      if (kept.get(name) === chunk) kept.delete(name)
      chunk.evicted = true
      throw error
    } finally {
      chunk.users -= 1
      this.#reclaim(chunk)
    }
  }

  #evictOldest(kept: Map<string, KeptChunk>, most: number): void {
    if (kept.size <= most) return
    const [oldest] = kept
    if (oldest === undefined) return
    kept.delete(oldest[0])
    oldest[1].evicted = true
    this.#reclaim(oldest[1])
  }

  #reclaim(chunk: KeptChunk): void {
    if (!chunk.evicted || chunk.users > 0) return
    chunk.decoded.then(
      ({ buffer }) => this.#giveBuffer(buffer),
      () => undefined, // gave its buffer back itself
    )
  }
}
