/**
 * One look at a repository, before anything is removed from it: which packs there are, who is writing, what is condemned,
 * and what recovery points need. The order is what makes it safe; docs/repository-format.md, "Collection", says why.
 */
import { failure } from '../../errors.ts'
import { ChunkStore } from '../chunks/chunk-store.ts'
import { listIndexes, visitIndex } from '../chunks/index-reader.ts'
import { packFlags } from '../chunks/pack-names.ts'
import { type DraftState, listDrafts } from '../draft-mark.ts'
import { type PackListing, packsPerIndex, recordBytes, visitToc } from '../format.ts'
import type { Seal } from '../keys/seal.ts'
import type { Manifests } from '../manifests.ts'
import { isPointId } from '../recovery-point.ts'
import type { Backend } from '../storage/backend.ts'
import { findNeeded, type NeededRecords } from './collect-needed.ts'
import type { PackFacts, PackOwner, PackStanding } from './collect-plan.ts'
import { type Condemnation, type DamagedCondemnation, lookAtCondemned, readCondemnedDrafts } from './condemned.ts'

/** A repository as a collection needs it. */
export interface CollectPlace {
  readonly backend: Backend
  readonly seal: Seal
  readonly manifests: Manifests
  readonly repositoryId: string
  readonly chunkSizeBytes: number
  readonly now: () => Date
}

export interface LookOptions {
  /** A younger condemnation is not due, milliseconds. */
  readonly delayMs: number
  /** Points to be taken for deleted. */
  readonly without: readonly string[]
  /** Drafts to be taken for over. */
  readonly over: readonly string[]
  readonly signal?: AbortSignal | undefined
}

/** A condemnation and what it waits for: nothing, its time, or drafts. */
export interface CondemnationState extends Condemnation {
  readonly due: boolean
  /** Drafts that were open when it was put and still are. */
  readonly drafts: readonly string[]
  /** Its drafts are not written down yet. */
  readonly unwritten: boolean
  /** It comes from the future: the clock was set back since. It is put anew. */
  readonly ahead: boolean
}

/** Disposal lets the numbers of the store go. */
export interface Look extends Disposable {
  readonly store: ChunkStore
  readonly needed: NeededRecords
  /** Backups at work or dead, those taken for over left out. */
  readonly drafts: readonly DraftState[]
  readonly condemned: readonly CondemnationState[]
  readonly damagedCondemned: readonly DamagedCondemnation[]
  readonly damagedIndexes: readonly { readonly key: string; readonly reason: string }[]
  /** Keys of index objects that could name more than twice as many packs. */
  readonly smallIndexes: readonly string[]
  /** Points whose draft has published an index, or whose packs some index names. */
  readonly published: ReadonlySet<string>
  /** Nothing needed is missing and every index could be read. */
  readonly allFound: boolean
  packs(): Iterable<PackFacts>
}

/** Clocks of hosts differ; a condemnation further ahead than this was made by one that was wrong. */
const clockSkewMs = 3_600_000

