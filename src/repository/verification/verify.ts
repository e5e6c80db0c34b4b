/**
 * Verify: every byte read again and hashed again, pack by pack, each record once, however many points share it. What is
 * damaged is told by point, name, offset and length, and marked, so that the next backup stores it anew. What was read
 * without damage is marked as well, so that a run may go on where another was interrupted.
 * docs/repository-format.md, "Damage and verification".
 */
import { randomInt } from 'node:crypto'
import { blake3DigestOf } from '../chunks/blake3.ts'
import { type ChunkStore, MissingPackError } from '../chunks/chunk-store.ts'
import type { DamagedIndex } from '../chunks/index-reader.ts'
import type { ChunkPlace } from '../chunks/known-chunks.ts'
import { packFlags } from '../chunks/pack-names.ts'
import { objectKeys } from '../format.ts'
import type { DamagedPoint, Manifest } from '../recovery-point.ts'
import type { Backend } from '../storage/backend.ts'
import { DamageMarks, type ReadDamageMarks } from './damage-marks.ts'
import { putVerifiedMarks, readVerifiedMarks, type VerifiedMarks } from './verified-marks.ts'
import { recheckMarks, replaceMarks } from './verify-marks.ts'
import { ChunkStates } from './verify-states.ts'
import { type Damage, damageReason, markPoint, nameDamage } from './verify-walk.ts'

export type { Damage } from './verify-walk.ts'

export interface VerifyOptions {
  /** Ids or prefixes; all points when not given. */
  readonly points?: readonly string[]
  /** Read only this part of the packs, above 0 and at most 1, chosen by `seed`. */
  readonly sample?: number
  /** The same seed chooses the same packs of the same repository. */
  readonly seed?: number
  /** Pass over packs that were read without damage in so many milliseconds before now. */
  readonly notVerifiedForMs?: number
  /** Pass over what the last run, which was interrupted, has read. */
  readonly resume?: boolean
  readonly signal?: AbortSignal
  /** Bytes of packs. */
  readonly onProgress?: (bytesDone: number, bytesTotal: number) => void
  /** What was read is written down after so many bytes of packs, and every two minutes. */
  readonly markEveryBytes?: number
}

export interface VerifyReport {
  /** The points looked at. */
  readonly points: readonly string[]
  readonly damagedPoints: readonly DamagedPoint[]
  readonly damagedIndexes: readonly DamagedIndex[]
  readonly damage: readonly Damage[]
  /** Damaged chunks no point looked at needs: nothing is lost, and they are not used again. */
  readonly spareDamage: number
  /** Records read, and the bytes of packs they took. */
  readonly chunks: number
  readonly bytesRead: number
  /** Packs read, and passed over because they were read before or are not in the sample. */
  readonly packsRead: number
  readonly packsSkipped: number
  /** Of the sample. */
  readonly seed?: number
}

export interface VerifyPlace {
  readonly backend: Backend
  readonly store: ChunkStore
  readonly now: () => Date
}

const markEveryMs = 2 * 60 * 1000
const markEveryBytes = 16 * 1024 ** 3
/** Of one chunk: more copies than that are not looked for. */
const copiesMax = 4

/** The store is refreshed. `damagedPoints` are told on. */
export async function verifyPoints(
  place: VerifyPlace,
  manifests: readonly Manifest[],
  damagedPoints: readonly DamagedPoint[],
  options: VerifyOptions,
): Promise<VerifyReport> {
  const { store, backend, now } = place
  using _numbers = store.known.holdNumbers()
  const rechecked = await recheckMarks(store, options.signal)
  const before = await replaceMarks(backend, store, now(), store.known.damage, rechecked)
  const state = new ChunkStates(store)
  for (const manifest of manifests) await markPoint(store, state, manifest, options.signal)
  const needed = new ChunkStates(store)
  const isWhole = options.points === undefined
  if (isWhole) needed.markAll() // what no point needs may be needed by the next
  const seed = options.sample === undefined ? undefined : (options.seed ?? randomInt(2 ** 32))
  const marks = await readVerifiedMarks(backend, store.seal, store.known.names)
  const run = new VerifyRun(place, marks, before.marks, options, isWhole && seed === undefined)
  const skip = skippedPacks(store, marks, options, seed, now())
  const numbers = (isWhole ? needed : state).inPackOrder((packNumber) => !skip.has(packNumber))
  await run.read(numbers, state)
  await run.finish()
  await healFromOtherCopies(place, state, before, run.damage)
  const damage: Damage[] = []
  if (state.hasDamage) for (const manifest of manifests) await nameDamage(store, state, manifest, damage)
  const standing = damage.length === 0 ? new Set<string>() : await pointKeys(backend)
  return {
    points: manifests.map(({ id }) => id),
    damagedPoints,
    damagedIndexes: store.known.damagedIndexes,
    damage: damage.filter(({ point }) => standing.has(objectKeys.point(point))), // others were deleted meanwhile
    spareDamage: state.damaged().filter((number) => !state.isMarked(number)).length,
    chunks: numbers.length,
    bytesRead: run.bytesRead,
    packsRead: run.packsRead,
    packsSkipped: skip.size,
    ...(seed === undefined ? {} : { seed }),
  }
}

