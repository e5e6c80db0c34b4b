/**
 * The data path of an incremental backup: only blocks that have changed are read. What has changed is known from the
 * provider's change tracking; what did not change comes from an earlier recovery point. Some chunks that are said to be
 * unchanged are read all the same and compared: tracking that went wrong shows itself before it can do harm.
 */
import type { BlockSource } from '../disk/block-device.ts'
import { endOf, type Range } from '../disk/extents.ts'
import type { StreamWriter } from '../repository/repository.ts'
import { inLanes, type TransferOptions } from './transfer.ts'

export interface ChangedTransferOptions extends TransferOptions {
  /** What the repository stores apart; a chunk is a whole number of blocks. */
  readonly blockSizeBytes: number
}

/** Blocks of one chunk that may have changed, ascending. */
export interface ChangedPiece {
  readonly chunk: number
  readonly data: readonly number[]
  /** Of these it is known that they read as zeros. */
  readonly holes: readonly number[]
}

/** Hands every changed block of `source` to `stream`, which has the rest from its base; answers how many bytes were read. */
export async function readChanges(
  source: BlockSource,
  ranges: AsyncIterable<Range>,
  stream: StreamWriter,
  options: ChangedTransferOptions,
): Promise<number> {
  const { chunkSizeBytes, blockSizeBytes, signal, onProgress } = options
  const unusable = new Set<number>()
  for await (const chunk of stream.unusableChunks()) unusable.add(chunk)
  let readBytes = 0
  const read = async (offset: number, target: Uint8Array) => {
    await source.read(offset, target)
    readBytes += target.length
  }
  const chunkLength = (chunk: number) => Math.min(chunkSizeBytes, source.sizeBytes - chunk * chunkSizeBytes)
  const readWhole = async (chunk: number) => {
    using buffer = stream.lendBuffer()
    const data = buffer.bytes.subarray(0, chunkLength(chunk))
    await read(chunk * chunkSizeBytes, data)
    await stream.writeChunk(chunk, data, buffer)
  }
  await inLanes(each(unusable), signal, readWhole)
  const pieces = changedPieces(source, ranges, options)
  await inLanes(pieces, signal, async ({ chunk, data, holes }) => {
    if (unusable.has(chunk)) return
    const length = chunkLength(chunk)
    if (data.length * blockSizeBytes >= length) return readWhole(chunk)
    if (holes.length > 0) await stream.zeroBlocks(chunk, holes)
    using buffer = stream.lendBuffer()
    let filled = 0
    for (const { offset, length: runBytes } of runsOf(data, blockSizeBytes, length)) {
      await read(chunk * chunkSizeBytes + offset, buffer.bytes.subarray(filled, filled + runBytes))
      filled += runBytes
    }
    if (data.length > 0) await stream.writeBlocks(chunk, data, buffer.bytes.subarray(0, filled))
  })
  onProgress(source.sizeBytes)
  return readBytes
}

async function* each<T>(items: Iterable<T>): AsyncGenerator<T, void> {
  yield* items
}

/** Neighbouring blocks as one range within their chunk. */
function* runsOf(blocks: readonly number[], blockSizeBytes: number, chunkLength: number): Generator<Range> {
  for (let index = 0; index < blocks.length; ) {
    const first = blocks[index] ?? 0
    let count = 1
    while (blocks[index + count] === first + count) count += 1
    const offset = first * blockSizeBytes
    yield { offset, length: Math.min(count * blockSizeBytes, chunkLength - offset) }
    index += count
  }
}

/** The ranges as blocks, chunk by chunk. Long ones are asked for holes, so that what a guest has discarded is not read. */
export async function* changedPieces(
  source: BlockSource,
  ranges: AsyncIterable<Range>,
  { chunkSizeBytes, blockSizeBytes }: Pick<ChangedTransferOptions, 'chunkSizeBytes' | 'blockSizeBytes'>,
): AsyncGenerator<ChangedPiece, void> {
  const blocksPerChunk = chunkSizeBytes / blockSizeBytes
  let open: { chunk: number; data: number[]; holes: number[] } | undefined
  for await (const { block, hole } of changedBlocks(source, ranges, chunkSizeBytes, blockSizeBytes)) {
    const chunk = Math.floor(block / blocksPerChunk)
    if (open !== undefined && open.chunk !== chunk) yield open
    if (open?.chunk !== chunk) open = { chunk, data: [], holes: [] }
    ;(hole ? open.holes : open.data).push(block % blocksPerChunk)
  }
  if (open !== undefined) yield open
}

