/**
 * Verify: every byte of some recovery points read again and hashed again. Chunks are marked first and then read in the order
 * in which they lie in the packs, each once, however many points share it. What is damaged is told by point, name,
 * offset and length.
 */
import { describeError, Failure, invariant } from '../base/failure.ts'
import type { Backend } from './backend.ts'
import { decodeChunk } from './chunk-codec.ts'
import type { ChunkStore } from './chunk-store.ts'
import {
  chunkCountOf,
  decodeRoot,
  decodeSegment,
  type Segment,
  type StreamMapRoot,
  segmentChunks,
} from './disk-index.ts'
import { check, FormatError, readRecordHeader, recordHeaderBytes } from './format.ts'
import type { Blob, DamagedPoint, Manifest, ManifestStream } from './recovery-point.ts'
import { openSlots } from './slots.ts'
import { readBlob } from './stream-source.ts'

export interface VerifyOptions {
  /** Ids or prefixes; all points when not given. */
  readonly points?: readonly string[]
  readonly signal?: AbortSignal
  /** Bytes of packs. */
  readonly onProgress?: (bytesDone: number, bytesTotal: number) => void
}

/** A range that can not be restored. */
export interface Damage {
  readonly point: string
  readonly kind: 'stream' | 'document'
  readonly name: string
  readonly offset: number
  readonly length: number
  readonly reason: string
}

export interface VerifyReport {
  /** The points looked at. */
  readonly points: readonly string[]
  readonly damagedPoints: readonly DamagedPoint[]
  readonly damage: readonly Damage[]
  /** Different chunks read, and the bytes of packs they took. */
  readonly chunks: number
  readonly bytesRead: number
}

/** One read of a pack, and the slots to decode what it brought. */
const bytesPerRead = 4 * 1024 * 1024
const readsAtOnce = 3
const largestGapBytes = 64 * 1024

export async function verifyPoints(
  backend: Backend,
  store: ChunkStore,
  manifests: readonly Manifest[],
  damagedPoints: readonly DamagedPoint[],
  options: VerifyOptions,
): Promise<VerifyReport> {
  const state = new ChunkStates(store)
  for (const manifest of manifests) await markPoint(store, state, manifest, options.signal)
  const bytesRead = await readMarked(backend, store, state, options)
  const damage: Damage[] = []
  if (state.hasDamage) for (const manifest of manifests) await nameDamage(store, state, manifest, damage)
  return { points: manifests.map(({ id }) => id), damagedPoints, damage, chunks: state.markedCount, bytesRead }
}

/** What is known of the chunks: to be read or not, and what is wrong with them. */
class ChunkStates {
  readonly #store: ChunkStore
  readonly #marked: Uint8Array
  readonly #reasons = new Map<number, string>()
  #missing = false
  markedCount = 0

  constructor(store: ChunkStore) {
    this.#store = store
    this.#marked = new Uint8Array(Math.ceil(store.table.size / 8))
  }

  /** True the first time. A chunk nobody has is damage of whoever needs it. */
  mark(id: Buffer): boolean {
    const number = this.#store.table.find(id)
    if (number === -1 || number >>> 3 >= this.#marked.length) {
      this.#missing = true
      return false
    }
    if (this.isMarked(number)) return false
    this.#marked[number >>> 3] = (this.#marked[number >>> 3] ?? 0) | (1 << (number & 7))
    this.markedCount += 1
    return true
  }

