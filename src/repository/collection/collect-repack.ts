/**
 * Copies what is needed out of packs that are mostly garbage. Every record is proven before it is copied, and its stored
 * bytes are taken over as they are. The copies are published before the old packs are condemned.
 */
import { Failure } from '../../base/failure.ts'
import type { ChunkStore } from '../chunks/chunk-store.ts'
import { PackWriter } from '../chunks/pack-writer.ts'
import { refuseGivenUp } from '../draft-mark.ts'
import { check, FormatError, readRecordHeader, recordBytes, recordHeaderBytes } from '../format.ts'
import type { CollectPlace, Look } from './collect-look.ts'
import { putIndexes } from './collect-sweep.ts'

/** A pack with a record that could not be proven: it stays, for what can still be read of it. */
export interface DamagedPack {
  readonly pack: string
  readonly reason: string
}

export interface Repacked {
  /** Packs whose needed records stand elsewhere now. */
  readonly packs: readonly string[]
  readonly damaged: readonly DamagedPack[]
  /** Bytes of records copied. */
  readonly copiedBytes: number
}

/** Copies the needed records of `packs` into packs of the collection. Nothing is published when it rejects. */
export async function repackPacks(
  place: CollectPlace,
  collectionId: string,
  look: Look,
  packs: readonly string[],
  signal?: AbortSignal,
): Promise<Repacked> {
  if (packs.length === 0) return { packs: [], damaged: [], copiedBytes: 0 }
  const { backend, seal, repositoryId, chunkSizeBytes } = place
  const places = neededPlaces(look, packs)
  const writer = new PackWriter(backend, seal, collectionId, { repositoryId, chunkSizeBytes })
  const copied: string[] = []
  const damaged: DamagedPack[] = []
  let copiedBytes = 0
  try {
    for (const pack of packs) {
      try {
        for (const [offset, bytes] of places.get(pack) ?? []) {
          signal?.throwIfAborted()
          copiedBytes += await copyRecord(place, look.store, writer, pack, offset, bytes)
        }
        copied.push(pack)
      } catch (error) {
        if (!isDamage(error)) throw error
        damaged.push({ pack, reason: error.message })
      }
    }
    const listings = await writer.finish()
    await refuseGivenUp(backend, collectionId)
    await putIndexes(place, collectionId, listings)
  } catch (error) {
    await writer.settle().catch(() => undefined) // the first error tells more; no put may be under way when it is discarded
    throw error
  }
  return { packs: copied, damaged, copiedBytes }
}

/** Where the needed records of each pack begin, and how many bytes to read for each. */
function neededPlaces({ store, needed }: Look, packs: readonly string[]): Map<string, Map<number, number>> {
  const places = new Map(packs.map((pack) => [pack, new Map<number, number>()]))
  const { table, names } = store.known
  const byNumber = new Map(packs.map((pack) => [names.findKey(pack), places.get(pack)]))
  for (let number = 0; number < table.size; number += 1) {
    const found = needed.has(number) ? byNumber.get(table.packNumber(number)) : undefined
    const location = found === undefined ? undefined : table.location(number)
    if (location !== undefined) found?.set(location.offset, location.readBytes)
  }
  return places
}

async function copyRecord(
  { backend }: CollectPlace,
  store: ChunkStore,
  writer: PackWriter,
  pack: string,
  offset: number,
  bytes: number,
): Promise<number> {
  const buffer = store.threads.takeBuffer()
  try {
    check(bytes <= buffer.length, `a record of ${bytes} bytes`)
    const target = buffer.subarray(0, bytes)
    const length = await backend.read(pack, offset, target)
    const header = readRecordHeader(target.subarray(0, length))
    check(recordHeaderBytes + header.storedBytes <= length, 'the record is cut off')
    const number = store.known.table.find(header.id)
    check(
      number !== -1 && store.known.table.location(number)?.offset === offset,
      'another chunk is stored in its place',
    )
    // Decoding overwrites the buffer.
    const id = Buffer.from(header.id)
    const stored = Buffer.from(target.subarray(recordHeaderBytes, recordHeaderBytes + header.storedBytes))
    await store.threads.decode(buffer, { ...header, id: Uint8Array.from(id), storedAt: recordHeaderBytes })
    await writer.append({ ...header, id }, stored)
    return recordBytes(stored.length)
  } finally {
    store.threads.giveBuffer(buffer)
  }
}

/** Of the pack; a storage that is gone altogether fails the next put as well. */
const isDamage = (error: unknown): error is Error =>
  error instanceof FormatError ||
  (error instanceof Failure && ['REPOSITORY_OBJECT_MISSING', 'REPOSITORY_IO'].includes(error.code))
