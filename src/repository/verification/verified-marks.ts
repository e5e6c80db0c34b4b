/**
 * Verified marks: which packs were read without damage, and when, verified/<id>.json. Verify puts them as it goes, so that an
 * interrupted run has lost little, and merges them at its end. docs/repository-format.md, "Damage and verification".
 */
import * as z from 'zod'
import { type PackNames, packFlags } from '../chunks/pack-names.ts'
import { objectKeys } from '../format.ts'
import type { Seal } from '../keys/seal.ts'
import { sealJson, unsealJson } from '../keys/sealed-json.ts'
import { isPointId } from '../recovery-point.ts'
import type { Backend } from '../storage/backend.ts'
import { putUnderNewId, readMarkObject } from './damage-marks.ts'

const kind = 'verified packs'
const objectMaxBytes = 16 * 1024 * 1024
const packsPerObject = 65_536
const objectsMax = 4096

const digest = z.string().regex(/^[0-9a-f]{64}$/)
const markShape = z.object({
  verifiedAt: z.iso.datetime(),
  /** Digests by the point whose draft wrote the packs. */
  packs: z.record(z.string().refine(isPointId), z.array(digest).max(packsPerObject)),
})
const marksShape = z.object({
  /** When the run began that put it, as long as that run is not over. */
  runBegunAt: z.iso.datetime().optional(),
  marks: z.array(markShape).max(packsPerObject),
})

export interface VerifiedMarks {
  /** By the pack's number: when it was read last, in seconds since the epoch; 0 for never. */
  readonly times: Uint32Array
  /** When the last run that is not over began, in seconds since the epoch. */
  readonly interruptedRun: number | undefined
  /** The objects they stand in. */
  readonly keys: readonly string[]
}

const secondsOf = (time: string) => Math.floor(Date.parse(time) / 1000)

/** What is known of the packs that an index names. What can not be read says nothing. */
export async function readVerifiedMarks(backend: Backend, seal: Seal, names: PackNames): Promise<VerifiedMarks> {
  const keys: string[] = []
  for await (const { key } of backend.list('verified/')) {
    const id = key.slice('verified/'.length, -'.json'.length)
    if (isPointId(id) && key === objectKeys.verified(id) && keys.length < objectsMax) keys.push(key)
  }
  const times = new Uint32Array(names.size)
  let interruptedRun: number | undefined
  for (const key of keys) {
    const content = await readMarkObject(
      () => backend.get(key, objectMaxBytes),
      (bytes) => unsealJson(seal, kind, key, bytes, marksShape),
    )
    if (content?.runBegunAt !== undefined) interruptedRun = Math.max(interruptedRun ?? 0, secondsOf(content.runBegunAt))
    for (const { verifiedAt, packs } of content?.marks ?? []) {
      const time = secondsOf(verifiedAt)
      for (const [pointId, digests] of Object.entries(packs)) {
        for (const text of digests) {
          const number = names.find(pointId, Buffer.from(text, 'hex'))
          if (number !== -1) times[number] = Math.max(times[number] ?? 0, time)
        }
      }
    }
  }
  return { times, interruptedRun, keys }
}

/**
 * Puts the times of packs, of those that an index names; `runBegunAt` when it is not the last word of its run. Answers the
 * keys of the objects.
 */
export async function putVerifiedMarks(
  place: { readonly backend: Backend; readonly seal: Seal; readonly names: PackNames; readonly now: () => Date },
  times: Iterable<readonly [packNumber: number, seconds: number]>,
  runBegunAt?: Date,
): Promise<string[]> {
  const { backend, seal, names, now } = place
  const keys: string[] = []
  let marks = new Map<number, Record<string, string[]>>()
  let count = 0
  const put = async () => {
    const content = {
      ...(runBegunAt === undefined ? {} : { runBegunAt: runBegunAt.toISOString() }),
      marks: [...marks].map(([seconds, packs]) => ({ verifiedAt: new Date(seconds * 1000).toISOString(), packs })),
    }
    keys.push(await putUnderNewId(backend, now(), objectKeys.verified, (key) => sealJson(seal, kind, key, content)))
    marks = new Map()
    count = 0
  }
  for (const [number, seconds] of times) {
    if (seconds === 0 || !names.has(number, packFlags.indexed)) continue
    const packs = marks.get(seconds) ?? {}
    marks.set(seconds, packs)
    const digests = packs[names.pointId(number)] ?? []
    packs[names.pointId(number)] = digests
    digests.push(names.digest(number).toString('hex'))
    count += 1
    if (count === packsPerObject) await put()
  }
  if (count > 0) await put()
  return keys
}
