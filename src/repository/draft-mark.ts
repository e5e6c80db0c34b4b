/**
 * The marker of a draft, drafts/<point>.json: it reserves the id and says which process writes. It is put before anything
 * else of the draft and removed after everything else, so that what a killed draft left can be found and removed (law 1).
 */
import * as z from 'zod'
import { Failure } from '../base/failure.ts'
import type { Backend } from './backend.ts'
import { FormatError, objectKeys, smallDocumentMaxBytes } from './format.ts'
import { ownProcessMark, type ProcessMark, processState } from './process-mark.ts'
import { makePointId } from './recovery-point.ts'
import { plainSeal } from './seal.ts'
import { sealJson, unsealJson } from './sealed-json.ts'

/** Told of an id; when told of another one, the one before was taken by somebody else and is none of ours. */
export type Announce = (id: string) => Promise<unknown>

const kind = 'draft'
const markShape = z.object({
  host: z.string().max(64),
  boot: z.string().max(64),
  pid: z.int(),
  startTicks: z.number(),
})

/** Drafts of this process that are not over: a marker of ours that is not here was left by one that failed to clean up. */
const livingDrafts = new Set<string>()

const livingKey = (backend: Backend, id: string) => `${backend.location} ${id}`

/** Reserves the id of a new draft. `announce` gets each id that is tried before anything is written under it (law 1). */
export async function beginDraftMark(
  backend: Backend,
  now: () => Date,
  announce: Announce = async () => undefined,
): Promise<string> {
  for (;;) {
    const id = makePointId(now())
    await announce(id)
    livingDrafts.add(livingKey(backend, id))
    try {
      const outcome = await backend.put(objectKeys.draft(id), [
        sealJson(plainSeal, kind, objectKeys.draft(id), await ownProcessMark()),
      ])
      if (outcome === 'stored') return id
    } catch (error) {
      livingDrafts.delete(livingKey(backend, id))
      throw error
    }
    livingDrafts.delete(livingKey(backend, id))
  }
}

/** The draft is over and leaves nothing to clean up. */
export async function endDraftMark(backend: Backend, id: string): Promise<void> {
  livingDrafts.delete(livingKey(backend, id))
  await backend.delete(objectKeys.draft(id))
}

/** Who is writing the draft `id`, in words; undefined when nobody is. */
export async function draftWriter(backend: Backend, id: string): Promise<string | undefined> {
  const mark = await readMark(backend, id)
  if (mark === undefined) return undefined
  const own = await ownProcessMark()
  const isOwn = mark.host === own.host && mark.boot === own.boot && mark.pid === own.pid
  if (isOwn && mark.startTicks === own.startTicks) {
    return livingDrafts.has(livingKey(backend, id)) ? 'this process' : undefined
  }
  const state = await processState(mark)
  if (state === 'alive') return `process ${mark.pid}`
  return state === 'elsewhere' ? 'a process of another host' : undefined
}

/** Undefined when there is no marker, or one that a crash of the storage has spoiled. */
async function readMark(backend: Backend, id: string): Promise<ProcessMark | undefined> {
  try {
    const key = objectKeys.draft(id)
    return unsealJson(plainSeal, kind, key, await backend.get(key, smallDocumentMaxBytes), markShape)
  } catch (error) {
    if (error instanceof Failure && error.code === 'REPOSITORY_OBJECT_MISSING') return undefined
    if (error instanceof FormatError) return undefined
    throw error
  }
}

/**
 * Removes the objects of a draft that is not committed, the marker last. Packs behind an index it published stay: another
 * draft may have found its chunks there. Collection takes them when nobody needs them.
 */
export async function discardDraft(backend: Backend, id: string): Promise<void> {
  livingDrafts.delete(livingKey(backend, id)) // first: if this fails, it may be tried again
  await backend.delete(objectKeys.point(id))
  const published = await hasObjects(backend, `indexes/${id}/`)
  if (!published) {
    const keys: string[] = []
    for await (const { key } of backend.list(`packs/${id}/`)) keys.push(key)
    for (const key of keys) await backend.delete(key)
  }
  await endDraftMark(backend, id)
}

async function hasObjects(backend: Backend, prefix: string): Promise<boolean> {
  for await (const _ of backend.list(prefix)) return true
  return false
}
