/**
 * What a collection did, or, of a dry run, what it would do. Both are made from the same plan.
 */
import type { Look } from './collect-look.ts'
import { type CollectPlan, type KeepReason, keepReasons, type PackFacts, type PackSum } from './collect-plan.ts'
import type { DamagedPack } from './collect-repack.ts'

/** Condemned packs that stay for now. */
export interface WaitingPacks extends PackSum {
  /** ISO 8601; not removed before. */
  readonly until: string
  /** Drafts that may have begun before the packs were condemned. */
  readonly drafts: readonly string[]
}

export interface CollectReport {
  readonly dryRun: boolean
  /** Recovery points whose needs were looked up. */
  readonly points: number
  /** Packs before. */
  readonly total: PackSum
  /** Left by drafts whose process is dead, and known to nobody. */
  readonly discarded: PackSum & { readonly drafts: readonly string[] }
  /** Condemned packs that are gone now. */
  readonly swept: PackSum
  /** Condemned packs that a recovery point has come to need. */
  readonly pardoned: PackSum
  /** Newly condemned, those repacked among them. */
  readonly condemned: PackSum
  /** Packs whose needed records were copied; `bytes` of those records. */
  readonly repacked: PackSum
  /** Small index objects that were put together. */
  readonly mergedIndexes: number
  readonly waiting: readonly WaitingPacks[]
  readonly openDrafts: readonly { readonly id: string; readonly writer: string }[]
  readonly kept: readonly (PackSum & { readonly reason: KeepReason; readonly text: string })[]
  /** Needed records that no index names: their recovery points are damaged. The first few by their ids. */
  readonly missing: { readonly records: number; readonly ids: readonly string[] }
  /** Objects that are not what they should be: condemnations (ignored), indexes, packs that were to be repacked (kept). */
  readonly damaged: readonly { readonly key: string; readonly reason: string }[]
}

export function sumOfPacks(packs: Iterable<PackFacts>): PackSum {
  let count = 0
  let bytes = 0
  for (const { sizeBytes } of packs) {
    count += 1
    bytes += sizeBytes
  }
  return { packs: count, bytes }
}

export const neededOf = (packs: readonly PackFacts[]): number =>
  packs.reduce((sum, { neededBytes }) => sum + neededBytes, 0)

export const added = (one: PackSum, other: PackSum): PackSum => ({
  packs: one.packs + other.packs,
  bytes: one.bytes + other.bytes,
})

/** What a run makes of its plan; a dry run predicts it. */
export interface CollectOutcome {
  readonly swept: PackSum
  readonly pardoned: PackSum
  readonly condemned: readonly PackFacts[]
  readonly repacked: readonly PackFacts[]
  readonly damagedPacks: readonly DamagedPack[]
  readonly mergedIndexes: number
  /** Of what is newly condemned and not swept at once. */
  readonly newlyWaiting: WaitingPacks | undefined
}

export function collectReport(
  look: Look,
  plan: CollectPlan,
  outcome: CollectOutcome,
  { dryRun, delayMs }: { readonly dryRun: boolean; readonly delayMs: number },
): CollectReport {
  const dead = look.drafts.filter(({ writer }) => writer === undefined)
  return {
    dryRun,
    points: look.needed.points,
    total: sumOfPacks(look.packs()),
    discarded: { ...sumOfPacks(plan.discard), drafts: dead.map(({ id }) => id) },
    swept: outcome.swept,
    pardoned: outcome.pardoned,
    condemned: sumOfPacks(outcome.condemned),
    repacked: { packs: outcome.repacked.length, bytes: neededOf(outcome.repacked) },
    mergedIndexes: outcome.mergedIndexes,
    waiting: [...waitingOf(look, delayMs), ...(outcome.newlyWaiting === undefined ? [] : [outcome.newlyWaiting])],
    openDrafts: look.drafts.flatMap(({ id, writer }) => (writer === undefined ? [] : [{ id, writer }])),
    kept: [...plan.kept].map(([reason, sum]) => ({ reason, text: keepReasons[reason], ...sum })),
    missing: { records: look.needed.missingCount, ids: look.needed.missing },
    damaged: [
      ...look.damagedCondemned,
      ...look.damagedIndexes,
      ...outcome.damagedPacks.map(({ pack, reason }) => ({ key: pack, reason })),
    ],
  }
}

function waitingOf(look: Look, delayMs: number): WaitingPacks[] {
  const waiting = look.condemned.filter(({ due, ahead }) => !due && !ahead)
  const sizes = new Map(waiting.flatMap(({ packs }) => packs.map((key): [string, number] => [key, -1])))
  for (const { key, sizeBytes } of look.packs()) if (sizes.has(key)) sizes.set(key, sizeBytes)
  return waiting.map(({ packs, drafts, createdAtMs }) => {
    const found = packs.map((key) => sizes.get(key) ?? -1).filter((size) => size >= 0)
    const bytes = found.reduce((sum, size) => sum + size, 0)
    return { packs: found.length, bytes, until: new Date(createdAtMs + delayMs).toISOString(), drafts }
  })
}
