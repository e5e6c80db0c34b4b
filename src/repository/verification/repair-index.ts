/**
 * The indexes made again from the packs alone. New objects are put first and the old ones deleted afterwards, so that nobody
 * ever sees fewer chunks than before; killed at any moment it has done no harm, and the next run does the rest.
 * docs/repository-format.md, "Indexes".
 */
import { failure } from '../../errors.ts'
import { listIndexes } from '../chunks/index-reader.ts'
import { indexGroups } from '../chunks/index-writer.ts'
import { PackNames } from '../chunks/pack-names.ts'
import { type PackPlace, readPackContents } from '../chunks/pack-reader.ts'
import { beginDraftMark, type DraftState, endDraftMark, listDrafts } from '../draft-mark.ts'
import { encodeIndex, objectKeys, type PackListing, tocEntryBytes } from '../format.ts'
import { isPointId } from '../recovery-point.ts'
import type { Backend } from '../storage/backend.ts'

export interface RepairIndexOptions {
  /** Reads everything and changes nothing. */
  readonly dryRun?: boolean
  readonly signal?: AbortSignal
  /** Packs read, and how many there are. */
  readonly onProgress?: (done: number, total: number) => void
}

export interface DamagedPack {
  readonly pack: string
  readonly reason: string
  readonly records: number
}

export interface RepairIndexReport {
  /** What the new indexes name. */
  readonly packs: number
  readonly records: number
  /** Packs that do not end as one; `records` of them could be proven, the others are lost. */
  readonly damagedPacks: readonly DamagedPack[]
  /** Objects under packs/ that are none of this repository's packs. They are left alone; the first hundred. */
  readonly foreign: readonly string[]
  /** Drafts that have packs and no index yet: what they wrote is theirs. */
  readonly skippedDrafts: readonly { readonly draft: string; readonly writer?: string }[]
  readonly indexesPut: number
  readonly indexesRemoved: number
}

const foreignNamed = 100
/** Packs read at once. */
const lanes = 4
const packKey = /^packs\/([^/]+)\/([0-9a-f]{64})$/

interface Found {
  readonly names: PackNames
  /** By the number of the pack. */
  readonly sizes: number[]
  readonly foreign: string[]
}

/** COLLECT_IN_PROGRESS while a collection or another repair is under way. */
export async function repairIndexes(
  place: PackPlace,
  now: () => Date,
  options: RepairIndexOptions = {},
): Promise<RepairIndexReport> {
  const { backend } = place
  if (options.dryRun === true) return repair(place, undefined, options)
  const id = await beginDraftMark(backend, now, undefined, 'collection')
  try {
    const other = (await listDrafts(backend)).find(
      ({ id: one, purpose, writer }) => purpose === 'collection' && one !== id && writer !== undefined,
    )
    if (other?.writer !== undefined) {
      throw failure('COLLECT_IN_PROGRESS', { draft: other.id, writer: other.writer })
    }
    return await repair(place, id, options)
  } finally {
    await endDraftMark(backend, id) // what it put stays: packs are named twice at worst
  }
}

async function repair(
  place: PackPlace,
  id: string | undefined,
  options: RepairIndexOptions,
): Promise<RepairIndexReport> {
  const { backend, seal } = place
  const old = await listIndexes(backend)
  const found = await findPacks(backend) // before the drafts: a pack without a marker belongs to a draft that is over
  const drafts = (await listDrafts(backend)).filter((draft) => draft.id !== id)
  const skipped = await unpublished(backend, drafts, old)
  const indexes = new IndexPuts(async (packs) => {
    if (id === undefined) return
    const { parts, digest } = encodeIndex(seal, packs)
    await backend.put(objectKeys.index(id, digest), parts)
  })
  const damagedPacks = await readPacks(place, found, new Set(skipped.map((draft) => draft.id)), indexes, options)
  await indexes.finish()
  // The objects of a draft that is not over stay: by them its discard knows that others may use its packs.
  const marked = new Set(drafts.map((draft) => draft.id))
  const removed = [...old].filter((key) => !marked.has(pointOf(key)))
  if (id !== undefined) for (const key of removed) await backend.delete(key)
  return {
    packs: indexes.packs,
    records: indexes.records,
    damagedPacks,
    foreign: found.foreign,
    skippedDrafts: skipped.map(({ id: draft, writer }) => ({ draft, ...(writer === undefined ? {} : { writer }) })),
    indexesPut: indexes.count,
    indexesRemoved: removed.length,
  }
}

