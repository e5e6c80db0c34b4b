/**
 * Auto-recovery: the copies of a VM's disks were taken some time after the guest's own snapshot; here they are rolled back
 * to it, before anybody reads them. Three ways, chosen by the plan (method.ts); the VM itself is never the one written to.
 *
 * - `by-reading`: the guest's snapshot is read from the copy and written back in user space. No mount, no device.
 * - `on-host` (2008, 2012): a helper VM without a network gets the copies; the host's kernel never sees what is on them.
 * - `in-guest` (2012 R2): each copy is hot-added to the VM it was copied from, which reverts it; then it is hot-removed.
 */
import type { Cleanup } from '../base/cleanup.ts'
import type { DiskImage, VmFacts } from './hypervisor.ts'

export const recoveryWays = ['by-reading', 'on-host', 'in-guest'] as const
export type RecoveryWay = (typeof recoveryWays)[number]

/** The copy of one disk, writable until PostSnapshot has ended. */
export interface WritableCopy {
  /** The disk's name at the VM. */
  readonly target: string
  readonly image: DiskImage
}

export interface Recovery {
  readonly vm: VmFacts
  /** As the guest's side calls it. */
  readonly set: string
  readonly copies: readonly WritableCopy[]
  readonly undo: Cleanup
  readonly signal: AbortSignal
  readonly tell: (detail: string) => void
}

/**
 * Rolls back all copies of one VM, all or none; what it began it has ended when it resolves or rejects. Answers with the way
 * that did it, which is another one when reading did not understand what it saw.
 */
export type Recover = (recovery: Recovery) => Promise<RecoveryWay>

export type AutoRecovery = Readonly<Record<RecoveryWay, Recover>>
