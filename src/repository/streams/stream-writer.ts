/**
 * A stream that is being written: whole chunks, or blocks over an earlier stream. Chunks go to the draft as they come;
 * blocks are gathered into records of a chunk's size, so that the index stays at one entry for each chunk of new data.
 */
import { invariant } from '../../base/failure.ts'
import { asBuffer } from '../chunks/blake3.ts'
import type { ChunkBuffer } from '../chunks/chunk-buffer.ts'
import { blockSizeBytes, recordKinds } from '../format.ts'
import type { OpenDraft } from '../point-draft.ts'
import type { ManifestStream, RecoveryPoint, StreamSummary } from '../recovery-point.ts'
import { BaseMap, nothingIfDamaged } from './base-map.ts'
import { type BlockBytes, BlockGatherer } from './block-gatherer.ts'
import { storeSegment } from './map-pieces.ts'
import type { Place } from './map-segment.ts'
import { placeEquals } from './place-read.ts'
import { StreamMapBuilder } from './stream-map-builder.ts'
import { chunkCountOf } from './stream-map-root.ts'

/** An earlier stream whose content is what is not written this time. Sizes must be equal. */
export interface StreamBase {
  readonly point: RecoveryPoint
  readonly stream: string
}

/**
 * Disposal before `finish` leaves the stream out of the point. What is never written is as in the base; without a base it
 * is zeros. Several calls at once, in any order, as long as those about one chunk come one after the other: the last word
 * counts. Buffers belong to the writer until the promise resolves (accepted; slow when the repository is: that is the
 * back-pressure). An error of any chunk before is thrown by the next call.
 */
export interface StreamWriter extends AsyncDisposable {
  /**
   * One whole chunk (shorter only at the end of the stream). With a base, a chunk that holds the same bytes stays as it is,
   * parts too: to read everything again stores nothing twice. Not copied when it stands at the beginning of `from`.
   */
  writeChunk(chunkNumber: number, data: Uint8Array, from?: ChunkBuffer): Promise<void>
  /** Where to put the bytes of chunks and blocks; the caller disposes it. */
  lendBuffer(): ChunkBuffer
  /**
   * Some blocks of a chunk, the others stay. `blocks`: ascending numbers of blocks in the chunk; `data`: their bytes one after
   * the other (the last of the disk may be short).
   */
  writeBlocks(chunkNumber: number, blocks: readonly number[], data: Uint8Array): Promise<void>
  /** Blocks that read as zeros, without their bytes. */
  zeroBlocks(chunkNumber: number, blocks: readonly number[]): Promise<void>
  /**
   * Chunks of the base whose stored bytes may not be used any more (damaged, or being collected), ascending: each must be
   * given to writeChunk. With a base, read it to its end before anything is written; without one it is empty.
   */
  unusableChunks(): AsyncIterable<number>
  /**
   * Instead of `unusableChunks`, before anything is written: what is not written is zeros, and the base is only compared
   * with. For a disk that is read whole but for its holes.
   */
  startEmpty(): void
  /** No other call may be under way. */
  finish(): Promise<StreamSummary>
}

export interface StreamPlan {
  readonly name: string
  readonly sizeBytes: number
  readonly base: ManifestStream | undefined
}

/** Starts a stream of `draft`. The base's size is checked. */
export async function openStreamWriter(draft: OpenDraft, { name, sizeBytes, base }: StreamPlan): Promise<StreamWriter> {
  const { store, chunkSizeBytes } = draft.context
  if (base === undefined) return new OpenStream(draft, name, sizeBytes, undefined)
  invariant(base.sizeBytes === sizeBytes, `a base of ${base.sizeBytes} bytes for a stream of ${sizeBytes}`)
  return new OpenStream(draft, name, sizeBytes, await BaseMap.open(store, base, chunkSizeBytes))
}

class OpenStream implements StreamWriter {
  readonly #draft: OpenDraft
  readonly #name: string
  readonly #sizeBytes: number
  readonly #base: BaseMap | undefined
  readonly #map: StreamMapBuilder
  readonly #gatherer: BlockGatherer
  readonly #zeros: Buffer
  #baseIsReady: boolean
  #readBytes = 0
  #storedBytes = 0
  #newChunks = 0
  #open = true

  constructor(draft: OpenDraft, name: string, sizeBytes: number, base: BaseMap | undefined) {
    const { chunkSizeBytes } = draft.context
    this.#draft = draft
    this.#name = name
    this.#sizeBytes = sizeBytes
    this.#base = base
    this.#baseIsReady = base === undefined
    this.#map = new StreamMapBuilder(sizeBytes, chunkSizeBytes, base)
    this.#gatherer = new BlockGatherer(chunkSizeBytes, draft, (plain, from) => this.#store(plain, from))
    this.#zeros = Buffer.alloc(Math.min(chunkSizeBytes, sizeBytes))
  }

