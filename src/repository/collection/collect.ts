/**
 * Collection: gives the space back that no recovery point needs, while backups, restores and everything else go on. Two
 * phases, which one run does one after the other: sweep what was condemned long enough ago, then condemn what nobody
 * needs now. docs/repository-format.md, "Collection", has the protocol and why it is safe.
 */
import { failure } from '../../errors.ts'
import {
  beginDraftMark,
  type DraftState,
  discardDraft,
  endDraftMark,
  listDrafts,
  refuseGivenUp,
} from '../draft-mark.ts'
import { makePointId, pointIdFits } from '../recovery-point.ts'
import { type CollectPlace, type Look, lookAtRepository } from './collect-look.ts'
import { type CollectPlan, type PackFacts, planCollection } from './collect-plan.ts'
import { repackPacks } from './collect-repack.ts'
import { added, type CollectReport, collectReport, sumOfPacks, type WaitingPacks } from './collect-report.ts'
import { indexesToMerge, sweepPacks } from './collect-sweep.ts'
import {
  packsPerCondemnation,
  putCondemnation,
  putCondemnedDrafts,
  removeCondemnation,
  removeLeftCondemnedDrafts,
} from './condemned.ts'

export interface CollectOptions {
  /** Tells what a run would do, and writes nothing. */
  readonly dryRun?: boolean
  /** How long a condemned pack stays, for those who are reading a point that was deleted. 24 hours. 0 sweeps what is marked in the same run. */
  readonly delayMs?: number
  /** Packs of which a smaller share is needed are repacked; 0 to 1, 0.5 unless told. */
  readonly repackBelow?: number
  /** Bytes copied in one run, at most; 16 GiB unless told. */
  readonly maxRepackBytes?: number
  /** A draft that will not end, of another host: by its id, its beginning, or its last four letters. */
  readonly giveUp?: string
  /** Points that are taken for deleted, because it can not be known what they need: ids, their beginnings, last four letters. */
  readonly without?: readonly string[]
  readonly signal?: AbortSignal
}

export const collectDefaults = { delayMs: 24 * 3_600_000, repackBelow: 0.5, maxRepackBytes: 16 * 1024 ** 3 }

interface Settings {
  readonly delayMs: number
  readonly repackBelow: number
  readonly maxRepackBytes: number
  readonly without: readonly string[]
  readonly over: readonly string[]
  readonly signal: AbortSignal | undefined
}

/**
 * One run. COLLECT_IN_PROGRESS when another one is at work, COLLECT_UNSURE when it is not known what a point needs (nothing
 * is removed then), REPOSITORY_DRAFT_NOT_FOUND, REPOSITORY_DRAFT_IN_USE when the draft to be given up lives on this host.
 */
export async function collectRepository(place: CollectPlace, options: CollectOptions = {}): Promise<CollectReport> {
  const { dryRun = false, giveUp, without = [], signal, ...policy } = options
  const settings = {
    ...collectDefaults,
    ...policy,
    without: await pointsCalled(place, without),
    over: giveUp === undefined ? [] : [await draftCalled(place, giveUp)],
    signal,
  }
  if (dryRun) {
    await refuseOthers(place, undefined)
    return foresee(place, settings)
  }
  return asOnlyCollection(place, async (id) => {
    for (const draft of settings.over) await endDraftMark(place.backend, draft)
    return run(place, id, settings)
  })
}

/**
 * Runs `work` under a marker of its own, of which there is one at a time: for whoever rewrites what is indexed.
 * COLLECT_IN_PROGRESS.
 */
export async function asOnlyCollection<T>(
  { backend, now }: Pick<CollectPlace, 'backend' | 'now'>,
  work: (id: string) => Promise<T>,
): Promise<T> {
  const id = await beginDraftMark(backend, now, undefined, 'collection')
  try {
    await refuseOthers({ backend }, id)
    const result = await work(id)
    await endDraftMark(backend, id)
    return result
  } catch (error) {
    await discardDraft(backend, id).catch(() => undefined) // its process counts as dead from now on, and the next one does it
    throw error
  }
}

