/**
 * What the memory of a simulated guest holds: it dies with the power, and travels with a saved state.
 */

import type { GuestSet } from './sim-guest-sets.ts'

/** What the guest has told itself to do about a set of its shadow copies. */
export interface SetDeed {
  readonly kind: 'release' | 'thaw-writers'
  readonly set: string
}
export type Deed = SetDeed | { readonly kind: 'freeze' | 'thaw' }
export type LateDeed = Deed & { readonly dueMs: number }

export interface GuestMemory {
  /** Another one after every cold boot. */
  readonly bootId: string
  /** Steps of the workload done since the disks were new: record k goes to disk A, then to disk B. */
  step: number
  /** Steps tried while the file system was frozen; done at the thaw. */
  blockedSteps: number
  blockedWrites: { readonly target: string; readonly offset: number; readonly data: Uint8Array }[]
  /** Targets whose file systems are frozen. */
  frozen: string[]
  /** What is still on its way through the agent, and what the guest has told itself to do at some time. */
  late: LateDeed[]
  /** Shadow copies of its own volumes that it keeps up. */
  sets: GuestSet[]
  /** The set for which its writers wait. */
  heldFor: string | undefined
  /** The agent works on a hook until then, and answers nobody. */
  agentBusyUntilMs: number
  /** When the guest stopped running, by the host's clock. */
  stoppedAtMs: number | undefined
  /** How far the guest's clock is behind. */
  clockLagMs: number
  /** The application found its two logs in disagreement and did not start. */
  damaged: boolean
}

let boots = 0

export const freshMemory = (): GuestMemory => ({
  bootId: `boot-${++boots}`,
  step: 0,
  blockedSteps: 0,
  blockedWrites: [],
  frozen: [],
  late: [],
  sets: [],
  heldFor: undefined,
  agentBusyUntilMs: 0,
  stoppedAtMs: undefined,
  clockLagMs: 0,
  damaged: false,
})

/** The memory as it goes into a file: times still to come become durations. */
export const packMemory = (memory: GuestMemory, nowMs: number): GuestMemory => shift(memory, -nowMs)
export const unpackMemory = (memory: GuestMemory, nowMs: number): GuestMemory => shift(memory, nowMs)

function shift(memory: GuestMemory, byMs: number): GuestMemory {
  const copy = structuredClone(memory)
  copy.late = copy.late.map((deed) => ({ ...deed, dueMs: deed.dueMs + byMs }))
  copy.agentBusyUntilMs += byMs
  return copy
}