const pointOf = (indexKey: string) => indexKey.split('/')[1] ?? ''

/** The drafts whose packs nobody but they may know of. */
async function unpublished(
  backend: Backend,
  drafts: readonly DraftState[],
  indexes: ReadonlySet<string>,
): Promise<DraftState[]> {
  const points = new Set<string>()
  for await (const { key } of backend.list('points/')) points.add(key)
  const published = new Set([...indexes].map(pointOf))
  return drafts.filter(({ id }) => !published.has(id) && !points.has(objectKeys.point(id)))
}

/** Gives every pack but those of `skipped` drafts to `indexes`; answers those that are damaged. */
async function readPacks(
  place: PackPlace,
  { names, sizes, foreign }: Found,
  skipped: ReadonlySet<string>,
  indexes: IndexPuts,
  { signal, onProgress }: RepairIndexOptions,
): Promise<DamagedPack[]> {
  const damaged: DamagedPack[] = []
  let next = 0
  const lane = async () => {
    for (let number = next++; number < names.size; number = next++) {
      signal?.throwIfAborted()
      onProgress?.(number + 1, names.size)
      if (skipped.has(names.pointId(number))) continue
      const pack = names.key(number)
      const contents = await readPackContents(place, pack, sizes[number] ?? 0)
      if (contents === undefined) {
        if (foreign.length < foreignNamed) foreign.push(pack)
        continue
      }
      const { toc, damage } = contents
      if (damage !== undefined) damaged.push({ pack, reason: damage, records: toc.length / tocEntryBytes })
      const digest = Buffer.from(names.digest(number))
      await indexes.add({
        pointId: names.pointId(number),
        digest,
        sizeBytes: sizes[number] ?? 0,
        toc: Buffer.from(toc),
      })
    }
  }
  for (const outcome of await Promise.allSettled(Array.from({ length: lanes }, lane))) {
    if (outcome.status === 'rejected') throw outcome.reason
  }
  return damaged
}

async function findPacks(backend: Backend): Promise<Found> {
  const found: Found = { names: new PackNames(), sizes: [], foreign: [] }
  for await (const { key, sizeBytes } of backend.list('packs/')) {
    const [, pointId, digest] = packKey.exec(key) ?? []
    if (pointId !== undefined && digest !== undefined && isPointId(pointId)) {
      found.sizes[found.names.add(pointId, Buffer.from(digest, 'hex'))] = sizeBytes
    } else if (found.foreign.length < foreignNamed) found.foreign.push(key)
  }
  return found
}

/** Gathers packs until they fill an index object. */
class IndexPuts {
  readonly #put: (packs: PackListing[]) => Promise<void>
  #waiting: PackListing[] = []
  packs = 0
  records = 0
  count = 0

  constructor(put: (packs: PackListing[]) => Promise<void>) {
    this.#put = put
  }

  async add(pack: PackListing): Promise<void> {
    if (pack.toc.length === 0) return
    this.packs += 1
    this.records += pack.toc.length / tocEntryBytes
    const [full, more] = indexGroups([...this.#waiting, pack])
    this.#waiting = more ?? full ?? []
    if (full !== undefined && more !== undefined) await this.#putOne(full)
  }

  async finish(): Promise<void> {
    if (this.#waiting.length > 0) await this.#putOne(this.#waiting)
    this.#waiting = []
  }

  #putOne(packs: PackListing[]): Promise<void> {
    this.count += 1
    return this.#put(packs)
  }
}
