/**
 * Checks: what came of starting VMs of a recovery point, kept beside the point and never in it: checks/<point>/<id>.json
 * is one verdict on one VM, checks/<point>/<id>.screen what its console showed then. Written once, removed with the point.
 * docs/repository-format.md is the format.
 *
 * The screen is put before the verdict that names it. As with pins, who puts a verdict looks for the manifest after, and
 * takes the verdict back if the point is gone; what a crash in between leaves belongs to no point and is removed by the
 * next deletion of that name.
 */
import * as z from 'zod'
import type { JsonObject } from '../base/cleanup.ts'
import { Failure, invariant } from '../base/failure.ts'
import { failure } from '../errors.ts'
import { FormatError, objectKeys, smallDocumentMaxBytes } from './format.ts'
import type { Seal } from './keys/seal.ts'
import { sealJson, unsealJson } from './keys/sealed-json.ts'
import { isPointId, makePointId } from './recovery-point.ts'
import type { Backend } from './storage/backend.ts'

/** One VM of the point, started for a look. */
export interface Check {
  /** Has the shape of a point's id, and sorts by time. */
  readonly id: string
  /** ISO 8601. */
  readonly checkedAt: string
  readonly vm: { readonly name: string; readonly uuid: string }
  /** The whole verdict: it came up, and every probe succeeded. */
  readonly passed: boolean
  /** In words, for people. */
  readonly reason: string
  /** What was seen; the requester's own. */
  readonly evidence: JsonObject
  /** Whether `screen` has something. */
  readonly hasScreen: boolean
}

/** A check as it is handed in. */
export interface NewCheck extends Omit<Check, 'id' | 'checkedAt' | 'hasScreen'> {
  /** A PNG of at most `screenMaxBytes`. */
  readonly screen?: Uint8Array
}

/** Where checks are kept. */
export interface CheckPlace {
  readonly backend: Backend
  readonly seal: Seal
}

/** The largest picture that is kept. */
export const screenMaxBytes = 1024 * 1024
/** As a sealed document: base64 takes four bytes for three. */
const screenDocumentMaxBytes = 2 * 1024 * 1024
/** More are not read; the newest of a VM are what people ask for. */
const checksPerPointMax = 4096

const kind = 'check'
const screenKind = 'check screen'
const text = z.string().min(1).max(4096)
const checkShape = z.object({
  checkedAt: z.iso.datetime(),
  vm: z.object({ name: text, uuid: z.string().max(64) }),
  passed: z.boolean(),
  reason: text,
  evidence: z.custom<JsonObject>((value) => typeof value === 'object' && value !== null && !Array.isArray(value)),
  hasScreen: z.boolean(),
})
const screenShape = z.object({ png: z.base64() })

const folder = (pointId: string) => `checks/${pointId}/`
const checkKey = (pointId: string, id: string) => `${folder(pointId)}${id}.json`
const screenKey = (pointId: string, id: string) => `${folder(pointId)}${id}.screen`

/** Keeps a verdict; answers with its id. RECOVERY_POINT_NOT_FOUND when there is no such point, or it was deleted meanwhile. */
export async function addCheck(
  { backend, seal }: CheckPlace,
  pointId: string,
  { screen, ...check }: NewCheck,
  now: Date,
): Promise<string> {
  invariant(isPointId(pointId), `no recovery point id: ${pointId}`)
  invariant((screen?.length ?? 0) <= screenMaxBytes, `a picture of ${screen?.length} bytes`)
  const id = makePointId(now)
  const content = { checkedAt: now.toISOString(), ...check, hasScreen: screen !== undefined }
  const key = checkKey(pointId, id)
  const document = sealJson(seal, kind, key, content)
  invariant(document.length <= smallDocumentMaxBytes, `a verdict of ${document.length} bytes`)
  if (screen !== undefined) {
    const png = Buffer.from(screen).toString('base64')
    await backend.put(screenKey(pointId, id), [sealJson(seal, screenKind, screenKey(pointId, id), { png })])
  }
  await backend.put(key, [document])
  if (await hasPoint(backend, pointId)) return id
  await removeChecks(backend, pointId)
  throw failure('RECOVERY_POINT_NOT_FOUND', { point: pointId })
}

/** By the list: a read may be answered from a file that is open still, or from a copy. */
async function hasPoint(backend: Backend, pointId: string): Promise<boolean> {
  for await (const { key } of backend.list('points/')) if (key === objectKeys.point(pointId)) return true
  return false
}

/** The checks of one point, or of all by the id of their point; oldest first. One that can not be read is left out. */
export async function checks({ backend, seal }: CheckPlace, pointId?: string): Promise<Map<string, Check[]>> {
  const keys = new Map<string, string[]>()
  for await (const { key } of backend.list(pointId === undefined ? 'checks/' : folder(pointId))) {
    const [, point = '', name = ''] = key.split('/')
    const id = name.slice(0, -'.json'.length)
    if (!isPointId(point) || !isPointId(id) || key !== checkKey(point, id)) continue
    const known = keys.get(point) ?? []
    known.push(id)
    keys.set(point, known)
  }
  const found = new Map<string, Check[]>()
  for (const [point, ids] of keys) {
    const read: Check[] = []
    for (const id of ids.sort().slice(-checksPerPointMax)) {
      const check = await readCheck({ backend, seal }, point, id)
      if (check !== undefined) read.push(check)
    }
    found.set(point, read)
  }
  return found
}

async function readCheck({ backend, seal }: CheckPlace, pointId: string, id: string): Promise<Check | undefined> {
  const key = checkKey(pointId, id)
  const content = await unlessDamaged(async () =>
    unsealJson(seal, kind, key, await backend.get(key, smallDocumentMaxBytes), checkShape),
  )
  return content === undefined ? undefined : { id, ...content }
}

/** The picture of a check, a PNG; undefined when there is none that can be read. */
export async function checkScreen(
  { backend, seal }: CheckPlace,
  pointId: string,
  id: string,
): Promise<Buffer | undefined> {
  invariant(isPointId(pointId) && isPointId(id), `no ids of a point and a check: ${pointId}, ${id}`)
  const key = screenKey(pointId, id)
  const content = await unlessDamaged(async () =>
    unsealJson(seal, screenKind, key, await backend.get(key, screenDocumentMaxBytes), screenShape),
  )
  return content === undefined ? undefined : Buffer.from(content.png, 'base64')
}

/** Of a verdict that can not be read, nothing is known: the point is as if it had not been checked. */
async function unlessDamaged<T>(read: () => Promise<T>): Promise<T | undefined> {
  try {
    return await read()
  } catch (error) {
    const told = error instanceof Failure && ['REPOSITORY_OBJECT_MISSING', 'REPOSITORY_DAMAGED'].includes(error.code)
    if (told || error instanceof FormatError) return undefined
    throw error
  }
}

/** Removes all checks of a point that is no more. */
export async function removeChecks(backend: Backend, pointId: string): Promise<void> {
  const keys: string[] = []
  for await (const { key } of backend.list(folder(pointId))) keys.push(key)
  for (const key of keys) await backend.delete(key)
}
