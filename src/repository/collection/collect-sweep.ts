/**
 * Removes packs for good: index objects without them first, then the index objects they replace, then the packs, then their
 * condemnation. Whoever is killed in between leaves packs that are condemned still, and the next collection goes on.
 * Only under the marker of a collection, of which there is one at a time. docs/repository-format.md, "Collection".
 */

import { listIndexes, visitIndex } from '../chunks/index-reader.ts'
import { indexGroups } from '../chunks/index-writer.ts'
import { listDraftIds, refuseGivenUp } from '../draft-mark.ts'
import { encodeIndex, objectKeys, type PackListing, packsPerIndex } from '../format.ts'
import type { CollectPlace, Look } from './collect-look.ts'
import { removeCondemnation } from './condemned.ts'

/** So many index objects may be small; then they are merged. */
const smallIndexesMax = 64

/** The small index objects of a look that are worth being merged into few; empty when there are not many. */
export function indexesToMerge({ smallIndexes, drafts }: Look): ReadonlySet<string> {
  const open = new Set(drafts.filter(({ writer }) => writer !== undefined).map(({ id }) => id))
  const small = smallIndexes.filter((key) => !open.has(ownerOf(key)))
  return new Set(small.length > smallIndexesMax ? small : [])
}

const ownerOf = (key: string) => key.split('/')[1] ?? ''

/**
 * Rewrites the index objects that name packs of `gone`, and those of `merge`. Answers the packs of `gone` that an index
 * names still, because a draft that is open owns it.
 */
export async function rewriteIndexes(
  place: CollectPlace,
  collectionId: string,
  look: Look,
  gone: ReadonlySet<string>,
  merge: ReadonlySet<string>,
): Promise<ReadonlySet<string>> {
  const kept = new Set<string>()
  if (gone.size === 0 && merge.size === 0) return kept
  const { backend, seal } = place
  const indexes = await listIndexes(backend)
  // After the indexes, so that the draft of each is here unless it is over: what is discarded must find its own indexes.
  const open = new Set((await listDraftIds(backend)).filter((id) => id !== collectionId))
  const rewriting = new IndexRewriting(place, collectionId)
  const damaged = new Set(look.damagedIndexes.map(({ key }) => key))
  for (const key of indexes) {
    if (damaged.has(key)) continue
    const named: string[] = []
    await visitIndex(backend, seal, key, (pack) => {
      if (gone.has(keyOf(pack))) named.push(keyOf(pack))
    })
    if (open.has(ownerOf(key))) for (const pack of named) kept.add(pack)
    else if (named.length > 0 || merge.has(key)) {
      await visitIndex(backend, seal, key, (pack) => {
        if (!gone.has(keyOf(pack))) rewriting.keep(pack)
      })
      await rewriting.replace(key)
    }
  }
  await rewriting.finish()
  return kept
}

const keyOf = (pack: PackListing) => objectKeys.pack(pack.pointId, pack.digest)

/** New index objects and the old ones they replace, a few at a time; the new ones stand before the old ones go. */
class IndexRewriting {
  readonly #place: CollectPlace
  readonly #collectionId: string
  readonly #packs = new Map<string, PackListing>()
  readonly #old: string[] = []

  constructor(place: CollectPlace, collectionId: string) {
    this.#place = place
    this.#collectionId = collectionId
  }

  keep(pack: PackListing): void {
    this.#packs.set(keyOf(pack), { ...pack, digest: Buffer.from(pack.digest), toc: Buffer.from(pack.toc) })
  }

  async replace(key: string): Promise<void> {
    this.#old.push(key)
    if (this.#packs.size >= packsPerIndex) await this.finish()
  }

  async finish(): Promise<void> {
    const { backend } = this.#place
    const packs = [...this.#packs.values()]
    if (this.#old.length > 0) await refuseGivenUp(backend, this.#collectionId)
    const fresh = await putIndexes(this.#place, this.#collectionId, packs)
    for (const key of this.#old) if (!fresh.includes(key)) await backend.delete(key)
    this.#packs.clear()
    this.#old.length = 0
  }
}

/** Publishes `packs` as index objects of the collection; answers their keys. */
export async function putIndexes(
  { backend, seal }: CollectPlace,
  collectionId: string,
  packs: readonly PackListing[],
): Promise<string[]> {
  const keys: string[] = []
  for (const some of indexGroups(packs)) {
    const { parts, digest } = encodeIndex(seal, some)
    const key = objectKeys.index(collectionId, digest)
    await backend.put(key, parts)
    keys.push(key)
  }
  return keys
}

/**
 * Removes `packs` and ends the condemnations of the look that are due; those that name a pack which has to stay remain.
 * Small index objects of `merge` are merged on the way.
 */
export async function sweepPacks(
  place: CollectPlace,
  collectionId: string,
  look: Look,
  packs: readonly string[],
  stay: ReadonlySet<string>,
  merge: ReadonlySet<string>,
): Promise<void> {
  const { backend } = place
  const named = await rewriteIndexes(place, collectionId, look, new Set(packs), merge)
  await refuseGivenUp(backend, collectionId)
  for (const pack of packs) if (!named.has(pack)) await backend.delete(pack)
  for (const { id, due, packs: condemned } of look.condemned) {
    if (due && !condemned.some((pack) => stay.has(pack) || named.has(pack))) await removeCondemnation(backend, id)
  }
}
