/**
 * Child VM snapshot: the guest's whole own session happens inside the host's PrepareForSnapshot, and the guest writes on;
 * some time later the host takes its copies; in PostSnapshot they are rolled back to the guest's snapshot (auto-recovery).
 * Nothing is done in Freeze and Thaw: what the guest's applications wait for is the guest's own short instant.
 * Source: "Backing Up and Restoring Virtual Machines", Child VM Snapshot method.
 */
import type { UndoStep } from '../base/cleanup.ts'
import { describeError, invariant } from '../base/failure.ts'
import { failure } from '../errors.ts'
import type { AutoRecovery, WritableCopy } from './auto-recovery.ts'
import { guestSetName, type ShadowStorage } from './guest-requestor.ts'
import { type GuestHold, runGuestSession } from './guest-session.ts'
import type { Hypervisor } from './hypervisor.ts'
import type { RecoveryPlan } from './method.ts'
import type { MethodContext, MethodOutcome, MethodRun } from './method-run.ts'

export function childSnapshot(context: MethodContext): MethodRun {
  const { hypervisor, facts, plan, undo, clock, signal, tell, snapshotSetId } = context
  const { recovery } = plan
  invariant(recovery !== undefined, 'the plan of a child-snapshot says how its copies are recovered')
  const set = guestSetName(snapshotSetId)
  const requestor = hypervisor.requestor(facts.uuid)
  let step: UndoStep | undefined
  let hold: GuestHold = { frozenMs: 0, commitMs: 0 }
  let { way } = recovery
  let recoveryMs = 0

  const release = async () => {
    if (step === undefined) return
    const held = step
    await undo.run(held)
    step = undefined
  }

  /** A guest that can not be tidied up now does not spoil good copies: the step stays, and is tried again at the end. */
  const releaseIfPossible = () =>
    release().then(
      () => tell('the guest released its snapshot'),
      (error) => tell(`the guest has not released its snapshot yet: ${describeError(error)}`),
    )

  return {
    async prepareForSnapshot() {
      step = await undo.defer({ undo: 'release-guest', vm: facts.uuid, name: facts.name, set })
      hold = await runGuestSession({ ...context, requestor, vm: facts, set })
      tell(`the guest's own snapshot exists; its writers were held for ${Math.round(hold.frozenMs)} ms`)
    },

    freeze: async () => undefined, // "No processing is done by the Hyper-V VSS writer during the Freeze and Thaw events."
    thaw: async () => undefined,

    async postSnapshot(copies: readonly WritableCopy[], autoRecovery: AutoRecovery | undefined) {
      invariant(autoRecovery !== undefined, 'a backup has its ways of auto-recovery')
      requireAreas(context, await requestor.status(set)) // they have lasted until the host's instant
      const releasing = releaseIfPossible()
      if (way === 'in-guest') await releasing // its LVM refuses changes while the copies are attached
      const beganMs = clock.monotonicMs()
      try {
        way = await autoRecovery[way]({ vm: facts, set, copies: ofDisks(recovery, copies), undo, signal, tell })
        recoveryMs = clock.monotonicMs() - beganMs
        tell(`copies rolled back to the guest's snapshot (${way}) in ${Math.round(recoveryMs)} ms`)
      } finally {
        await releasing
      }
    },

    abort: release,

    outcome(): MethodOutcome {
      return {
        consistency: plan.consistency,
        reasons: [`the guest took its own snapshot; its copies were rolled back to it ${way}`],
        freezeMs: hold.frozenMs,
        heldMs: hold.commitMs,
        pausedMs: 0,
        recoveryMs,
        recoveredBy: way,
        files: [],
      }
    },
  }
}

/** Every volume that the plan counts on has its area; a guest may have left one out, or lost it. */
function requireAreas({ facts, plan }: MethodContext, areas: readonly ShadowStorage[]): void {
  const missing = plan.recovery?.volumes.filter((volume) => !areas.some(({ where }) => where === volume)) ?? []
  if (missing.length === 0) return
  throw failure('GUEST_SET_LOST', { vm: facts.name, reason: `it has none of ${missing.join(', ')}` })
}

/** A disk without a volume of the guest has nothing to roll back. */
function ofDisks({ disks }: RecoveryPlan, copies: readonly WritableCopy[]): WritableCopy[] {
  return disks.map(({ target }) => {
    const copy = copies.find((one) => one.target === target)
    invariant(copy !== undefined, `the copy of ${target} can be recovered`)
    return copy
  })
}

/**
 * The undo step `release-guest`. A VM that is off can not be asked: its snapshot area is a volume in its own disks, and
 * the step stays until the VM runs again.
 */
export async function releaseGuest(hypervisor: Hypervisor, vm: string, set: string): Promise<void> {
  const power = await hypervisor.power(vm)
  if (power === 'gone') return
  if (power !== 'running') throw new Error(`the VM is ${power}: its own snapshot ${set} is released when it runs again`)
  await hypervisor.requestor(vm).release(set)
}
