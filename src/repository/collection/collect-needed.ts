/**
 * What recovery points need: a bit for each chunk the indexes name. Every manifest is walked; a segment that many points
 * share is read once.
 */
import { Failure } from '../../base/failure.ts'
import { failure } from '../../errors.ts'
import type { ChunkStore } from '../chunks/chunk-store.ts'
import { FormatError } from '../format.ts'
import type { Manifests } from '../manifests.ts'
import { recordIdsOf } from '../point-records.ts'

/** Missing records that are named in a report. */
const namedMissing = 8

/** The numbers of the store's table are held while it is used. */
export class NeededRecords {
  readonly #store: ChunkStore
  readonly #needed: Uint8Array
  /** Segments whose chunks are marked. A needed record is not enough: a chunk may have the bytes of a segment. */
  readonly #walked: Uint8Array
  /** Needed, and named by no index; the first few in hex. */
  readonly missing: string[] = []
  missingCount = 0
  points = 0

  constructor(store: ChunkStore) {
    this.#store = store
    const bytes = Math.ceil(store.known.table.size / 8)
    this.#needed = new Uint8Array(bytes)
    this.#walked = new Uint8Array(bytes)
  }

  has(number: number): boolean {
    return isSet(this.#needed, number)
  }

  add(id: Buffer): void {
    const { known } = this.#store
    const number = known.table.find(id)
    if (number !== -1 && number < this.#needed.length * 8 && known.isKnown(number)) {
      set(this.#needed, number)
      return
    }
    this.missingCount += 1
    if (this.missing.length < namedMissing) this.missing.push(id.toString('hex'))
  }

  /** True when the segment was walked before; from now on it is taken for walked. */
  wasWalked(segmentId: Buffer): boolean {
    const number = this.#store.known.table.find(segmentId)
    if (number === -1 || number >= this.#walked.length * 8) return false
    if (isSet(this.#walked, number)) return true
    set(this.#walked, number)
    return false
  }
}

const isSet = (bits: Uint8Array, number: number) => (((bits[number >>> 3] ?? 0) >> (number & 7)) & 1) === 1
const set = (bits: Uint8Array, number: number) => {
  bits[number >>> 3] = (bits[number >>> 3] ?? 0) | (1 << (number & 7))
}

/**
 * All that the points `ids` need, read one after the other. COLLECT_UNSURE names one of which that can not be known; one that
 * has been deleted meanwhile needs nothing.
 */
export async function findNeeded(
  store: ChunkStore,
  manifests: Manifests,
  ids: readonly string[],
  signal?: AbortSignal,
): Promise<NeededRecords> {
  const needed = new NeededRecords(store)
  for (const id of ids) {
    const manifest = await manifests.tryRead(id)
    if (manifest === undefined) continue
    if ('reason' in manifest) throw failure('COLLECT_UNSURE', { point: id, reason: manifest.reason })
    needed.points += 1
    try {
      for await (const records of recordIdsOf(store, manifest, (segmentId) => needed.wasWalked(segmentId))) {
        signal?.throwIfAborted()
        for (const record of records) needed.add(record)
      }
    } catch (error) {
      const isDamage = error instanceof FormatError || (error instanceof Failure && error.code === 'REPOSITORY_DAMAGED')
      if (!isDamage) throw error
      throw failure('COLLECT_UNSURE', { point: id, reason: error.message }, error)
    }
  }
  return needed
}
