/**
 * A boot check: what was backed up is started for a look, beside whatever runs, and thrown away again. The contract
 * between the requester, who serves the disks and keeps the verdicts, and whoever knows how to start such a thing.
 * VSS has no such step; plan, then execute, as for a restore.
 */
import type { Cleanup, JsonObject } from '../base/cleanup.ts'
import type { ComponentRef } from './components.ts'
import type { StoredComponent } from './restore-plan.ts'
import type { EmitEvent } from './vocabulary.ts'

/** Something that has to succeed once the guest has come up. */
export type Probe =
  | { readonly kind: 'agent' }
  /** A command line for the guest's own shell; exit code 0 is success. */
  | { readonly kind: 'run'; readonly command: string }
  | { readonly kind: 'tcp'; readonly port: number }
  /** GET without following; a status from 200 to 399 is success. */
  | { readonly kind: 'http'; readonly port: number; readonly path: string }

/** What the user may say about a check. */
export interface CheckRequest {
  /** Names or UUIDs of those that are started first, in this order. */
  readonly order: readonly string[]
  readonly probes: readonly Probe[]
  /** For each, from its start to the last answer of its probes. */
  readonly timeoutMs: number
  /** At most so much memory for each. */
  readonly memoryBytes?: number
}

/** What the check has for itself on this host. */
export interface CheckPlace {
  /** Eight hexadecimal digits: everything that is made carries them. */
  readonly token: string
  /** Of this check alone; it is removed with all that is in it. */
  readonly directory: string
  /** Where the disks are served from. */
  readonly socketPath: string
}

/** One disk to serve: the stream of a component, and the name under which it is asked for. */
export interface CheckExport {
  readonly name: string
  readonly component: ComponentRef
  readonly stream: string
}

export interface CheckPlan {
  /** In the order in which they are started. */
  readonly captions: readonly string[]
  readonly exports: readonly CheckExport[]
  /** What will happen, one sentence each, in order. */
  readonly steps: readonly string[]
  readonly warnings: readonly string[]
  /** Why it can not be done; nothing is made unless this is empty. */
  readonly obstacles: readonly string[]
}

export interface CheckVerdict {
  readonly component: ComponentRef
  readonly caption: string
  readonly passed: boolean
  /** In words: what was reached, or what went wrong. */
  readonly reason: string
  readonly evidence: JsonObject
  /** What its screen showed at the end: a PNG of at most 1 MiB. */
  readonly screen?: Uint8Array
}

export interface CheckSession {
  readonly undo: Cleanup
  readonly emit: EmitEvent
  readonly signal: AbortSignal
}

export interface BootChecker<Plan extends CheckPlan> {
  /** Touches nothing. */
  planCheck(stored: readonly StoredComponent[], request: CheckRequest, place: CheckPlace): Plan
  /**
   * Carries out the plan while its disks are served; everything it made is removed when it settles, or else stays
   * registered with the session's undo. What does not come up is a verdict; that nothing could be tried is a failure.
   */
  runCheck(plan: Plan, session: CheckSession): Promise<readonly CheckVerdict[]>
}
