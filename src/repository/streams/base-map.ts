/**
 * BaseMap: the map of an earlier stream, from which a new one takes what was not written this time. It is walked once before
 * that, to find what may not be used any more; segment by segment, so that memory does not grow with the disk.
 */
import { Failure } from '../../base/failure.ts'
import type { ChunkStore } from '../chunks/chunk-store.ts'
import { FormatError } from '../format.ts'
import type { ManifestStream } from '../recovery-point.ts'
import { Bitmap } from './bitmap.ts'
import { readSegment, type StoredSegment } from './map-pieces.ts'
import { type Place, type Segment, segmentChunks } from './map-segment.ts'
import { readRoot, type StreamMap, streamMapOf } from './stream-map.ts'
import { chunkCountOf, type StreamMapRoot, segmentCountOf } from './stream-map-root.ts'

/** Segments that are read while those before them are looked at. */
const readAhead = 3

/** A segment that can be named again as it is; `id` undefined for zeros. */
export interface InheritableSegment {
  readonly id: Buffer | undefined
  readonly count: number
  readonly hasParts: boolean
}

export const zeroSegment: InheritableSegment = { id: undefined, count: 0, hasParts: false }

export class BaseMap {
  readonly #store: ChunkStore
  readonly #root: StreamMapRoot | undefined
  readonly #map: StreamMap | undefined
  readonly #chunkCount: number
  readonly #counts: Uint16Array
  readonly #withParts: Bitmap
  readonly #toStoreAgain: Bitmap
  readonly #lost: Bitmap
  /** Chunks that the walk has found unusable and that were not written since. */
  readonly unusable: Bitmap

  private constructor(store: ChunkStore, stream: ManifestStream, chunkSizeBytes: number, root?: StreamMapRoot) {
    this.#store = store
    this.#root = root
    this.#map = root === undefined ? undefined : streamMapOf(store, root)
    this.#chunkCount = chunkCountOf(stream.sizeBytes, chunkSizeBytes)
    const segments = segmentCountOf(stream.sizeBytes, chunkSizeBytes)
    this.#counts = new Uint16Array(segments)
    this.#withParts = new Bitmap(segments)
    this.#toStoreAgain = new Bitmap(segments)
    this.#lost = new Bitmap(segments)
    this.unusable = new Bitmap(this.#chunkCount)
  }

  /** A root that is damaged is no error: nothing of the stream is usable then. */
  static async open(store: ChunkStore, stream: ManifestStream, chunkSizeBytes: number): Promise<BaseMap> {
    const root = await readRoot(store, stream).catch(nothingIfDamaged)
    return new BaseMap(store, stream, chunkSizeBytes, root?.chunkSizeBytes === chunkSizeBytes ? root : undefined)
  }

  /** Looks at every record behind the map, once; answers the chunks that have one which is not usable, ascending. */
  async *walk(): AsyncGenerator<number> {
    const reads: Promise<StoredSegment | undefined>[] = []
    for (let number = 0; number < this.#counts.length; number += 1) {
      while (reads.length <= readAhead && number + reads.length < this.#counts.length) {
        reads.push(this.#read(number + reads.length))
      }
      const stored = await reads.shift()
      const first = number * segmentChunks
      const places = Math.min(segmentChunks, this.#chunkCount - first)
      for (const place of this.#unusablePlaces(number, stored, places)) {
        this.unusable.add(first + place)
        yield first + place
      }
    }
  }

  /** Undefined for zeros and for what is lost. */
  async #read(number: number): Promise<StoredSegment | undefined> {
    if (this.#root === undefined) this.#lost.add(number)
    if (this.#root?.segmentIds[number] === undefined) return undefined
    const stored = await readSegment(this.#store, this.#root, number).catch(nothingIfDamaged)
    if (stored === undefined) this.#lost.add(number)
    return stored
  }

  *#unusablePlaces(number: number, stored: StoredSegment | undefined, places: number): Generator<number> {
    if (this.#lost.has(number)) for (let place = 0; place < places; place += 1) yield place
    if (stored === undefined) return
    const { segment, ownIds } = stored
    this.#counts[number] = segment.count
    if (segment.hasParts) this.#withParts.add(number)
    if (!this.#usable(ownIds)) this.#toStoreAgain.add(number)
    if (this.#usable(segment.recordIds())) return
    for (let place = 0; place < places; place += 1) {
      const found = segment.at(place)
      if (found !== undefined && !this.#usable(idsOf(found))) yield place
    }
  }

  #usable(ids: Iterable<Buffer>): boolean {
    for (const id of ids) if (!this.#store.usable(id)) return false
    return true
  }

  /** Undefined when the segment has to be stored again. */
  inheritable(number: number): InheritableSegment | undefined {
    if (this.#lost.has(number) || this.#toStoreAgain.has(number)) return undefined
    const id = this.#root?.segmentIds[number]
    if (id === undefined) return zeroSegment
    return { id, count: this.#counts[number] ?? 0, hasParts: this.#withParts.has(number) }
  }

  /** Undefined for zeros and for what is lost. */
  async segment(number: number): Promise<Segment | undefined> {
    return this.#lost.has(number) ? undefined : this.#map?.segment(number)
  }

  /** What stands at a chunk's place and may be used; undefined for zeros, too, and for what can not be read. */
  async at(chunkNumber: number): Promise<Place | undefined> {
    const segment = await this.segment(Math.floor(chunkNumber / segmentChunks)).catch(nothingIfDamaged)
    const place = segment?.at(chunkNumber % segmentChunks)
    return place !== undefined && this.#usable(idsOf(place)) ? place : undefined
  }
}

function* idsOf(place: Place): Generator<Buffer> {
  if ('whole' in place) yield place.whole
  else for (const at of place.blocks) if (at !== undefined) yield at.id
}

/** For what is stored again when it can not be read: a bad sector must not fail every backup from now on. */
export function nothingIfDamaged(error: unknown): undefined {
  if (error instanceof FormatError || (error instanceof Failure && error.code === 'REPOSITORY_IO')) return undefined
  throw error
}
