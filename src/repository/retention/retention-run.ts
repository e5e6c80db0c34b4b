/**
 * Retention against a repository: what the plan needs to know about each recovery point, and the deletions it leads to.
 */
import * as z from 'zod'
import { Failure } from '../../base/failure.ts'
import type { Repository } from '../repository.ts'
import type { Pin } from './pins.ts'
import type { HeldVm, RetentionDecision, RetentionPoint } from './retention.ts'

/** Strict, unlike what is shown to people: a VM that can not be told must not lose its points. */
const contentShape = z.object({
  vms: z.array(z.object({ name: z.string().min(1), uuid: z.string().min(1).optional() })),
})

/** Every recovery point, those that can not be read too. */
export async function readRetentionPoints(
  repository: Pick<Repository, 'listPoints' | 'listDamagedPoints' | 'pins'>,
): Promise<RetentionPoint[]> {
  const damaged = await repository.listDamagedPoints()
  const points = await repository.listPoints()
  const pinned = await repository.pins() // last, so that a pin made meanwhile is seen
  const withPin = (id: string) => pinNote(pinned.get(id))
  return [
    ...damaged.map(({ id, reason }) => ({
      id,
      createdAtMs: timeOfId(id),
      vms: [],
      unreadable: reason,
      ...withPin(id),
    })),
    ...points.map(({ id, createdAt, content }) => {
      const createdAtMs = Number.isNaN(createdAt.getTime()) ? undefined : createdAt.getTime()
      return { id, createdAtMs, ...heldVms(content), ...withPin(id) }
    }),
  ]
}

const pinNote = (pin: Pin | undefined) => (pin === undefined ? {} : { pinned: pin.note })

function heldVms(content: unknown): Pick<RetentionPoint, 'vms' | 'unreadable'> {
  const parsed = contentShape.safeParse(content)
  if (!parsed.success) return { vms: [], unreadable: 'which VMs it holds can not be told' }
  // Directories of a host have no UUID; their names share one space with those of VMs.
  return { vms: parsed.data.vms.map(({ name, uuid = name }): HeldVm => ({ name, uuid })) }
}

/** 20261122T010203Z-ab2c was begun at 2026-11-22T01:02:03Z. */
function timeOfId(id: string): number | undefined {
  const time = Date.parse(
    id.replace(
      /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z-.*$/,
      (_, y, mo, d, h, mi, s) => `${y}-${mo}-${d}T${h}:${mi}:${s}Z`,
    ),
  )
  return Number.isNaN(time) ? undefined : time
}

export interface RetentionOutcome {
  readonly decision: RetentionDecision
  readonly became: 'kept' | 'removed' | 'pinned meanwhile' | 'failed' | 'not reached'
  /** Why it failed. */
  readonly failure?: Failure
}

/**
 * Deletes what the plan gives up, one by one; goes on after a failure. When the signal aborts the one under way is ended and
 * the rest is 'not reached'. An outcome for every decision, in their order.
 */
export async function removePoints(
  repository: Pick<Repository, 'deletePoint'>,
  decisions: readonly RetentionDecision[],
  signal: AbortSignal,
): Promise<RetentionOutcome[]> {
  const outcomes: RetentionOutcome[] = []
  for (const decision of decisions) {
    if (decision.keep) outcomes.push({ decision, became: 'kept' })
    else if (signal.aborted) outcomes.push({ decision, became: 'not reached' })
    else outcomes.push(await removePoint(repository, decision))
  }
  return outcomes
}

async function removePoint(
  repository: Pick<Repository, 'deletePoint'>,
  decision: RetentionDecision,
): Promise<RetentionOutcome> {
  try {
    await repository.deletePoint(decision.point.id)
    return { decision, became: 'removed' }
  } catch (error) {
    if (!(error instanceof Failure)) throw error
    if (error.code === 'RECOVERY_POINT_PINNED') return { decision, became: 'pinned meanwhile' }
    return { decision, became: 'failed', failure: error }
  }
}
