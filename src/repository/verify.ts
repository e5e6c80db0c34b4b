/**
 * Verify: every byte of some recovery points read again and hashed again. Chunks are marked first and then read in the order
 * in which they lie in the packs, each once, however many points share it. What is damaged is told by point, name,
 * offset and length.
 */
import { describeError, Failure } from '../base/failure.ts'
import type { ChunkStore } from './chunk-store.ts'
import {
  chunkCountOf,
  decodeRoot,
  decodeSegment,
  type Segment,
  type StreamMapRoot,
  segmentChunks,
} from './disk-index.ts'
import { check, FormatError } from './format.ts'
import type { Blob, DamagedPoint, Manifest, ManifestStream } from './recovery-point.ts'
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

export async function verifyPoints(
  store: ChunkStore,
  manifests: readonly Manifest[],
  damagedPoints: readonly DamagedPoint[],
  options: VerifyOptions,
): Promise<VerifyReport> {
  const state = new ChunkStates(store)
  for (const manifest of manifests) await markPoint(store, state, manifest, options.signal)
  const bytesRead = await readMarked(store, state, options)
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
    if ((((this.#marked[number >>> 3] ?? 0) >> (number & 7)) & 1) === 1) return false
    this.#marked[number >>> 3] = (this.#marked[number >>> 3] ?? 0) | (1 << (number & 7))
    this.markedCount += 1
    return true
  }

  /** Ascending, which is the order in the packs. */
  markedNumbers(): Uint32Array {
    const numbers = new Uint32Array(this.markedCount)
    let count = 0
    for (let number = 0; number < this.#marked.length * 8; number += 1) {
      if (((this.#marked[number >>> 3] ?? 0) >> (number & 7)) & 1) numbers[count++] = number
    }
    return numbers
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

/** Verifies the marked chunks in the order in which they lie in the packs; answers the bytes read. */
async function readMarked(store: ChunkStore, state: ChunkStates, options: VerifyOptions): Promise<number> {
  const numbers = state.markedNumbers()
  const readBytes = (number: number) => store.table.location(number)?.readBytes ?? 0
  const bytesTotal = numbers.reduce((sum, number) => sum + readBytes(number), 0)
  let bytesDone = 0
  let next = 0
  const lane = async () => {
    for (let number = numbers[next++]; number !== undefined; number = numbers[next++]) {
      options.signal?.throwIfAborted()
      try {
        await store.verify(number)
      } catch (error) {
        state.spoil(number, damageReason(error))
      }
      bytesDone += readBytes(number)
      options.onProgress?.(bytesDone, bytesTotal)
    }
  }
  const lanes = await Promise.allSettled(Array.from({ length: store.threads.jobsAtOnce }, lane))
  for (const outcome of lanes) if (outcome.status === 'rejected') throw outcome.reason
  return bytesTotal
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