  isMarked(number: number): boolean {
    return (((this.#marked[number >>> 3] ?? 0) >> (number & 7)) & 1) === 1
  }

  spoil(number: number, reason: string): void {
    this.#reasons.set(number, reason)
  }

  spoilStructure(): void {
    this.#missing = true
  }

  get hasDamage(): boolean {
    return this.#missing || this.#reasons.size > 0
  }

  /** What is wrong with the chunk; undefined when nothing is. */
  reason(id: Buffer): string | undefined {
    const number = this.#store.table.find(id)
    return number === -1 ? 'no index names this chunk' : this.#reasons.get(number)
  }
}

/** What a failed read says about the data; anything but damage is thrown on. */
function damageReason(error: unknown): string {
  const isDamage =
    error instanceof FormatError ||
    (error instanceof Failure && ['REPOSITORY_OBJECT_MISSING', 'REPOSITORY_IO'].includes(error.code))
  if (!isDamage) throw error
  return describeError(error)
}

const blobIds = (blob: Blob) => blob.chunks.map((id) => Buffer.from(id, 'hex'))

async function markPoint(
  store: ChunkStore,
  state: ChunkStates,
  manifest: Manifest,
  signal?: AbortSignal,
): Promise<void> {
  for (const { blob } of manifest.documents) for (const id of blobIds(blob)) state.mark(id)
  for (const stream of manifest.streams) {
    for (const id of blobIds(stream.map)) state.mark(id)
    try {
      const root = await readRoot(store, stream)
      for (const id of root.segmentIds) {
        signal?.throwIfAborted()
        if (id === undefined || !state.mark(id)) continue
        const segment = decodeSegment(await store.read(id))
        for (let place = 0; place < segmentChunks; place += 1) {
          const chunk = segment.idAt(place)
          if (chunk !== undefined) state.mark(chunk)
        }
      }
    } catch (error) {
      signal?.throwIfAborted()
      damageReason(error)
      state.spoilStructure() // the second walk says what it is
    }
  }
}

async function readRoot(store: ChunkStore, stream: ManifestStream): Promise<StreamMapRoot> {
  const root = decodeRoot(await readBlob(store, stream.map, 1 << 30))
  check(root.sizeBytes === stream.sizeBytes, 'the stream map has another size')
  return root
}

interface MarkedChunk {
  readonly number: number
  readonly offset: number
  readonly readBytes: number
}

interface PackRange {
  readonly packNumber: number
  readonly chunks: MarkedChunk[]
  end: number
}

/** Neighbouring chunks of one pack together, in the order of the packs. */
function* packRanges(store: ChunkStore, state: ChunkStates): Generator<PackRange> {
  let range: PackRange | undefined
  for (let number = 0; number < store.table.size; number += 1) {
    if (!state.isMarked(number)) continue
    const location = store.table.location(number)
    invariant(location !== undefined, 'a published chunk has no place')
    const { packNumber, offset, readBytes } = location
    const first = range?.chunks[0]
    const fits =
      range !== undefined &&
      first !== undefined &&
      range.packNumber === packNumber &&
      offset > (range.chunks.at(-1)?.offset ?? 0) &&
      offset - range.end <= largestGapBytes &&
      offset + readBytes - first.offset <= bytesPerRead
    if (range !== undefined && !fits) yield range
    if (range === undefined || !fits) range = { packNumber, chunks: [], end: 0 }
    range.chunks.push({ number, offset, readBytes })
    range.end = offset + readBytes
  }
  if (range !== undefined) yield range
}

async function readMarked(
  backend: Backend,
  store: ChunkStore,
  state: ChunkStates,
  options: VerifyOptions,
): Promise<number> {
  let bytesTotal = 0
  for (const { chunks } of packRanges(store, state)) for (const { readBytes } of chunks) bytesTotal += readBytes
  let bytesDone = 0
  const reads = openSlots(readsAtOnce)
  let failed: { error: unknown } | undefined
  const work = async (range: PackRange) => {
    try {
      await verifyRange(backend, store, state, range)
      for (const { readBytes } of range.chunks) bytesDone += readBytes
      options.onProgress?.(bytesDone, bytesTotal)
    } catch (error) {
      failed ??= { error }
    } finally {
      reads.give()
    }
  }
  for (const range of packRanges(store, state)) {
    await reads.take()
    if (failed !== undefined || options.signal?.aborted) {
      reads.give()
      break
    }
    work(range).catch(() => undefined) // work does not reject
  }
  for (let slot = 0; slot < readsAtOnce; slot += 1) await reads.take()
  if (failed !== undefined) throw failed.error
  options.signal?.throwIfAborted()
  return bytesTotal
}

async function verifyRange(backend: Backend, store: ChunkStore, state: ChunkStates, range: PackRange): Promise<void> {
  const start = range.chunks[0]?.offset ?? 0
  let bytes: Buffer
  try {
    bytes = await backend.get(store.packKey(range.packNumber), { offset: start, length: range.end - start })
  } catch (error) {
    const reason = damageReason(error)
    for (const { number } of range.chunks) state.spoil(number, reason)
    return
  }
  await Promise.all(
    range.chunks.map(async ({ number, offset }) => {
      try {
        const record = bytes.subarray(Math.min(offset - start, bytes.length))
        const header = readRecordHeader(record)
        check(store.table.find(header.id) === number, 'another chunk is stored in its place')
        await decodeChunk(header, record.subarray(recordHeaderBytes, recordHeaderBytes + header.storedBytes))
      } catch (error) {
        state.spoil(number, damageReason(error))
      }
    }),
  )
}

/** Walks the point again and writes down every range behind a damaged chunk, neighbours with one reason together. */
async function nameDamage(store: ChunkStore, state: ChunkStates, manifest: Manifest, damage: Damage[]): Promise<void> {
  for (const { name, blob } of manifest.documents) {
    const reason = blobIds(blob)
      .map((id) => state.reason(id))
      .find((found) => found !== undefined)
    if (reason === undefined) continue
    damage.push({ point: manifest.id, kind: 'document', name, offset: 0, length: blob.sizeBytes, reason })
  }
  for (const stream of manifest.streams) {
    const report = damageCollector(manifest.id, stream, damage)
    try {
      const root = await readRoot(store, stream)
      const chunkCount = chunkCountOf(root.sizeBytes, root.chunkSizeBytes)
      for (const [number, id] of root.segmentIds.entries()) {
        const first = number * segmentChunks
        const places = Math.min(segmentChunks, chunkCount - first)
        if (id !== undefined) await nameSegmentDamage(store, state, id, root.chunkSizeBytes, first, places, report)
      }
    } catch (error) {
      report(0, stream.sizeBytes, damageReason(error))
    }
  }
}

type DamageReport = (offset: number, length: number, reason: string) => void

async function nameSegmentDamage(
  store: ChunkStore,
  state: ChunkStates,
  id: Buffer,
  chunkSizeBytes: number,
  first: number,
  places: number,
  report: DamageReport,
): Promise<void> {
  let segment: Segment
  try {
    segment = decodeSegment(await store.read(id))
  } catch (error) {
    report(first * chunkSizeBytes, places * chunkSizeBytes, damageReason(error))
    return
  }
  for (let place = 0; place < places; place += 1) {
    const chunk = segment.idAt(place)
    const reason = chunk === undefined ? undefined : state.reason(chunk)
    if (reason !== undefined) report((first + place) * chunkSizeBytes, chunkSizeBytes, reason)
  }
}

function damageCollector(point: string, stream: ManifestStream, damage: Damage[]): DamageReport {
  return (offset, wholeLength, reason) => {
    const length = Math.min(wholeLength, stream.sizeBytes - offset)
    const last = damage.at(-1)
    const continues =
      last !== undefined &&
      last.point === point &&
      last.kind === 'stream' &&
      last.name === stream.name &&
      last.reason === reason &&
      last.offset + last.length === offset
    if (continues) damage[damage.length - 1] = { ...last, length: last.length + length }
    else damage.push({ point, kind: 'stream', name: stream.name, offset, length, reason })
  }
}
