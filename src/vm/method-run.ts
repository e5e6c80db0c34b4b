/**
 * What the writer does for one VM in one session, by method. The writer (vm-writer.ts) maps VSS events to these calls
 * and turns what they throw into vetoes.
 */
import type { Cleanup } from '../base/cleanup.ts'
import type { Clock } from '../base/clock.ts'
import type { EmitEvent, SessionLimits } from '../vss/vocabulary.ts'
import type { ComponentFile } from '../vss/writer.ts'
import type { AutoRecovery, RecoveryWay, WritableCopy } from './auto-recovery.ts'
import type { Cluster } from './cluster.ts'
import type { Hypervisor, VmFacts } from './hypervisor.ts'
import type { Consistency, MethodPlan } from './method.ts'

export interface MethodContext {
  readonly hypervisor: Hypervisor
  readonly cluster: Cluster
  readonly facts: VmFacts
  readonly plan: MethodPlan
  readonly undo: Cleanup
  readonly clock: Clock
  readonly limits: SessionLimits
  readonly emit: EmitEvent
  readonly signal: AbortSignal
  /** A directory of our own for memory images; private to root. */
  readonly workDirectory: string
  readonly snapshotSetId: string
  readonly tell: (detail: string) => void
}

/** What was achieved (law 12). */
export interface MethodOutcome {
  readonly consistency: Consistency
  readonly reasons: readonly string[]
  /** From the freeze request to the end of the thaw: the longest the guest (or its writers) can have stood still. */
  readonly freezeMs: number
  /** Our own share of that: from the answer to the freeze to the thaw request. */
  readonly heldMs: number
  /** For how long the VM did not run. */
  readonly pausedMs: number
  /** What it took to roll the copies back, and what did it; only of a child-snapshot. */
  readonly recoveryMs?: number
  readonly recoveredBy?: RecoveryWay
  readonly files: readonly ComponentFile[]
}

export interface MethodRun {
  prepareForSnapshot(): Promise<void>
  freeze(): Promise<void>
  /** Follows every freeze attempt. */
  thaw(): Promise<void>
  /** The copies may be written until this returns, where the plan is to recover them. */
  postSnapshot(copies: readonly WritableCopy[], autoRecovery: AutoRecovery | undefined): Promise<void>
  /** Idempotent; whatever prepareForSnapshot and freeze did is taken back. */
  abort(): Promise<void>
  /** After everything: what may fail without harm to the backup. */
  complete?(): Promise<void>
  outcome(): MethodOutcome
}

/** The methods without any work in the VM: checkpoint (2012 R2) and a VM that is off. */
export function undisturbed(context: MethodContext): MethodRun {
  const nothing = async () => undefined
  const { consistency, because, method } = context.plan
  return {
    prepareForSnapshot: nothing,
    freeze: nothing, // "No processing is done by the Hyper-V VSS writer during the Freeze and Thaw events."
    thaw: nothing,
    postSnapshot: nothing,
    abort: nothing,
    outcome: () => ({
      consistency,
      reasons: [`${method}: ${because}`],
      freezeMs: 0,
      heldMs: 0,
      pausedMs: 0,
      files: [],
    }),
  }
}