/** Two that begin at once may both be refused; neither is missed. What died on this host is removed, unless this is a dry run. */
async function refuseOthers({ backend }: Pick<CollectPlace, 'backend'>, ownId: string | undefined): Promise<void> {
  for (const { id, purpose, writer } of await listDrafts(backend)) {
    if (purpose !== 'collection' || id === ownId) continue
    if (writer !== undefined) throw failure('COLLECT_IN_PROGRESS', { draft: id, writer })
    if (ownId !== undefined) await discardDraft(backend, id)
  }
}

async function draftCalled({ backend }: CollectPlace, typed: string): Promise<string> {
  const [draft, ...others] = (await listDrafts(backend)).filter(({ id }) => pointIdFits(id, typed))
  if (draft === undefined) throw failure('REPOSITORY_DRAFT_NOT_FOUND', { draft: typed })
  if (others.length > 0) {
    throw failure('RECOVERY_POINT_AMBIGUOUS', {
      point: typed,
      points: [draft, ...others].map(({ id }) => id).slice(0, 5),
    })
  }
  const { id, isHere, writer } = draft
  if (isHere && writer !== undefined) throw failure('REPOSITORY_DRAFT_IN_USE', { point: id, writer })
  return id
}

async function pointsCalled({ manifests }: CollectPlace, typed: readonly string[]): Promise<string[]> {
  if (typed.length === 0) return []
  const ids = await manifests.ids()
  return typed.map((one) => {
    const [id, ...others] = ids.filter((known) => pointIdFits(known, one))
    if (id === undefined) throw failure('RECOVERY_POINT_NOT_FOUND', { point: one })
    if (others.length > 0)
      throw failure('RECOVERY_POINT_AMBIGUOUS', { point: one, points: [id, ...others].slice(0, 5) })
    return id
  })
}

const planOf = (look: Look, settings: Settings): CollectPlan =>
  planCollection(look.packs(), { ...settings, allFound: look.allFound })

const isOpen = ({ writer }: DraftState) => writer !== undefined

async function foresee(place: CollectPlace, settings: Settings): Promise<CollectReport> {
  using look = await lookAtRepository(place, settings)
  const plan = planOf(look, settings)
  const condemned = [...plan.condemn, ...plan.repack]
  const drafts = look.drafts.filter(isOpen).map(({ id }) => id)
  const atOnce = settings.delayMs === 0 && drafts.length === 0
  const swept = sumOfPacks(plan.sweep)
  const outcome = {
    swept: atOnce ? added(swept, sumOfPacks(condemned)) : swept,
    pardoned: sumOfPacks(plan.pardon),
    condemned,
    repacked: plan.repack,
    damagedPacks: [],
    mergedIndexes: indexesToMerge(look).size,
    newlyWaiting: atOnce ? undefined : waiting(condemned, place.now(), drafts, settings),
  }
  return collectReport(look, plan, outcome, { dryRun: true, delayMs: settings.delayMs })
}

async function run(place: CollectPlace, id: string, settings: Settings): Promise<CollectReport> {
  using look = await lookAtRepository(place, settings)
  const plan = planOf(look, settings)
  await refuseGivenUp(place.backend, id)
  await discardDead(place, look)
  await writeDraftsDown(place, look)
  const merge = indexesToMerge(look)
  await sweepPlanned(place, id, look, plan, merge)
  settings.signal?.throwIfAborted()
  const repackKeys = plan.repack.map(({ key }) => key)
  const { packs, damaged } = await repackPacks(place, id, look, repackKeys, settings.signal)
  const isRepacked = new Set(packs)
  const repacked = plan.repack.filter(({ key }) => isRepacked.has(key))
  const condemned = [...plan.condemn, ...repacked]
  await refuseGivenUp(place.backend, id)
  const { createdAt, drafts } = await condemn(place, condemned)
  await removeWorthless(place, look)
  const atOnce = settings.delayMs === 0 && condemned.length > 0 && drafts.length === 0
  const sweptNow = atOnce ? await sweepAtOnce(place, id, settings) : undefined
  await place.backend.sweep()
  const outcome = {
    swept: added(sumOfPacks(plan.sweep), sweptNow?.swept ?? { packs: 0, bytes: 0 }),
    pardoned: added(sumOfPacks(plan.pardon), sweptNow?.pardoned ?? { packs: 0, bytes: 0 }),
    condemned,
    repacked,
    damagedPacks: damaged,
    mergedIndexes: merge.size,
    newlyWaiting: atOnce ? undefined : waiting(condemned, createdAt, drafts, settings),
  }
  return collectReport(look, plan, outcome, { dryRun: false, delayMs: settings.delayMs })
}

