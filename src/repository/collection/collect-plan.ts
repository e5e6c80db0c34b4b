/**
 * What a collection will do with each pack, decided from facts alone. Nothing here reads or writes; `--dry-run` shows the plan.
 * docs/repository-format.md, "Collection".
 */

/** Where a pack stands: there and named by an index, there and named by none, or named but not there. */
export type PackStanding = 'indexed' | 'unindexed' | 'lost'

/** The draft that wrote the pack: over, at work, or dead (`published`: an index object of it stands). */
export type PackOwner = 'over' | 'open' | 'dead' | 'dead, published'

export interface PackFacts {
  readonly key: string
  /** 0 for a lost one. */
  readonly sizeBytes: number
  /** What recovery points need of it and find nowhere better, in bytes of records. */
  readonly neededBytes: number
  readonly standing: PackStanding
  readonly owner: PackOwner
  /** Whether it is condemned, and if so whether it may be removed now. */
  readonly condemned: 'no' | 'waiting' | 'due'
}

export interface CollectPolicy {
  /** Packs of which a smaller share is needed are repacked; 0 to 1. */
  readonly repackBelow: number
  /** Bytes copied in one run, at most. */
  readonly maxRepackBytes: number
  /** Every record that is needed was found, and every index could be read: what no index names is needed by nobody. */
  readonly allFound: boolean
}

export const keepReasons = {
  draft: 'its draft is open',
  waiting: 'it is condemned and waits',
  needed: 'it is needed',
  limit: 'mostly garbage, but this run may not copy more',
  unsure: 'no index names it, but something needed was not found',
  lost: 'it is needed, but it is missing',
} as const
export type KeepReason = keyof typeof keepReasons

export interface PackSum {
  readonly packs: number
  readonly bytes: number
}

/** Each pack is in one of these. */
export interface CollectPlan {
  /** Condemned long enough: removed now. */
  readonly sweep: readonly PackFacts[]
  /** Condemned long enough, but needed: used again. */
  readonly pardon: readonly PackFacts[]
  /** Of dead drafts, known to nobody: removed now. */
  readonly discard: readonly PackFacts[]
  /** Nothing of it is needed. */
  readonly condemn: readonly PackFacts[]
  /** Little of it is needed: that is copied, then it is condemned. Least needed first. */
  readonly repack: readonly PackFacts[]
  readonly kept: ReadonlyMap<KeepReason, PackSum>
}

export function planCollection(packs: Iterable<PackFacts>, policy: CollectPolicy): CollectPlan {
  const plan = {
    sweep: [] as PackFacts[],
    pardon: [] as PackFacts[],
    discard: [] as PackFacts[],
    condemn: [] as PackFacts[],
    repack: [] as PackFacts[],
  }
  const kept = new Map<KeepReason, PackSum>()
  const keep = (reason: KeepReason, { sizeBytes }: PackFacts) => {
    const sum = kept.get(reason) ?? { packs: 0, bytes: 0 }
    kept.set(reason, { packs: sum.packs + 1, bytes: sum.bytes + sizeBytes })
  }
  for (const pack of packs) {
    const fate = fateOf(pack, policy)
    if (fate in plan) plan[fate as keyof typeof plan].push(pack)
    else keep(fate as KeepReason, pack)
  }
  const candidates = plan.repack.sort(leastNeededFirst)
  plan.repack = []
  let copiedBytes = 0
  for (const pack of candidates) {
    if (copiedBytes + pack.neededBytes > policy.maxRepackBytes) {
      keep('limit', pack)
      continue
    }
    copiedBytes += pack.neededBytes
    plan.repack.push(pack)
  }
  return { ...plan, kept }
}

type Fate = keyof Omit<CollectPlan, 'kept'> | KeepReason

function fateOf(pack: PackFacts, policy: CollectPolicy): Fate {
  const { standing, owner, condemned, neededBytes, sizeBytes } = pack
  if (owner === 'open') return 'draft'
  if (condemned === 'waiting') return 'waiting'
  if (standing === 'unindexed') {
    if (owner === 'dead') return 'discard'
    if (!policy.allFound) return 'unsure'
    return condemned === 'due' ? 'sweep' : 'condemn'
  }
  if (standing === 'lost' && neededBytes > 0) return 'lost'
  if (condemned === 'due') return neededBytes > 0 ? 'pardon' : 'sweep'
  if (neededBytes === 0) return 'condemn'
  return neededBytes < sizeBytes * policy.repackBelow ? 'repack' : 'needed'
}

function leastNeededFirst(one: PackFacts, other: PackFacts): number {
  return one.neededBytes / one.sizeBytes - other.neededBytes / other.sizeBytes || (one.key < other.key ? -1 : 1)
}
