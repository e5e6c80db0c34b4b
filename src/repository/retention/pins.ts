/**
 * Pins: recovery points that must not be removed, by retention or by hand, until they are unpinned. A pin is an object of
 * its own beside the point, pins/<point>.json, put if absent, so that the point itself is never rewritten.
 *
 * Deletion looks for a pin right before it removes the manifest, and pinning looks for the manifest right after it has put
 * the pin. So of a pin and a deletion at one moment usually one is refused; in between, which is as long as one request
 * takes, both may succeed. To close that gap deletion would have to put something first, and a full repository could not be
 * emptied any more.
 */
import * as z from 'zod'
import { Failure, invariant } from '../../base/failure.ts'
import { failure } from '../../errors.ts'
import { FormatError, objectKeys, smallDocumentMaxBytes } from '../format.ts'
import type { Seal } from '../keys/seal.ts'
import { sealJson, unsealJson } from '../keys/sealed-json.ts'
import { isPointId } from '../recovery-point.ts'
import type { Backend } from '../storage/backend.ts'

export interface Pin {
  /** Why, in the words of whoever pinned it. */
  readonly note: string
  /** ISO 8601; undefined when the pin can not be read. */
  readonly pinnedAt: string | undefined
}

/** Where pins are kept. */
export interface PinPlace {
  readonly backend: Backend
  readonly seal: Seal
}

/** The longest note, in characters. */
export const noteMaxLength = 500

const kind = 'pin'
const pinShape = z.object({ note: z.string().min(1).max(noteMaxLength), pinnedAt: z.iso.datetime() })
const pinKey = (pointId: string) => `pins/${pointId}.json`

/**
 * Pins the point. Answers 'exists' when it was pinned before; that pin stays as it is. RECOVERY_POINT_NOT_FOUND when there
 * is no such point, or it was deleted meanwhile.
 */
export async function pin(
  { backend, seal }: PinPlace,
  pointId: string,
  note: string,
  now: Date,
): Promise<'pinned' | 'exists'> {
  invariant(isPointId(pointId), `no recovery point id: ${pointId}`)
  invariant(note.length >= 1 && note.length <= noteMaxLength, `a note of ${note.length} characters`)
  const content: Pin = { note, pinnedAt: now.toISOString() }
  const outcome = await backend.put(pinKey(pointId), [sealJson(seal, kind, pinKey(pointId), content)])
  if (await hasPoint(backend, pointId)) return outcome === 'stored' ? 'pinned' : 'exists'
  await backend.delete(pinKey(pointId)) // of a point that is no more it is of no use, whoever put it
  throw failure('RECOVERY_POINT_NOT_FOUND', { point: pointId })
}

/** By the list: a read may be answered from a file that is open still, or from a copy. */
async function hasPoint(backend: Backend, pointId: string): Promise<boolean> {
  for await (const { key } of backend.list('points/')) if (key === objectKeys.point(pointId)) return true
  return false
}

/** The point may be removed again. That it was not pinned is no error. */
export async function unpin({ backend }: PinPlace, pointId: string): Promise<void> {
  invariant(isPointId(pointId), `no recovery point id: ${pointId}`)
  await backend.delete(pinKey(pointId))
}

/** The pin of the point, if it has one. A pin that is damaged still pins. */
export async function pinOf({ backend, seal }: PinPlace, pointId: string): Promise<Pin | undefined> {
  try {
    const bytes = await backend.get(pinKey(pointId), smallDocumentMaxBytes)
    return unsealJson(seal, kind, pinKey(pointId), bytes, pinShape)
  } catch (error) {
    if (error instanceof Failure && error.code === 'REPOSITORY_OBJECT_MISSING') return undefined
    const damaged = error instanceof FormatError || (error instanceof Failure && error.code === 'REPOSITORY_DAMAGED')
    if (!damaged) throw error
    return { note: 'its note can not be read', pinnedAt: undefined }
  }
}

/** Every pin, by the id of its point. */
export async function pins(place: PinPlace): Promise<Map<string, Pin>> {
  const found = new Map<string, Pin>()
  for await (const { key } of place.backend.list('pins/')) {
    const pointId = key.slice('pins/'.length, -'.json'.length)
    if (!isPointId(pointId) || key !== pinKey(pointId)) continue
    const own = await pinOf(place, pointId)
    if (own !== undefined) found.set(pointId, own) // unless it was unpinned meanwhile
  }
  return found
}

/** Returns when nothing forbids to remove the point; RECOVERY_POINT_PINNED. */
export async function refusePinned(place: PinPlace, pointId: string): Promise<void> {
  const own = await pinOf(place, pointId)
  if (own !== undefined) throw failure('RECOVERY_POINT_PINNED', { point: pointId, note: own.note })
}