function waiting(
  condemned: readonly PackFacts[],
  createdAt: Date,
  drafts: readonly string[],
  { delayMs }: Settings,
): WaitingPacks | undefined {
  if (condemned.length === 0) return undefined
  return { ...sumOfPacks(condemned), until: new Date(createdAt.getTime() + delayMs).toISOString(), drafts }
}

/** Drafts whose process is dead. What they published stays, and is condemned when nobody needs it. */
async function discardDead({ backend, manifests }: CollectPlace, { drafts, published }: Look): Promise<void> {
  const dead = drafts.filter((draft) => !isOpen(draft))
  const points = new Set(dead.length === 0 ? [] : await manifests.ids())
  for (const { id } of dead) {
    if (points.has(id) || published.has(id)) await endDraftMark(backend, id)
    else await discardDraft(backend, id)
  }
}

/** For condemnations whose collection died before it could. */
async function writeDraftsDown({ backend, seal }: CollectPlace, { condemned }: Look): Promise<void> {
  for (const { id, unwritten, due, drafts } of condemned) {
    if (unwritten && !due) await putCondemnedDrafts(backend, seal, id, drafts)
  }
}

async function sweepPlanned(
  place: CollectPlace,
  id: string,
  look: Look,
  plan: CollectPlan,
  merge: ReadonlySet<string>,
): Promise<void> {
  const settled = new Set([...plan.sweep, ...plan.pardon].map(({ key }) => key))
  const stay = new Set<string>()
  for (const { key, condemned } of look.packs()) if (condemned !== 'no' && !settled.has(key)) stay.add(key)
  await sweepPacks(
    place,
    id,
    look,
    plan.sweep.map(({ key }) => key),
    stay,
    merge,
  )
}

/** The drafts are listed after the condemnation stands: one that is not among them reads it before it uses anything. */
async function condemn(
  { backend, seal, now }: CollectPlace,
  packs: readonly PackFacts[],
): Promise<{ createdAt: Date; drafts: string[] }> {
  const createdAt = now()
  const ids: string[] = []
  for (let first = 0; first < packs.length; ) {
    const some = packs.slice(first, first + packsPerCondemnation).map(({ key }) => key)
    const id = makePointId(createdAt)
    if ((await putCondemnation(backend, seal, id, createdAt, some)) === undefined) continue // the id is taken
    ids.push(id)
    first += some.length
  }
  const open = ids.length === 0 ? [] : await listDrafts(backend)
  const drafts = open.filter((draft) => draft.purpose === 'backup' && isOpen(draft)).map(({ id }) => id)
  for (const id of ids) await putCondemnedDrafts(backend, seal, id, drafts)
  return { createdAt, drafts }
}

/** Condemnations that can not be read, or that are from the future and were put anew; and what is left of others. */
async function removeWorthless({ backend }: CollectPlace, { condemned, damagedCondemned }: Look): Promise<void> {
  for (const { key } of damagedCondemned) await backend.delete(key)
  for (const { id, ahead } of condemned) if (ahead) await removeCondemnation(backend, id)
  await removeLeftCondemnedDrafts(backend)
}

/** The second look, for what has just been marked: the points are read again. */
async function sweepAtOnce(place: CollectPlace, id: string, settings: Settings) {
  using look = await lookAtRepository(place, settings)
  const plan = planOf(look, settings)
  await sweepPlanned(place, id, look, plan, new Set())
  return { swept: sumOfPacks(plan.sweep), pardoned: sumOfPacks(plan.pardon) }
}
