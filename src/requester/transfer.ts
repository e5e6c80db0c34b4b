/**
 * The data path: from a copy into the repository, and back. A fixed number of lanes each have a few chunks at a time;
 * back-pressure is the lane that waits. Holes are neither read nor written.
 */
import { mapLimit } from '../base/async.ts'
import { inSlot, openSlots } from '../base/slots.ts'
import { type BlockSink, type BlockSource, type LendingSource, oneByOne } from '../disk/block-device.ts'
import type { StreamWriter } from '../repository/repository.ts'

/** Reads or writes in flight per disk. */
const lanes = 6
/** Chunks that follow one another go in one request: each is a trip to another thread, which costs more than it looks. */
const requestBytes = 2 * 1024 * 1024
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
  await inLanes(dataRuns(source, options), signal, async (run) => {
    using lent = new DisposableStack()
    const chunks = run.map(({ offset, length }) => {
      const buffer = lent.use(writer.lendBuffer())
      return { offset, buffer, data: buffer.bytes.subarray(0, length) }
    })
    const parts = chunks.map(({ data }) => data)
    await source.readParts?.(run[0].offset, parts)
    await mapLimit(chunks, chunks.length, async ({ offset, data, buffer }) => {
      if (source.readParts === undefined) await source.read(offset, data)
      await writer.writeChunk(offset / chunkSizeBytes, data, buffer)
      readBytes += data.length
      onProgress(data.length)
    })
  })
  return readBytes
}

/** Writes every byte of `source` that is not a hole to `sink`, which must read as zeros where nothing is written. */
export async function writeOut(source: LendingSource, sink: BlockSink, options: TransferOptions): Promise<void> {
  const { signal, onProgress } = options
  const writing = openSlots(writesAtOnce)
  const write = (offset: number, parts: readonly Uint8Array[]) =>
    sink.writeParts?.(offset, parts) ?? oneByOne(offset, parts, (at, data) => sink.write(at, data))
  await inLanes(dataRuns(source, options), signal, async (run) => {
    await withAll(source, run, (parts) => inSlot(writing, () => write(run[0].offset, parts)))
    onProgress(run.reduce((sum, { length }) => sum + length, 0))
  })
  await sink.flush()
}

interface Range {
  readonly offset: number
  readonly length: number
}

/** Chunks that follow one another. */
type Run = readonly [Range, ...Range[]]

/** Calls `use` with the bytes of all ranges, which are lent until it has resolved. */
function withAll(
  source: LendingSource,
  [range, ...others]: readonly Range[],
  use: (parts: readonly Uint8Array[]) => Promise<void>,
  parts: readonly Uint8Array[] = [],
): Promise<void> {
  if (range === undefined) return use(parts)
  return source.withBytes(range.offset, range.length, (data) => withAll(source, others, use, [...parts, data]))
}

/** The chunks that hold any data, in runs for a lane. */
async function* dataRuns(
  source: BlockSource,
  { chunkSizeBytes, onProgress }: Pick<TransferOptions, 'chunkSizeBytes' | 'onProgress'>,
): AsyncGenerator<Run, void> {
  const most = Math.max(1, Math.floor(requestBytes / chunkSizeBytes))
  let run: [Range, ...Range[]] | undefined
  for await (const number of dataChunks(source, chunkSizeBytes, onProgress)) {
    const offset = number * chunkSizeBytes
    const chunk = { offset, length: Math.min(chunkSizeBytes, source.sizeBytes - offset) }
    if (run !== undefined && run.length < most && offset === run[0].offset + run.length * chunkSizeBytes) {
      run.push(chunk)
      continue
    }
    if (run !== undefined) yield run
    run = [chunk]
  }
  if (run !== undefined) yield run
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
