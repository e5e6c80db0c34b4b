/**
 * What the memory of a simulated guest holds: it dies with the power, and travels with a saved state.
 */

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
  /** Freezes and thaws still on their way through the agent. */
  late: { readonly kind: 'freeze' | 'thaw'; readonly dueMs: number }[]
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
  copy.late = copy.late.map(({ kind, dueMs }) => ({ kind, dueMs: dueMs + byMs }))
  copy.agentBusyUntilMs += byMs
  return copy
}
