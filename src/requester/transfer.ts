/**
 * The data path: from a copy into the repository, and back. A fixed number of lanes each have one chunk at a time;
 * back-pressure is the lane that waits. Holes are neither read nor written.
 */
import { inSlot, openSlots } from '../base/slots.ts'
import type { BlockSink, BlockSource, LendingSource } from '../disk/block-device.ts'
import type { StreamWriter } from '../repository/repository.ts'

/** Reads or writes in flight per disk. */
const lanes = 8
/** A file system lets one write into a file at a time; many at once only burn the processor while they wait in turn. */
const writesAtOnce = 2

export interface TransferOptions {
  readonly chunkSizeBytes: number
  readonly signal: AbortSignal
  /** Bytes of the disk dealt with since the last call, holes included. */
  readonly onProgress: (bytes: number) => void
}

/** What chunks are written to. */
export type ChunkWriter = Pick<StreamWriter, 'lendBuffer' | 'writeChunk'>

/** Hands every chunk of `source` that holds data to `writer`; answers how many bytes were read. */
export async function readInto(source: BlockSource, writer: ChunkWriter, options: TransferOptions): Promise<number> {
  const { chunkSizeBytes, signal, onProgress } = options
  let readBytes = 0
  await inLanes(dataChunks(source, chunkSizeBytes, onProgress), signal, async (chunkNumber) => {
    using buffer = writer.lendBuffer()
    const offset = chunkNumber * chunkSizeBytes
    const data = buffer.bytes.subarray(0, Math.min(chunkSizeBytes, source.sizeBytes - offset))
    await source.read(offset, data)
    await writer.writeChunk(chunkNumber, data, buffer)
    readBytes += data.length
    onProgress(data.length)
  })
  return readBytes
}

/** Writes every byte of `source` that is not a hole to `sink`, which must read as zeros where nothing is written. */
export async function writeOut(source: LendingSource, sink: BlockSink, options: TransferOptions): Promise<void> {
  const { chunkSizeBytes, signal, onProgress } = options
  const writing = openSlots(writesAtOnce)
  await inLanes(dataChunks(source, chunkSizeBytes, onProgress), signal, async (chunkNumber) => {
    const offset = chunkNumber * chunkSizeBytes
    const length = Math.min(chunkSizeBytes, source.sizeBytes - offset)
    await source.withBytes(offset, length, (data) => inSlot(writing, () => sink.write(offset, data)))
    onProgress(length)
  })
  await sink.flush()
}

/** Numbers of the chunks that hold any data, ascending, each once; chunks that do not are reported as dealt with. */
async function* dataChunks(
  source: BlockSource,
  chunkSizeBytes: number,
  onProgress: (bytes: number) => void,
): AsyncGenerator<number> {
  let next = 0 // the first chunk not yet dealt with
  const skipTo = (chunk: number) => {
    const from = next * chunkSizeBytes
    const to = Math.min(chunk * chunkSizeBytes, source.sizeBytes)
    if (to > from) onProgress(to - from)
    next = Math.max(next, chunk)
  }
  for await (const { offset, length, data } of source.extents(0, source.sizeBytes)) {
    if (!data || length === 0) continue
    skipTo(Math.floor(offset / chunkSizeBytes))
    const last = Math.floor((offset + length - 1) / chunkSizeBytes)
    while (next <= last) yield next++
  }
  skipTo(Math.ceil(source.sizeBytes / chunkSizeBytes))
}

/** Runs `work` on each item, several at once; stops all at the first error. */
export async function inLanes<Item>(
  items: AsyncGenerator<Item, void>,
  signal: AbortSignal,
  work: (item: Item) => Promise<void>,
): Promise<void> {
  let stopped = false
  const lane = async () => {
    try {
      for (;;) {
        signal.throwIfAborted()
        const { value, done } = await items.next()
        if (done === true || stopped) return
        await work(value)
      }
    } catch (error) {
      stopped = true
      throw error
    }
  }
  const settled = await Promise.allSettled(Array.from({ length: lanes }, lane))
  const failed = settled.find((one) => one.status === 'rejected')
  if (failed !== undefined) throw failed.reason
}