export async function lookAtRepository(place: CollectPlace, options: LookOptions): Promise<Look> {
  const { backend, seal, manifests, chunkSizeBytes } = place
  const store = new ChunkStore(backend, seal, chunkSizeBytes)
  const figures = new PackFigures(store)
  // Packs before drafts: a pack that is there has an open draft, or its index stands, or nobody will ever name it.
  for await (const { key, sizeBytes } of backend.list('packs/')) figures.setSize(key, sizeBytes)
  const drafts = (await listDrafts(backend)).filter(
    ({ id, purpose }) => purpose === 'backup' && !options.over.includes(id),
  )
  // Drafts before points: the point of a draft that is over is there. Points before indexes: what they need is indexed.
  const pointIds = (await manifests.ids()).filter((id) => !options.without.includes(id))
  const { condemnations, damaged } = await lookAtCondemned(backend, seal)
  await store.refresh()
  const condemned = await Promise.all(condemnations.map((one) => stateOf(one, place, options, drafts)))
  const held = store.known.holdNumbers()
  try {
    const { damagedIndexes } = store.known
    const needed = await findNeeded(store, manifests, pointIds, options.signal)
    const indexKeys = await listIndexes(backend)
    const smallIndexes: string[] = []
    for (const key of indexKeys) {
      options.signal?.throwIfAborted()
      if (damagedIndexes.some((damaged) => damaged.key === key)) continue
      let packs = 0
      await visitIndex(backend, seal, key, (pack) => {
        figures.addIndexed(pack, needed)
        packs += 1
      })
      if (packs < packsPerIndex / 2) smallIndexes.push(key)
    }
    figures.checkWhole(needed, backend.location)
    await figures.findLost(backend)
    const allFound = needed.missingCount === 0 && damagedIndexes.length === 0 && figures.neededLost === 0
    const published = figures.owners(indexKeys)
    const packs = () => figures.facts(condemned, drafts, published)
    const over = { [Symbol.dispose]: () => held[Symbol.dispose]() }
    return {
      ...{
        store,
        needed,
        drafts,
        condemned,
        damagedCondemned: damaged,
        damagedIndexes,
        smallIndexes,
        published,
        allFound,
        packs,
      },
      ...over,
    }
  } catch (error) {
    held[Symbol.dispose]()
    throw error
  }
}

async function stateOf(
  one: Condemnation,
  { backend, seal, now }: CollectPlace,
  { delayMs }: LookOptions,
  open: readonly DraftState[],
): Promise<CondemnationState> {
  // Without a list all that are open now: it was put before they were listed.
  const written = await readCondemnedDrafts(backend, seal, one.id)
  const living = open.filter(({ writer }) => writer !== undefined).map(({ id }) => id)
  const drafts = written === undefined ? living : living.filter((id) => written.includes(id))
  const ageMs = now().getTime() - one.createdAtMs
  const due = drafts.length === 0 && (delayMs === 0 || ageMs >= delayMs)
  return { ...one, drafts, due, unwritten: written === undefined, ahead: !due && ageMs < -clockSkewMs }
}

/** By the numbers of the store's names, in typed arrays: a large repository has millions of packs. */
class PackFigures {
  readonly #store: ChunkStore
  /** -1 where no pack was listed. */
  #sizes = new Float64Array(1024).fill(-1)
  #needed = new Float64Array(1024)
  #records = new Float64Array(1024)
  /** Packs of which a needed record is missing. */
  neededLost = 0

  constructor(store: ChunkStore) {
    this.#store = store
  }

  setSize(key: string, sizeBytes: number): void {
    const [, pointId = '', digest = ''] = key.split('/')
    if (!isPointId(pointId) || !/^[0-9a-f]{64}$/.test(digest) || key.split('/').length !== 3) return
    const number = this.#store.known.names.add(pointId, Buffer.from(digest, 'hex'))
    this.#grow(number)
    this.#sizes[number] = sizeBytes
  }

  /** What is needed of a pack is what has its place there; a chunk that stands twice is needed once. */
  addIndexed(pack: PackListing, needed: NeededRecords): void {
    const { table, names } = this.#store.known
    const packNumber = names.find(pack.pointId, pack.digest)
    if (packNumber === -1) return
    this.#grow(packNumber)
    let bytes = 0
    let records = 0
    visitToc(pack.toc, (at, offset, storedBytes) => {
      const number = table.find(pack.toc, at)
      if (number !== -1 && needed.has(number) && table.standsAt(number, packNumber, offset)) {
        bytes += recordBytes(storedBytes)
        records += 1
      }
    })
    // Not added: two index objects may name one pack.
    this.#needed[packNumber] = bytes
    this.#records[packNumber] = records
  }