  async *unusableChunks(): AsyncGenerator<number> {
    if (this.#base !== undefined) yield* this.#base.walk()
    this.#baseIsReady = true
  }

  startEmpty(): void {
    this.#baseIsReady = true
    this.#map.startEmpty()
  }

  lendBuffer(): ChunkBuffer {
    return this.#draft.lendBuffer()
  }

  async writeChunk(chunkNumber: number, data: Uint8Array, from?: ChunkBuffer): Promise<void> {
    const chunkBytes = this.#checkChunk(chunkNumber)
    invariant(
      data.length === chunkBytes,
      `${data.length} bytes are not chunk ${chunkNumber} of ${this.#sizeBytes} bytes`,
    )
    this.#readBytes += data.length
    const plain = asBuffer(data)
    if (this.#isZeros(plain)) {
      this.#setChunk(chunkNumber, undefined)
      return
    }
    const before = this.#map.mentions(chunkNumber) ? undefined : await this.#base?.at(chunkNumber)
    if (before !== undefined && 'blocks' in before && (await this.#stillHolds(before, plain))) {
      this.#map.keep(chunkNumber)
      return
    }
    const id = await this.#store(plain, from)
    if (before !== undefined && 'whole' in before && before.whole.equals(id)) this.#map.keep(chunkNumber)
    else this.#setChunk(chunkNumber, id)
  }

  async writeBlocks(chunkNumber: number, blocks: readonly number[], data: Uint8Array): Promise<void> {
    const chunkBytes = this.#checkBlocks(chunkNumber, blocks)
    const lengths = blocks.map((block) => Math.min(blockSizeBytes, chunkBytes - block * blockSizeBytes))
    const total = lengths.reduce((sum, length) => sum + length, 0)
    invariant(data.length === total, `${data.length} bytes are not ${blocks.length} blocks of chunk ${chunkNumber}`)
    if (total === chunkBytes) return this.writeChunk(chunkNumber, data)
    this.#readBytes += data.length
    const plain = asBuffer(data)
    const zeros: number[] = []
    const others: BlockBytes[] = []
    let at = 0
    for (const [index, block] of blocks.entries()) {
      const bytes = plain.subarray(at, at + (lengths[index] ?? 0))
      at += bytes.length
      if (this.#isZeros(bytes)) zeros.push(block)
      else others.push({ block, bytes })
    }
    if (zeros.length > 0) this.#map.zeroBlocks(chunkNumber, zeros)
    await this.#gatherer.add(others, (gathered) => this.#map.setBlocks(chunkNumber, gathered))
  }

  async zeroBlocks(chunkNumber: number, blocks: readonly number[]): Promise<void> {
    const chunkBytes = this.#checkBlocks(chunkNumber, blocks)
    if (blocks.length === 0) return
    if (blocks.length === Math.ceil(chunkBytes / blockSizeBytes)) this.#setChunk(chunkNumber, undefined)
    else this.#map.zeroBlocks(chunkNumber, blocks)
  }

  #setChunk(chunkNumber: number, id: Buffer | undefined): void {
    this.#base?.unusable.delete(chunkNumber)
    this.#map.setChunk(chunkNumber, id)
  }

  #isZeros(bytes: Buffer): boolean {
    return bytes.equals(this.#zeros.subarray(0, bytes.length))
  }

  /** Whether parts of the base are exactly `plain`. Those that can not be read are not. */
  async #stillHolds(before: Place, plain: Buffer): Promise<boolean> {
    return (await placeEquals(this.#draft.context.store, before, plain).catch(nothingIfDamaged)) ?? false
  }

  async #store(plain: Buffer, from?: ChunkBuffer): Promise<Buffer> {
    const onStored = (storedBytes: number) => {
      this.#storedBytes += storedBytes
    }
    const { id, isNew } = await this.#draft.store(recordKinds.chunk, plain, { from, onStored })
    if (isNew) this.#newChunks += 1
    return id
  }

  /** Answers how many bytes the chunk has. */
  #checkChunk(chunkNumber: number): number {
    invariant(this.#open, `stream ${this.#name} is over`)
    invariant(this.#baseIsReady, 'the unusable chunks of the base were not asked for')
    const { chunkSizeBytes } = this.#draft.context
    const rest = this.#sizeBytes - chunkNumber * chunkSizeBytes
    const inside = Number.isInteger(chunkNumber) && chunkNumber >= 0 && rest > 0
    invariant(inside, `no chunk ${chunkNumber} in ${this.#sizeBytes} bytes`)
    return Math.min(chunkSizeBytes, rest)
  }

  #checkBlocks(chunkNumber: number, blocks: readonly number[]): number {
    const chunkBytes = this.#checkChunk(chunkNumber)
    const whole = blocks.length === Math.ceil(chunkBytes / blockSizeBytes)
    invariant(whole || this.#base?.unusable.has(chunkNumber) !== true, `chunk ${chunkNumber} is not usable in the base`)
    let last = -1
    for (const block of blocks) {
      const inside = Number.isInteger(block) && block > last && block * blockSizeBytes < chunkBytes
      invariant(inside, `no block ${block} after ${last} in chunk ${chunkNumber}`)
      last = block
    }
    return chunkBytes
  }

  async finish(): Promise<StreamSummary> {
    invariant(this.#open, `stream ${this.#name} is over`)
    const base = this.#base
    invariant(this.#baseIsReady, 'the unusable chunks of the base were not asked for')
    invariant(base === undefined || base.unusable.size === 0, 'an unusable chunk of the base was not written')
    this.#open = false
    const draft = this.#draft
    const { store, chunkSizeBytes } = draft.context
    const gathered = await this.#gatherer.finish()
    const storeRecord = async (bytes: Buffer) => (await draft.store(recordKinds.segment, bytes)).id
    const { root, chunks, hasParts } = await this.#map.finish(gathered, (segment) =>
      storeSegment(segment, store.maxPlainBytes, storeRecord),
    )
    const map = await draft.storeBlob(root)
    await draft.settled()
    const summary = {
      name: this.#name,
      sizeBytes: this.#sizeBytes,
      readBytes: this.#readBytes,
      storedBytes: this.#storedBytes,
      newChunks: this.#newChunks,
      knownChunks: Math.max(0, chunks - this.#newChunks),
      zeroChunks: chunkCountOf(this.#sizeBytes, chunkSizeBytes) - chunks,
    }
    draft.addStream({ ...summary, map }, hasParts)
    return summary
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#open = false
    this.#gatherer[Symbol.dispose]()
  }
}
