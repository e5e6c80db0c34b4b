/**
 * The marks of damage looked at again: what a repaired disk made whole is taken off, what nobody names any more too.
 */

import { type ChunkStore, MissingPackError } from '../chunks/chunk-store.ts'
import type { ChunkPlace } from '../chunks/known-chunks.ts'
import { objectKeys, recordBytes, visitToc } from '../format.ts'
import type { Backend } from '../storage/backend.ts'
import { DamageMarks, putDamageMarks, type ReadDamageMarks } from './damage-marks.ts'
import { damageReason } from './verify-walk.ts'

interface Copy {
  readonly id: string
  readonly place: ChunkPlace
}

/** Reads every marked copy again; answers the marks as they are now. */
export async function recheckMarks(store: ChunkStore, signal?: AbortSignal): Promise<DamageMarks> {
  const { marks } = store.known.damage
  const now = new DamageMarks()
  if (marks.isEmpty) return now
  for (const { id, place } of await markedCopies(store, marks)) {
    signal?.throwIfAborted()
    if (now.packReason(place.pack) !== undefined) continue
    try {
      await store.verify(place, (found) => found.toString('hex', 0, 16) === id)
    } catch (error) {
      if (error instanceof MissingPackError) now.addPack(place.pack, error.message)
      else now.addRecord(place.pack, id, damageReason(error))
    }
  }
  return now
}

/** Where the marked records stand, by the indexes; of a pack that is marked whole, all of its records. */
async function markedCopies(store: ChunkStore, marks: DamageMarks): Promise<Copy[]> {
  const copies = new Map<string, Copy>()
  await store.known.visitIndexes(({ pointId, digest, toc }) => {
    const pack = objectKeys.pack(pointId, digest)
    const isWhole = marks.packReason(pack) !== undefined
    const records = marks.records(pack)
    if (!isWhole && records.size === 0) return
    visitToc(toc, (at, offset, storedBytes) => {
      const id = toc.toString('hex', at, at + 16)
      const place = {
        pack,
        pointId,
        offset,
        readBytes: Math.min(recordBytes(storedBytes), store.known.table.maxReadBytes),
      }
      if (isWhole || records.has(id)) copies.set(`${pack} ${offset}`, { id, place })
    })
  })
  return [...copies.values()]
}

/**
 * Makes `marks` what is marked instead of `old`: the new objects stand before those of `old` go, and what others have marked
 * meanwhile stays. Answers what is marked by the caller from now on.
 */
export async function replaceMarks(
  backend: Backend,
  store: ChunkStore,
  now: Date,
  old: ReadDamageMarks,
  marks: DamageMarks,
): Promise<ReadDamageMarks> {
  if (marks.equals(old.marks)) return old
  const keys = await putDamageMarks(backend, store.seal, now, marks)
  for (const key of old.keys) await backend.delete(key)
  await store.refresh()
  const copy = new DamageMarks()
  copy.addAll(marks)
  return { marks: copy, keys }
}