  /** Every needed record was found where the table has it; else the indexes changed meanwhile, and nothing here can be relied upon. */
  checkWhole(needed: NeededRecords, location: string): void {
    const { table } = this.#store.known
    const records = new Float64Array(this.#records.length)
    for (let number = 0; number < table.size; number += 1) {
      const packNumber = table.packNumber(number)
      if (needed.has(number)) records[packNumber] = (records[packNumber] ?? 0) + 1
    }
    if (records.every((count, number) => count === this.#records[number])) return
    throw failure('REPOSITORY_IO', { path: `${location}/indexes`, reason: 'they changed while they were read' })
  }

  /** Looks again for packs that were not listed: their indexes may have come after the list of packs. */
  async findLost(backend: Backend): Promise<void> {
    const { names } = this.#store.known
    const points = new Set<string>()
    for (let number = 0; number < names.size; number += 1) {
      this.#grow(number)
      if (this.#isIndexed(number) && this.#sizes[number] === -1) points.add(names.pointId(number))
    }
    for (const pointId of points) {
      for await (const { key, sizeBytes } of backend.list(`packs/${pointId}/`)) {
        if (names.findKey(key) !== -1 && this.#isIndexed(names.findKey(key))) this.setSize(key, sizeBytes)
      }
    }
    for (let number = 0; number < names.size; number += 1) {
      const isLost = this.#isIndexed(number) && this.#sizes[number] === -1
      if (isLost && (this.#needed[number] ?? 0) > 0) this.neededLost += 1
    }
  }

  /** Whose packs are named by an index, and who wrote an index object. */
  owners(indexKeys: ReadonlySet<string>): Set<string> {
    const { names } = this.#store.known
    const owners = new Set([...indexKeys].map((key) => key.split('/')[1] ?? ''))
    for (let number = 0; number < names.size; number += 1) {
      if (this.#isIndexed(number)) owners.add(names.pointId(number))
    }
    return owners
  }

  *facts(
    condemned: readonly CondemnationState[],
    drafts: readonly DraftState[],
    published: ReadonlySet<string>,
  ): Generator<PackFacts> {
    const { names } = this.#store.known
    const owners = new Map<string, PackOwner>(
      drafts.map(({ id, writer }) => [
        id,
        writer !== undefined ? 'open' : published.has(id) ? 'dead, published' : 'dead',
      ]),
    )
    const waits = new Map<number, 'waiting' | 'due'>()
    for (const { packs, due, ahead } of condemned) {
      if (ahead) continue // condemned anew if it is garbage
      for (const key of packs) {
        const number = names.findKey(key)
        if (number !== -1) waits.set(number, due && waits.get(number) !== 'waiting' ? 'due' : 'waiting')
      }
    }
    for (let number = 0; number < names.size; number += 1) {
      const size = this.#sizes[number] ?? -1
      const isIndexed = this.#isIndexed(number)
      if (!isIndexed && size === -1) continue // a name only, as in a condemnation whose packs are gone
      const standing: PackStanding = size === -1 ? 'lost' : isIndexed ? 'indexed' : 'unindexed'
      yield {
        key: names.key(number),
        sizeBytes: Math.max(0, size),
        neededBytes: this.#needed[number] ?? 0,
        standing,
        owner: owners.get(names.pointId(number)) ?? 'over',
        condemned: waits.get(number) ?? 'no',
      }
    }
  }

  #isIndexed(number: number): boolean {
    return this.#store.known.names.has(number, packFlags.indexed)
  }

  #grow(number: number): void {
    if (number < this.#sizes.length) return
    const length = Math.ceil((number + 1) * 1.5)
    const sizes = new Float64Array(length).fill(-1)
    sizes.set(this.#sizes)
    const needed = new Float64Array(length)
    needed.set(this.#needed)
    const records = new Float64Array(length)
    records.set(this.#records)
    this.#sizes = sizes
    this.#needed = needed
    this.#records = records
  }
}