/** Every block a range touches, ascending, once. A block is a hole when all of it that counts is known to be zeros. */
async function* changedBlocks(
  source: BlockSource,
  ranges: AsyncIterable<Range>,
  chunkSizeBytes: number,
  blockSizeBytes: number,
): AsyncGenerator<{ block: number; hole: boolean }> {
  let next = 0
  for await (const range of ranges) {
    const end = Math.min(endOf(range), source.sizeBytes)
    const first = Math.max(next, Math.floor(range.offset / blockSizeBytes))
    const last = Math.ceil(end / blockSizeBytes)
    if (first >= last) continue
    const start = first * blockSizeBytes
    const length = Math.min(last * blockSizeBytes, source.sizeBytes) - start
    if (length < chunkSizeBytes) for (let block = first; block < last; block += 1) yield { block, hole: false }
    else yield* classified(source, start, length, blockSizeBytes)
    next = last
  }
}

async function* classified(
  source: BlockSource,
  start: number,
  length: number,
  blockSizeBytes: number,
): AsyncGenerator<{ block: number; hole: boolean }> {
  let next = start / blockSizeBytes // the first block not told yet
  let holdsData = false // what is known of it so far
  for await (const extent of source.extents(start, length)) {
    const end = endOf(extent)
    if (extent.data && extent.length > 0) holdsData = true
    while ((next + 1) * blockSizeBytes <= end) {
      yield { block: next, hole: !holdsData }
      next += 1
      holdsData = extent.data && next * blockSizeBytes < end
    }
  }
  if (next * blockSizeBytes < start + length) yield { block: next, hole: !holdsData }
}

/** Chunks looked at in each backup although they are said to be unchanged. */
const spotChecks = 4

/**
 * Compares some chunks that change tracking calls unchanged with the earlier backup; answers the offset of one that differs,
 * which means that the tracking can not be trusted. Chosen at random, so that every backup looks at others.
 */
export async function spotCheck(
  source: BlockSource,
  base: BlockSource,
  ranges: AsyncIterable<Range>,
  { chunkSizeBytes, signal }: Pick<TransferOptions, 'chunkSizeBytes' | 'signal'>,
): Promise<number | undefined> {
  const chosen = new Set<number>()
  for (let count = 0; count < spotChecks; count += 1) {
    const chunk = await someDataChunk(base, chunkSizeBytes)
    if (chunk !== undefined) chosen.add(chunk)
  }
  if (chosen.size === 0) return undefined
  for await (const range of ranges) {
    for (const chunk of chosen) {
      const offset = chunk * chunkSizeBytes
      if (range.offset < offset + chunkSizeBytes && endOf(range) > offset) chosen.delete(chunk)
    }
    if (chosen.size === 0) return undefined
  }
  for (const chunk of chosen) {
    signal.throwIfAborted()
    const offset = chunk * chunkSizeBytes
    const length = Math.min(chunkSizeBytes, source.sizeBytes - offset)
    const [now, then] = [Buffer.alloc(length), Buffer.alloc(length)]
    await Promise.all([source.read(offset, now), base.read(offset, then)])
    if (!now.equals(then)) return offset
  }
  return undefined
}

/** How far from a random place it is looked for data. */
const searchBytes = 2 * 1024 * 1024 * 1024

async function someDataChunk(base: BlockSource, chunkSizeBytes: number): Promise<number | undefined> {
  const start = Math.floor((Math.random() * base.sizeBytes) / chunkSizeBytes) * chunkSizeBytes
  for await (const { offset, data, length } of base.extents(start, Math.min(searchBytes, base.sizeBytes - start))) {
    if (data && length > 0) return Math.floor(offset / chunkSizeBytes)
  }
  return undefined
}