async function pointKeys(backend: Backend): Promise<Set<string>> {
  const keys = new Set<string>()
  for await (const { key } of backend.list('points/')) keys.add(key)
  return keys
}

/** Read before within the time, or not in the sample. */
function skippedPacks(
  store: ChunkStore,
  { times, interruptedRun }: VerifiedMarks,
  { sample, notVerifiedForMs, resume }: VerifyOptions,
  seed: number | undefined,
  now: Date,
): Set<number> {
  const { names } = store.known
  const since = Math.min(
    notVerifiedForMs === undefined ? Number.POSITIVE_INFINITY : (now.getTime() - notVerifiedForMs) / 1000,
    resume === true ? (interruptedRun ?? Number.POSITIVE_INFINITY) : Number.POSITIVE_INFINITY,
  )
  const packs = Array.from({ length: names.size }, (_, number) => number).filter((number) =>
    names.has(number, packFlags.indexed),
  )
  const skip = new Set(packs.filter((number) => (times[number] ?? 0) >= since))
  if (sample === undefined || seed === undefined) return skip
  const prefix = Buffer.from(`${seed} `)
  const drawn = (number: number) => blake3DigestOf([prefix, names.digest(number)]).readUIntBE(0, 6)
  const left = packs.filter((number) => !skip.has(number)).map((number) => ({ number, order: drawn(number) }))
  left.sort((one, other) => one.order - other.order)
  for (const { number } of left.slice(Math.ceil(left.length * sample))) skip.add(number)
  return skip
}

/** One reading of packs, with what it writes down as it goes. */
class VerifyRun {
  /** What is marked as damaged, with what this run has found. */
  readonly damage = new DamageMarks()
  bytesRead = 0
  packsRead = 0
  readonly #place: VerifyPlace
  readonly #marks: VerifiedMarks
  readonly #options: VerifyOptions
  readonly #begunAt: Date
  readonly #isFull: boolean
  /** Packs read without damage since the last mark. */
  #sound: number[] = []
  readonly #ownKeys: string[] = []
  #markedAtMs: number
  #markedAtBytes = 0
  #marking: Promise<void> = Promise.resolve()

  /** `isFull`: the whole repository, so that another run may resume it. */
  constructor(place: VerifyPlace, marks: VerifiedMarks, damage: DamageMarks, options: VerifyOptions, isFull: boolean) {
    this.#place = place
    this.#marks = marks
    this.#options = options
    this.#isFull = isFull
    const resumes = options.resume === true && marks.interruptedRun !== undefined
    this.#begunAt = resumes ? new Date((marks.interruptedRun ?? 0) * 1000) : place.now()
    this.#markedAtMs = place.now().getTime()
    this.damage.addAll(damage)
  }

  /** Proves the chunks `numbers`, which stand pack by pack. */
  async read(numbers: Uint32Array, state: ChunkStates): Promise<void> {
    const { store } = this.#place
    const { known, threads } = store
    const { table } = known
    store.readAnew() // the maps were read out of the same packs
    const readBytes = (number: number) => table.location(number)?.readBytes ?? 0
    const bytesTotal = numbers.reduce((sum, number) => sum + readBytes(number), 0)
    const left = new Uint32Array(known.names.size)
    const packs = numbers.map((number) => table.packNumber(number))
    for (const packNumber of packs) left[packNumber] = (left[packNumber] ?? 0) + 1
    const spoiled = new Set<number>()
    let next = 0
    const lane = async () => {
      for (let at = next++; at < numbers.length; at = next++) {
        this.#options.signal?.throwIfAborted()
        const number = numbers[at] as number
        const packNumber = packs[at] as number
        const reason = await this.#prove(number)
        state.setReason(number, reason)
        if (reason !== undefined) spoiled.add(packNumber)
        left[packNumber] = (left[packNumber] ?? 0) - 1
        if (left[packNumber] === 0) this.#packDone(packNumber, !spoiled.has(packNumber))
        this.bytesRead += readBytes(number)
        this.#options.onProgress?.(this.bytesRead, bytesTotal)
        await this.#markNowAndThen()
      }
    }
    const lanes = await Promise.allSettled(Array.from({ length: threads.jobsAtOnce }, lane))
    const failed = lanes.find((outcome) => outcome.status === 'rejected')
    if (failed === undefined) return
    await this.#mark().catch(() => undefined) // why it stopped tells more
    throw failed.reason
  }

