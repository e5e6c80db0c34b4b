/**
 * The points as verify sees them: which records each needs, and which ranges of its streams stand behind damaged ones.
 */
import { describeError, Failure } from '../../base/failure.ts'
import type { ChunkStore } from '../chunks/chunk-store.ts'
import { blockSizeBytes, FormatError } from '../format.ts'
import type { Blob, Manifest, ManifestStream } from '../recovery-point.ts'
import { readSegment } from '../streams/map-pieces.ts'
import { type Segment, segmentChunks } from '../streams/map-segment.ts'
import { readRoot } from '../streams/stream-map.ts'
import { chunkCountOf, type StreamMapRoot } from '../streams/stream-map-root.ts'
import type { ChunkStates } from './verify-states.ts'

/** A range that can not be restored. */
export interface Damage {
  readonly point: string
  readonly kind: 'stream' | 'document'
  readonly name: string
  readonly offset: number
  readonly length: number
  readonly reason: string
}

/** What a failed read says about the data; anything but damage is thrown on. */
export function damageReason(error: unknown): string {
  const isDamage =
    error instanceof FormatError ||
    (error instanceof Failure && ['REPOSITORY_OBJECT_MISSING', 'REPOSITORY_IO'].includes(error.code))
  if (!isDamage) throw error
  return describeError(error)
}

const blobIds = (blob: Blob) => blob.chunks.map((id) => Buffer.from(id, 'hex'))

/** Marks every record the point needs. */
export async function markPoint(
  store: ChunkStore,
  state: ChunkStates,
  manifest: Manifest,
  signal?: AbortSignal,
): Promise<void> {
  for (const { blob } of manifest.documents) for (const id of blobIds(blob)) state.mark(id)
  for (const stream of manifest.streams) {
    for (const id of blobIds(stream.map)) state.mark(id)
    const root = await soundOr(state, () => readRoot(store, stream))
    for (const [number, id] of root?.segmentIds.entries() ?? []) {
      signal?.throwIfAborted()
      if (id === undefined || !state.mark(id)) continue
      const stored = await soundOr(state, () => readSegment(store, root as StreamMapRoot, number))
      for (const own of stored?.ownIds ?? []) state.mark(own)
      for (const record of stored?.segment.recordIds() ?? []) state.mark(record)
    }
  }
}

/** Undefined when it is damaged: the second walk says what it is. */
async function soundOr<T>(state: ChunkStates, read: () => Promise<T>): Promise<T | undefined> {
  try {
    return await read()
  } catch (error) {
    damageReason(error)
    state.spoilStructure()
    return undefined
  }
}

/** Walks the point again and writes down every range behind a damaged chunk, neighbours with one reason together. */
export async function nameDamage(
  store: ChunkStore,
  state: ChunkStates,
  manifest: Manifest,
  damage: Damage[],
): Promise<void> {
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
        const places = Math.min(segmentChunks, chunkCount - number * segmentChunks)
        if (id !== undefined) await nameSegmentDamage(store, state, { root, number, places }, report)
      }
    } catch (error) {
      report(0, stream.sizeBytes, damageReason(error))
    }
  }
}

interface SegmentOfStream {
  readonly root: StreamMapRoot
  readonly number: number
  /** Of the stream, the last segment has fewer. */
  readonly places: number
}

type DamageReport = (offset: number, length: number, reason: string) => void

async function nameSegmentDamage(
  store: ChunkStore,
  state: ChunkStates,
  { root, number, places }: SegmentOfStream,
  report: DamageReport,
): Promise<void> {
  const { chunkSizeBytes } = root
  const first = number * segmentChunks
  let segment: Segment | undefined
  try {
    segment = (await readSegment(store, root, number))?.segment
  } catch (error) {
    report(first * chunkSizeBytes, places * chunkSizeBytes, damageReason(error))
    return
  }
  for (let place = 0; place < places; place += 1) {
    const found = segment?.at(place)
    const offset = (first + place) * chunkSizeBytes
    if (found === undefined) continue
    if ('whole' in found) {
      const reason = state.reason(found.whole)
      if (reason !== undefined) report(offset, chunkSizeBytes, reason)
      continue
    }
    for (const [block, at] of found.blocks.entries()) {
      const reason = at === undefined ? undefined : state.reason(at.id)
      if (reason !== undefined) report(offset + block * blockSizeBytes, blockSizeBytes, reason)
    }
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
