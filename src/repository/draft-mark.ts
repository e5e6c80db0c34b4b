/**
 * The marker of a draft, drafts/<point>.json: it reserves the id and says which process writes. It is put before anything
 * else of the draft and removed after everything else, so that what a killed draft left can be found and removed (law 1).
 * A draft reads what is condemned and what is indexed after its marker stands, and a collection waits for the markers that
 * stand after its condemnation: one of the two always sees the other. docs/repository-format.md, "Collection".
 */
import * as z from 'zod'
import { Failure, invariant } from '../base/failure.ts'
import { ownProcessMark, type ProcessMark, processState } from '../base/process-mark.ts'
import { failure } from '../errors.ts'
import { FormatError, objectKeys, smallDocumentMaxBytes } from './format.ts'
import { plainSeal } from './keys/seal.ts'
import { sealJson, unsealJson } from './keys/sealed-json.ts'
import { isPointId, makePointId } from './recovery-point.ts'
import type { Backend } from './storage/backend.ts'

/** Told of an id; when told of another one, the one before was taken by somebody else and is none of ours. */
export type Announce = (id: string) => Promise<unknown>

/** A backup, or whoever rewrites what is there (a collection, a repair of the indexes): of those there is one at a time. */
export type DraftPurpose = 'backup' | 'collection'

/** A draft as its marker shows it. `writer` in words; undefined when it is dead. */
export interface DraftState {
  readonly id: string
  readonly purpose: DraftPurpose
  readonly writer: string | undefined
  /** The writer lives on this host: whoever wants it to end can end it. */
  readonly isHere: boolean
}

const kind = 'draft'
const markShape = z.object({
  purpose: z.enum(['backup', 'collection']).default('backup'),
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
  purpose: DraftPurpose = 'backup',
): Promise<string> {
  for (;;) {
    const id = makePointId(now())
    await announce(id)
    livingDrafts.add(livingKey(backend, id))
    try {
      const outcome = await backend.put(objectKeys.draft(id), [
        sealJson(plainSeal, kind, objectKeys.draft(id), { purpose, ...(await ownProcessMark()) }),
      ])
      if (outcome === 'stored' && !(await isPoint(backend, id))) return id
      if (outcome === 'stored') await backend.delete(objectKeys.draft(id))
    } catch (error) {
      livingDrafts.delete(livingKey(backend, id))
      throw error
    }
    livingDrafts.delete(livingKey(backend, id))
  }
}

/** Whether a point has the id: one of the same second, whose marker is gone. To discard our draft would be to take its packs. */
async function isPoint(backend: Backend, id: string): Promise<boolean> {
  try {
    await backend.read(objectKeys.point(id), 0, new Uint8Array(1))
    return true
  } catch (error) {
    if (error instanceof Failure && error.code === 'REPOSITORY_OBJECT_MISSING') return false
    throw error
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
  return mark === undefined ? undefined : writerOf(backend, id, mark)
}

async function writerOf(backend: Backend, id: string, mark: ProcessMark): Promise<string | undefined> {
  const own = await ownProcessMark()
  const isOwn = mark.host === own.host && mark.boot === own.boot && mark.pid === own.pid
  if (isOwn && mark.startTicks === own.startTicks) {
    return livingDrafts.has(livingKey(backend, id)) ? 'this process' : undefined
  }
  const state = await processState(mark)
  if (state === 'alive') return `process ${mark.pid}`
  return state === 'elsewhere' ? 'a process of another host' : undefined
}

type Mark = z.infer<typeof markShape>

/** Undefined when there is no marker, or one that a crash of the storage has spoiled. */
async function readMark(backend: Backend, id: string): Promise<Mark | undefined> {
  try {
    const key = objectKeys.draft(id)
    return unsealJson(plainSeal, kind, key, await backend.get(key, smallDocumentMaxBytes), markShape)
  } catch (error) {
    if (error instanceof Failure && error.code === 'REPOSITORY_OBJECT_MISSING') return undefined
    if (error instanceof FormatError) return undefined
    throw error
  }
}

/** The drafts whose markers stand now, whoever writes them, in the order of their ids. */
export async function listDraftIds(backend: Backend): Promise<string[]> {
  const ids: string[] = []
  for await (const { key } of backend.list('drafts/')) {
    const id = key.slice('drafts/'.length, -'.json'.length)
    if (isPointId(id) && key === objectKeys.draft(id)) ids.push(id)
  }
  return ids.sort()
}

/** The same with what their markers say. One that can not be read counts as a living one's: only its owner can know. */
export async function listDrafts(backend: Backend): Promise<DraftState[]> {
  const drafts: DraftState[] = []
  for (const id of await listDraftIds(backend)) {
    const mark = await readMark(backend, id)
    if (mark !== undefined) {
      const writer = await writerOf(backend, id, mark)
      const isHere = writer !== undefined && mark.host === (await ownProcessMark()).host
      drafts.push({ id, purpose: mark.purpose, writer, isHere })
    } else if (await isMarked(backend, id)) {
      drafts.push({ id, purpose: 'backup', writer: 'whoever can read its marker', isHere: false })
    }
  }
  return drafts
}

async function isMarked(backend: Backend, id: string): Promise<boolean> {
  try {
    await backend.get(objectKeys.draft(id), smallDocumentMaxBytes)
    return true
  } catch (error) {
    if (error instanceof Failure && error.code === 'REPOSITORY_OBJECT_MISSING') return false
    if (error instanceof Failure && error.code === 'REPOSITORY_DAMAGED') return true
    throw error
  }
}

/** REPOSITORY_DRAFT_GIVEN_UP when the marker of the draft `id` is gone: what the draft builds upon may be gone as well. */
export async function refuseGivenUp(backend: Backend, id: string): Promise<void> {
  if (!(await isMarked(backend, id))) throw failure('REPOSITORY_DRAFT_GIVEN_UP', { point: id })
}

/**
 * Removes the objects of a draft that is not committed, the marker last. Packs behind an index it published stay: another
 * draft may have found its chunks there. Collection takes them when nobody needs them. Without a marker nothing is known
 * of the packs (their index may have been rewritten since), so they stay as well.
 */
export async function discardDraft(backend: Backend, id: string): Promise<void> {
  livingDrafts.delete(livingKey(backend, id)) // first: if this fails, it may be tried again
  await backend.delete(objectKeys.point(id))
  // In this order: an index object is rewritten only when the marker of its draft is gone.
  const isPublished = await hasObjects(backend, `indexes/${id}/`)
  if (!isPublished && (await isMarked(backend, id))) {
    const keys: string[] = []
    for await (const { key } of backend.list(`packs/${id}/`)) keys.push(key)
    for (const key of keys) await backend.delete(key)
  }
  await endDraftMark(backend, id)
}

/**
 * Removes what a killed draft left; needs no key. Idempotent; nothing of a committed point is touched.
 * REPOSITORY_DRAFT_IN_USE when its writer lives, or can not be asked because it is another host's.
 */
export async function discardUnfinishedDraft(backend: Backend, id: string): Promise<void> {
  invariant(isPointId(id), `no recovery point id: ${id}`)
  const writer = await draftWriter(backend, id)
  if (writer !== undefined) throw failure('REPOSITORY_DRAFT_IN_USE', { point: id, writer })
  await backend.sweep()
  for await (const { key } of backend.list('points/'))
    if (key === objectKeys.point(id)) return endDraftMark(backend, id)
  await discardDraft(backend, id)
}

async function hasObjects(backend: Backend, prefix: string): Promise<boolean> {
  for await (const _ of backend.list(prefix)) return true
  return false
}