  /** What is wrong with the chunk where it stands now. */
  async #prove(number: number): Promise<string | undefined> {
    const { store } = this.#place
    const { known } = store
    const isIt = (id: Buffer) => known.table.find(id) === number
    const place = known.isKnown(number) ? known.placeOf(number) : undefined
    if (place === undefined) return undefined // collected meanwhile; a point that needs it says so
    const whole = this.damage.packReason(place.pack)
    if (whole !== undefined) return whole
    try {
      await store.verify(place, isIt)
      return undefined
    } catch (error) {
      if (!(error instanceof MissingPackError)) return this.#addDamage(number, place, error)
      await store.refresh() // collection may have moved or removed it
      const now = known.isKnown(number) ? known.placeOf(number) : undefined
      if (now === undefined) return undefined
      if (now.pack === place.pack) return this.#addDamage(number, place, error)
      return store.verify(now, isIt).then(
        () => undefined,
        (later: unknown) => this.#addDamage(number, now, later),
      )
    }
  }

  #addDamage(number: number, { pack }: ChunkPlace, error: unknown): string {
    const reason = damageReason(error)
    if (error instanceof MissingPackError) this.damage.addPack(pack, reason)
    else this.damage.addRecord(pack, this.#place.store.known.table.id(number).toString('hex'), reason)
    return reason
  }

  #packDone(packNumber: number, isSound: boolean): void {
    this.packsRead += 1
    if (isSound && this.#options.points === undefined) this.#sound.push(packNumber)
  }

  async #markNowAndThen(): Promise<void> {
    const due =
      this.bytesRead - this.#markedAtBytes >= (this.#options.markEveryBytes ?? markEveryBytes) ||
      this.#place.now().getTime() - this.#markedAtMs >= markEveryMs
    if (!due) return
    this.#markedAtBytes = this.bytesRead
    this.#markedAtMs = this.#place.now().getTime()
    this.#marking = this.#marking.then(() => this.#mark())
    await this.#marking
  }

  async #mark(): Promise<void> {
    const { backend, store, now } = this.#place
    const sound = this.#sound
    this.#sound = []
    const seconds = Math.floor(now().getTime() / 1000)
    const place = { backend, seal: store.seal, names: store.known.names, now }
    const times = sound.map((packNumber) => [packNumber, seconds] as const)
    for (const [number, time] of times) this.#marks.times[number] = time
    this.#ownKeys.push(...(await putVerifiedMarks(place, times, this.#isFull ? this.#begunAt : undefined)))
  }

  /** Merges what is marked as verified into as few objects as it takes. */
  async finish(): Promise<void> {
    await this.#marking
    const { backend, store, now } = this.#place
    const seconds = Math.floor(now().getTime() / 1000)
    for (const packNumber of this.#sound) this.#marks.times[packNumber] = seconds
    const old = [...this.#marks.keys, ...this.#ownKeys]
    if (this.#sound.length === 0 && old.length <= 1) return
    // A run that reads a part only leaves what an interrupted one has written to those who resume it.
    if (!this.#isFull && this.#marks.interruptedRun !== undefined) return this.#mark()
    await putVerifiedMarks({ backend, seal: store.seal, names: store.known.names, now }, this.#marks.times.entries())
    for (const key of old) await backend.delete(key)
  }
}

/** Marks what was found, and looks for sound copies of it elsewhere: a chunk that has one is whole. */
async function healFromOtherCopies(
  place: VerifyPlace,
  state: ChunkStates,
  before: ReadDamageMarks,
  damage: DamageMarks,
): Promise<void> {
  const { backend, store, now } = place
  let marked = before
  for (let round = 0; round < copiesMax; round += 1) {
    marked = await replaceMarks(backend, store, now(), marked, damage) // from here on better copies are known
    const tried = state.damaged()
    let isNew = false
    for (const number of tried) {
      const copy = store.known.placeOf(number)
      const id = store.known.table.id(number).toString('hex')
      const isMarked =
        copy !== undefined && (damage.packReason(copy.pack) ?? damage.records(copy.pack).get(id)) !== undefined
      if (copy === undefined || isMarked) continue
      try {
        await store.verify(copy, (found) => store.known.table.find(found) === number)
        state.setReason(number, undefined)
      } catch (error) {
        const reason = damageReason(error)
        state.setReason(number, reason)
        isNew = true
        if (error instanceof MissingPackError) damage.addPack(copy.pack, reason)
        else damage.addRecord(copy.pack, id, reason)
      }
    }
    if (!isNew) return
  }
}
