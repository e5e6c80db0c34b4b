/**
 * The map of a stream that is being written: what was said about its chunks, over the map of an earlier stream if there is
 * one. Segments about which nothing was said are the earlier ones, by their ids.
 */
import { invariant } from '../../base/failure.ts'
import { blockSizeBytes } from '../format.ts'
import { type BaseMap, type InheritableSegment, zeroSegment } from './base-map.ts'
import { type GatheredBlocks, type MapChange, MapLog, type SortedChanges } from './map-log.ts'
import {
  type BlockPlace,
  blocksPerChunk,
  encodeSegment,
  type Place,
  type PlacedContent,
  type Segment,
  segmentChunks,
} from './map-segment.ts'
import { chunkCountOf, encodeRoot, segmentCountOf } from './stream-map-root.ts'

export interface FinishedMap {
  readonly root: Buffer
  /** Places that are not zeros. */
  readonly chunks: number
  readonly hasParts: boolean
}

export class StreamMapBuilder {
  readonly #sizeBytes: number
  readonly #chunkSizeBytes: number
  readonly #base: BaseMap | undefined
  readonly #log: MapLog

  constructor(sizeBytes: number, chunkSizeBytes: number, base?: BaseMap) {
    this.#sizeBytes = sizeBytes
    this.#chunkSizeBytes = chunkSizeBytes
    this.#base = base
    this.#log = new MapLog(chunkCountOf(sizeBytes, chunkSizeBytes))
  }

  /** Whether anything was said about the chunk. */
  mentions(chunkNumber: number): boolean {
    return this.#log.mentions(chunkNumber)
  }

  /** What nothing is said about is zeros, not as in the base. Call it before anything is said. */
  startEmpty(): void {
    this.#log.startEmpty()
  }

  /** The chunk is as in the base. Nothing else was said about it. */
  keep(chunkNumber: number): void {
    this.#log.keep(chunkNumber)
  }

  /** `id` undefined says zeros. The last word on a chunk, or a block, counts. */
  setChunk(chunkNumber: number, id: Buffer | undefined): void {
    this.#log.append(chunkNumber, id === undefined ? { kind: 'zeros' } : { kind: 'whole', id })
  }

  setBlocks(chunkNumber: number, gathered: GatheredBlocks): void {
    this.#log.append(chunkNumber, { kind: 'blocks', ...gathered })
  }

  zeroBlocks(chunkNumber: number, blocks: readonly number[]): void {
    this.#log.append(chunkNumber, { kind: 'zero blocks', blocks })
  }

  /**
   * Gives each segment that is new to `store`, which answers its id; then the root. `gathered`: the ids of the gathered
   * records, by their numbers.
   */
  async finish(gathered: readonly Buffer[], store: (segment: Buffer) => Promise<Buffer>): Promise<FinishedMap> {
    const count = segmentCountOf(this.#sizeBytes, this.#chunkSizeBytes)
    const segmentIds = new Array<Buffer | undefined>(count).fill(undefined)
    const changes = this.#log.sorted()
    let chunks = 0
    let hasParts = false
    for (let number = 0; number < count; number += 1) {
      const inherited = this.#inherited(number, changes)
      if (inherited !== undefined) {
        segmentIds[number] = inherited.id
        chunks += inherited.count
        hasParts ||= inherited.hasParts
        continue
      }
      const places = this.#placesOf(number, await this.#base?.segment(number), changes, gathered)
      if (places.length === 0) continue
      chunks += places.length
      hasParts ||= places.some(({ content }) => 'blocks' in content)
      segmentIds[number] = await store(encodeSegment(places, blocksPerChunk(this.#chunkSizeBytes)))
    }
    invariant(changes.nextChunk() === undefined, 'a chunk beyond the end of its stream')
    const size = { sizeBytes: this.#sizeBytes, chunkSizeBytes: this.#chunkSizeBytes }
    return { root: encodeRoot({ ...size, hasParts, segmentIds }), chunks, hasParts }
  }

  /** The segment of the base, or zeros, when nothing was said about it. */
  #inherited(number: number, changes: SortedChanges): InheritableSegment | undefined {
    const next = changes.nextChunk()
    if (next !== undefined && next < (number + 1) * segmentChunks) return undefined
    const beginning = this.#log.beginningOfAll(number * segmentChunks, segmentChunks)
    if (beginning === undefined) return undefined
    return beginning === 'zeros' || this.#base === undefined ? zeroSegment : this.#base.inheritable(number)
  }

  #placesOf(
    number: number,
    before: Segment | undefined,
    changes: SortedChanges,
    gathered: readonly Buffer[],
  ): PlacedContent[] {
    const first = number * segmentChunks
    const end = Math.min(first + segmentChunks, chunkCountOf(this.#sizeBytes, this.#chunkSizeBytes))
    const places: PlacedContent[] = []
    for (let chunkNumber = first; chunkNumber < end; chunkNumber += 1) {
      const place = chunkNumber - first
      let content = this.#log.beginning(chunkNumber) === 'base' ? before?.at(place) : undefined
      while (changes.nextChunk() === chunkNumber)
        content = this.#changed(chunkNumber, content, changes.take(), gathered)
      if (content !== undefined) places.push({ place, content })
    }
    return places
  }

  #changed(
    chunkNumber: number,
    before: Place | undefined,
    change: MapChange,
    gathered: readonly Buffer[],
  ): Place | undefined {
    if (change.kind === 'zeros') return undefined
    if (change.kind === 'whole') return { whole: change.id }
    const chunkBytes = Math.min(this.#chunkSizeBytes, this.#sizeBytes - chunkNumber * this.#chunkSizeBytes)
    const blocks = blocksOf(before, blocksPerChunk(this.#chunkSizeBytes), Math.ceil(chunkBytes / blockSizeBytes))
    for (const [index, block] of change.blocks.entries()) {
      blocks[block] = change.kind === 'blocks' ? gatheredAt(gathered, change, index) : undefined
    }
    return placeOf(blocks, chunkBytes === this.#chunkSizeBytes)
  }
}

function gatheredAt(gathered: readonly Buffer[], { record, position }: GatheredBlocks, index: number): BlockPlace {
  const id = gathered[record]
  invariant(id !== undefined, 'a gathered record was not stored')
  return { id, position: position + index }
}

/** The place as `count` blocks, of which the chunk has the first `used`. */
function blocksOf(place: Place | undefined, count: number, used: number): (BlockPlace | undefined)[] {
  if (place !== undefined && 'blocks' in place) return [...place.blocks]
  return Array.from({ length: count }, (_, block) =>
    place === undefined || block >= used ? undefined : { id: place.whole, position: block },
  )
}

/** Zeros when no block is left; the chunk itself when all blocks are those of one record (a short chunk may be one of several). */
function placeOf(blocks: readonly (BlockPlace | undefined)[], isFullChunk: boolean): Place | undefined {
  if (blocks.every((at) => at === undefined)) return undefined
  const whole = blocks[0]?.id
  const isWhole = blocks.every((at, block) => at?.position === block && whole !== undefined && at.id.equals(whole))
  return isWhole && isFullChunk && whole !== undefined ? { whole } : { blocks }
}
