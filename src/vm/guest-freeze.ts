/**
 * Guest-freeze: file-system freeze for Linux guests, VSS for Windows guests, both through the agent. The freeze spans
 * the host's commit and nothing slow happens inside it. Laws 1 and 7: the thaw is registered before the freeze is asked
 * for, and a freeze that reported failure is thawed all the same.
 */
import type { UndoStep } from '../base/cleanup.ts'
import { describeError } from '../base/failure.ts'
import type { MethodContext, MethodOutcome, MethodRun } from './method-run.ts'

export function guestFreeze(context: MethodContext): MethodRun {
  const { hypervisor, facts, plan, undo, clock, tell } = context
  const guest = hypervisor.guest(facts.uuid)
  let step: UndoStep | undefined
  let frozen: number | undefined
  let askedMs = 0
  let answeredMs = 0
  let thawAskedMs = 0
  let thawedMs = 0
  let thawed: number | undefined

  return {
    async prepareForSnapshot() {
      await guest.ping() // also bounds every later call, so that a hanging hook can not block the agent for good
      step = await undo.defer({ undo: 'thaw-guest', vm: facts.uuid, name: facts.name })
    },

    async freeze() {
      askedMs = clock.monotonicMs()
      frozen = await guest.freeze()
      answeredMs = clock.monotonicMs()
      tell(`${frozen} file systems frozen`)
    },

    async thaw() {
      if (step === undefined || thawed !== undefined) return
      thawAskedMs = clock.monotonicMs()
      thawed = await guest.thaw()
      thawedMs = clock.monotonicMs()
      undo.forget(step)
      tell(`${thawed} file systems thawed`)
    },

    postSnapshot: async () => undefined,

    async abort() {
      if (step !== undefined && thawed === undefined) await this.thaw()
    },

    outcome(): MethodOutcome {
      const times = { freezeMs: thawedMs - askedMs, heldMs: thawAskedMs - answeredMs, pausedMs: 0, files: [] }
      if (frozen === undefined || frozen === 0) {
        return { consistency: 'crash', reasons: ['the guest froze no file system'], ...times }
      }
      if (thawed === undefined || thawed < frozen) {
        const reason = `${frozen} file systems were frozen, but only ${thawed ?? 0} still were at the end: the guest thawed by itself`
        return { consistency: 'crash', reasons: [reason], ...times }
      }
      return { consistency: plan.consistency, reasons: [`${frozen} file systems frozen over the instant`], ...times }
    },
  }
}

/** The undo step `thaw-guest`. A VM that is gone or off has nothing to thaw; a guest that never froze answers 0. */
export async function thawGuest(hypervisor: MethodContext['hypervisor'], vm: string): Promise<void> {
  const power = await hypervisor.power(vm)
  if (power === 'gone' || power === 'off' || power === 'saved') return
  const guest = hypervisor.guest(vm)
  try {
    await guest.thaw()
  } catch (error) {
    throw new Error(`the guest could not be thawed: ${describeError(error)}`, { cause: error })
  }
}
