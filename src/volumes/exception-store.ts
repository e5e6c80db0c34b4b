/**
 * The persistent exception store of device-mapper's snapshot target: which chunks of a volume were written since the
 * instant, and what was in them. Chunk 0 is the header; then areas, each one chunk of pairs (old, new) and the chunks
 * these name; the first pair without a new chunk is the end.
 * Source: kernel documentation "Device-mapper snapshot support", and drivers/md/dm-snap-persistent.c for the layout.
 */
import { ChunkBitmap, TooManyChunksError } from './chunk-bitmap.ts'
import { readVolume, type VolumeMap } from './volume-map.ts'

const magic = 0x70416e53
const pairBytes = 16
const smallestChunkBytes = 4096
const largestChunkBytes = 16 * 1024 * 1024
/** Of one area, this much is in memory at once. */
const readBytes = 256 * 1024

/** The reason why a store can not be used. Callers name the volume. */
export class StoreError extends Error {
  /** The guest wrote more than fitted: what is there is not whole, but nothing is wrong with it. */
  readonly overflowed: boolean

  constructor(reason: string, overflowed = false) {
    super(reason)
    this.overflowed = overflowed
  }
}

/** A chunk that the volume had, as numbers of chunks: in the volume `old`, in the store `new`. */
export interface Exception {
  readonly old: number
  readonly new: number
}

export interface ExceptionStore {
  readonly map: VolumeMap
  readonly chunkBytes: number
}

export async function openStore(map: VolumeMap): Promise<ExceptionStore> {
  if (map.sizeBytes < 2 * smallestChunkBytes) throw new StoreError('is too small to be a snapshot area')
  const header = await readVolume(map, 0, 16)
  if (header.readUInt32LE(0) !== magic) throw new StoreError('is not a snapshot area')
  const valid = header.readUInt32LE(4)
  if (valid === 0) throw new StoreError('overflowed', true)
  if (valid !== 1 || header.readUInt32LE(8) !== 1) throw new StoreError('is a snapshot area of another version')
  const chunkBytes = header.readUInt32LE(12) * 512
  const isPower = chunkBytes > 0 && Number.isInteger(Math.log2(chunkBytes))
  if (!isPower || chunkBytes < smallestChunkBytes || chunkBytes > largestChunkBytes) {
    throw new StoreError(`has chunks of ${chunkBytes} bytes`)
  }
  return { map, chunkBytes }
}

/** All exceptions, in the order in which they were made, checked one by one except for repetition. */
export async function* exceptionsOf(store: ExceptionStore, originBytes: number): AsyncGenerator<Exception[]> {
  const { map, chunkBytes } = store
  const perArea = chunkBytes / pairBytes
  const chunks = Math.floor(map.sizeBytes / chunkBytes)
  const originChunks = Math.ceil(originBytes / chunkBytes)
  for (let areaChunk = 1; ; areaChunk += perArea + 1) {
    if (areaChunk >= chunks) throw new StoreError('has no end')
    for (let at = 0; at < chunkBytes; at += readBytes) {
      const pairs = await readVolume(map, areaChunk * chunkBytes + at, Math.min(readBytes, chunkBytes))
      const found: Exception[] = []
      for (let pair = 0; pair < pairs.length; pair += pairBytes) {
        // What a number can not hold exactly is far beyond every volume.
        const one = { old: Number(pairs.readBigUInt64LE(pair)), new: Number(pairs.readBigUInt64LE(pair + 8)) }
        if (one.new === 0) {
          yield found
          return
        }
        if (one.old >= originChunks) throw new StoreError(`names chunk ${one.old}, which its volume does not have`)
        if (one.new >= chunks) throw new StoreError(`names chunk ${one.new}, which it does not have`)
        if (one.new % (perArea + 1) === 1) throw new StoreError(`names chunk ${one.new}, which holds no data`)
        found.push(one)
      }
      yield found
    }
  }
}

/** How many chunks there are to copy back. Throws StoreError when any of them can not be. */
export async function checkStore(store: ExceptionStore, originBytes: number): Promise<number> {
  const olds = new ChunkBitmap()
  const news = new ChunkBitmap()
  let count = 0
  try {
    for await (const batch of exceptionsOf(store, originBytes)) {
      for (const one of batch) {
        if (!olds.add(one.old)) throw new StoreError(`names chunk ${one.old} of its volume twice`)
        if (!news.add(one.new)) throw new StoreError(`uses its chunk ${one.new} twice`)
        count++
      }
    }
  } catch (error) {
    throw error instanceof TooManyChunksError ? new StoreError('names chunks too far apart') : error
  }
  return count
}

/** What lies in one piece in the store, and where its parts go: the kernel fills a store from its beginning. */
export interface CopyRun {
  readonly from: number
  readonly length: number
  readonly parts: readonly Part[]
}

/** `at` counts from the beginning of the run. */
interface Part {
  readonly at: number
  readonly to: number
  readonly length: number
}

/** What to copy back, in runs of at most `mostBytes`, neighbours merged. */
export async function* copyRuns(store: ExceptionStore, originBytes: number, mostBytes: number) {
  let run: { from: number; length: number; parts: Part[] } | undefined
  for await (const { from, to, length } of piecesOf(store, originBytes, mostBytes)) {
    if (run === undefined || run.from + run.length !== from || run.length + length > mostBytes) {
      if (run !== undefined) yield run satisfies CopyRun
      run = { from, length: 0, parts: [] }
    }
    const last = run.parts.at(-1)
    if (last !== undefined && last.to + last.length === to)
      run.parts.splice(-1, 1, { ...last, length: last.length + length })
    else run.parts.push({ at: run.length, to, length })
    run.length += length
  }
  if (run !== undefined) yield run satisfies CopyRun
}

/** Chunk by chunk, in bytes; the last chunk of a volume may be cut short, a large one is several pieces. */
async function* piecesOf(store: ExceptionStore, originBytes: number, mostBytes: number) {
  const { chunkBytes } = store
  for await (const batch of exceptionsOf(store, originBytes)) {
    for (const one of batch) {
      const wanted = Math.min(chunkBytes, originBytes - one.old * chunkBytes)
      for (let at = 0; at < wanted; at += mostBytes) {
        const length = Math.min(mostBytes, wanted - at)
        yield { from: one.new * chunkBytes + at, to: one.old * chunkBytes + at, length }
      }
    }
  }
}
