/**
 * Damage marks: which copies of chunks are known to be damaged, damaged/<id>.json. Verify puts and removes them; a chunk at
 * a marked place is stored again by the next backup that meets it. docs/repository-format.md, "Damage and verification".
 */
import * as z from 'zod'
import { Failure } from '../../base/failure.ts'
import { FormatError, objectKeys } from '../format.ts'
import type { Seal } from '../keys/seal.ts'
import { sealJson, unsealJson } from '../keys/sealed-json.ts'
import { isPointId, makePointId } from '../recovery-point.ts'
import type { Backend } from '../storage/backend.ts'

const kind = 'damaged chunks'
const objectMaxBytes = 16 * 1024 * 1024
const packsPerObject = 16_384
const recordsPerObject = 65_536
const objectsMax = 4096
const reasonMaxLength = 1000

const packKey = /^packs\/\d{8}T\d{6}Z-[a-z0-9]{4}\/[0-9a-f]{64}$/
const reasonShape = z.string().max(reasonMaxLength)
/** The first 16 bytes of the record's id. */
const recordShape = z.object({ id: z.string().regex(/^[0-9a-f]{32}$/), reason: reasonShape })
const packShape = z.object({
  pack: z.string().regex(packKey),
  /** All of the pack is damaged or missing. */
  reason: reasonShape.optional(),
  records: z.array(recordShape).max(recordsPerObject).default([]),
})
const marksShape = z.object({ createdAt: z.iso.datetime(), packs: z.array(packShape).max(packsPerObject) })
type MarkedPack = z.infer<typeof packShape>

/** What is damaged in one pack. */
interface PackDamage {
  reason: string | undefined
  /** By the first 16 bytes of the record's id, in hex. */
  readonly records: Map<string, string>
}

/** What is known to be damaged, by pack and record. */
export class DamageMarks {
  readonly #packs = new Map<string, PackDamage>()

  get isEmpty(): boolean {
    return this.#packs.size === 0
  }

  packKeys(): string[] {
    return [...this.#packs.keys()]
  }

  /** All of the pack. */
  addPack(pack: string, reason: string): void {
    this.#packDamage(pack).reason = reason.slice(0, reasonMaxLength)
  }

  /** One record of the pack; `id`: the first 16 bytes of its id, in hex. */
  addRecord(pack: string, id: string, reason: string): void {
    this.#packDamage(pack).records.set(id, reason.slice(0, reasonMaxLength))
  }

  #packDamage(pack: string): PackDamage {
    const damage = this.#packs.get(pack) ?? { reason: undefined, records: new Map() }
    this.#packs.set(pack, damage)
    return damage
  }

  /** Why all of the pack is damaged. */
  packReason(pack: string): string | undefined {
    return this.#packs.get(pack)?.reason
  }

  /** The records of the pack that are damaged, by the first 16 bytes of their ids, in hex. */
  records(pack: string): ReadonlyMap<string, string> {
    return this.#packs.get(pack)?.records ?? new Map()
  }

  removePack(pack: string): void {
    const damage = this.#packs.get(pack)
    if (damage === undefined) return
    damage.reason = undefined
    if (damage.records.size === 0) this.#packs.delete(pack)
  }

  removeRecord(pack: string, id: string): void {
    const damage = this.#packs.get(pack)
    if (damage === undefined) return
    damage.records.delete(id)
    if (damage.records.size === 0 && damage.reason === undefined) this.#packs.delete(pack)
  }

  addAll(other: DamageMarks): void {
    for (const [pack, { reason, records }] of other.#packs) {
      if (reason !== undefined) this.addPack(pack, reason)
      for (const [id, why] of records) this.addRecord(pack, id, why)
    }
  }

  equals(other: DamageMarks): boolean {
    if (this.#packs.size !== other.#packs.size) return false
    for (const [pack, { reason, records }] of this.#packs) {
      const their = other.#packs.get(pack)
      if (their === undefined || their.reason !== reason || their.records.size !== records.size) return false
      for (const id of records.keys()) if (!their.records.has(id)) return false
    }
    return true
  }

  /** In pieces, each small enough for one object. */
  *objects(): Generator<MarkedPack[]> {
    let packs: MarkedPack[] = []
    let recordCount = 0
    for (const [pack, { reason, records }] of this.#packs) {
      const all = [...records].map(([id, why]) => ({ id, reason: why }))
      for (let first = 0; first === 0 || first < all.length; first += recordsPerObject / 2) {
        const some = all.slice(first, first + recordsPerObject / 2)
        if (packs.length > 0 && (packs.length >= packsPerObject || recordCount + some.length > recordsPerObject / 2)) {
          yield packs
          packs = []
          recordCount = 0
        }
        packs.push({ pack, ...(reason === undefined ? {} : { reason }), records: some })
        recordCount += some.length
      }
    }
    if (packs.length > 0) yield packs
  }
}

export interface ReadDamageMarks {
  readonly marks: DamageMarks
  /** The objects they stand in, those that can not be read as well. */
  readonly keys: readonly string[]
}

/** All marks there are. What can not be read says nothing: verify finds the damage again. */
export async function readDamageMarks(backend: Backend, seal: Seal): Promise<ReadDamageMarks> {
  const marks = new DamageMarks()
  const keys: string[] = []
  for await (const { key } of backend.list('damaged/')) {
    const id = key.slice('damaged/'.length, -'.json'.length)
    if (isPointId(id) && key === objectKeys.damaged(id) && keys.length < objectsMax) keys.push(key)
  }
  for (const key of keys.sort()) {
    const content = await readMarkObject(
      () => backend.get(key, objectMaxBytes),
      (bytes) => unsealJson(seal, kind, key, bytes, marksShape),
    )
    for (const { pack, reason, records } of content?.packs ?? []) {
      if (reason !== undefined) marks.addPack(pack, reason)
      for (const record of records) marks.addRecord(pack, record.id, record.reason)
    }
  }
  return { marks, keys }
}

/** Undefined when the object is gone, or is not what it should be. */
export async function readMarkObject<T>(
  get: () => Promise<Buffer>,
  decode: (bytes: Buffer) => T,
): Promise<T | undefined> {
  try {
    return decode(await get())
  } catch (error) {
    const worthless =
      error instanceof FormatError ||
      (error instanceof Failure &&
        ['REPOSITORY_OBJECT_MISSING', 'REPOSITORY_DAMAGED', 'REPOSITORY_IO'].includes(error.code))
    if (!worthless) throw error
    return undefined
  }
}

/** Puts `marks`, durable when it resolves, and answers the keys of the objects they stand in. */
export async function putDamageMarks(backend: Backend, seal: Seal, now: Date, marks: DamageMarks): Promise<string[]> {
  const keys: string[] = []
  for (const packs of marks.objects()) {
    const content = { createdAt: now.toISOString(), packs }
    keys.push(await putUnderNewId(backend, now, objectKeys.damaged, (key) => sealJson(seal, kind, key, content)))
  }
  return keys
}

/** Puts an object under an id nobody has taken; answers its key. */
export async function putUnderNewId(
  backend: Backend,
  now: Date,
  keyOf: (id: string) => string,
  encode: (key: string) => Buffer,
): Promise<string> {
  for (;;) {
    const key = keyOf(makePointId(now))
    if ((await backend.put(key, [encode(key)])) === 'stored') return key
  }
}
