/**
 * The data path: from a copy into the repository, and back. A fixed number of lanes each own one buffer; back-pressure is
 * the lane that waits. Holes are neither read nor written.
 */
import { inSlot, openSlots } from '../base/slots.ts'
import type { BlockSink, BlockSource } from '../disk/block-device.ts'

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

/** Takes one chunk; the buffer is the writer's until the promise resolves. */
export type WriteChunk = (chunkNumber: number, data: Uint8Array) => Promise<void>

/** Hands every chunk of `source` that holds data to `write`; answers how many bytes were read. */
export async function readInto(source: BlockSource, write: WriteChunk, options: TransferOptions): Promise<number> {
  const { chunkSizeBytes, onProgress } = options
  let readBytes = 0
  await inLanes(dataChunks(source, chunkSizeBytes, onProgress), options, async (chunkNumber, buffer) => {
    const offset = chunkNumber * chunkSizeBytes
    const data = buffer.subarray(0, Math.min(chunkSizeBytes, source.sizeBytes - offset))
    await source.read(offset, data)
    await write(chunkNumber, data)
    readBytes += data.length
    onProgress(data.length)
  })
  return readBytes
}

/** Writes every byte of `source` that is not a hole to `sink`, which must read as zeros where nothing is written. */
export async function writeOut(source: BlockSource, sink: BlockSink, options: TransferOptions): Promise<void> {
  const { chunkSizeBytes, onProgress } = options
  const writing = openSlots(writesAtOnce)
  await inLanes(dataChunks(source, chunkSizeBytes, onProgress), options, async (chunkNumber, buffer) => {
    const offset = chunkNumber * chunkSizeBytes
    const data = buffer.subarray(0, Math.min(chunkSizeBytes, source.sizeBytes - offset))
    await source.read(offset, data)
    await inSlot(writing, () => sink.write(offset, data))
    onProgress(data.length)
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

/** Runs `work` on each item, several at once, each lane with a buffer of its own; stops all at the first error. */
export async function inLanes<Item>(
  items: AsyncGenerator<Item, void>,
  { chunkSizeBytes, signal }: Pick<TransferOptions, 'chunkSizeBytes' | 'signal'>,
  work: (item: Item, buffer: Uint8Array) => Promise<void>,
): Promise<void> {
  let stopped = false
  const lane = async () => {
    const buffer = Buffer.allocUnsafeSlow(chunkSizeBytes)
    try {
      for (;;) {
        signal.throwIfAborted()
        const { value, done } = await items.next()
        if (done === true || stopped) return
        await work(value, buffer)
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
