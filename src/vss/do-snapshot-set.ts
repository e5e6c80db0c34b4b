/**
 * DoSnapshotSet: the writers' and providers' half of a backup, on one screen. The braces are the windows.
 * Source: "Overview of Pre-Backup Tasks" and "Shadow Copy Creation for Providers".
 * A guest's own session inside PrepareForSnapshot runs this same function.
 */
import type { Clock } from '../base/clock.ts'
import type { Providers, Writers } from './gather.ts'
import type { Instant, ShadowCopy } from './provider.ts'
import type { SessionLimits } from './vocabulary.ts'
import { FrozenWriters, HeldWrites, type QuietDuringFreeze, WritableCopies } from './windows.ts'

export interface SnapshotSet {
  readonly id: string
  /** Components that share an instant; one group unless each VM is frozen only for its own commit. */
  readonly instants: readonly (readonly string[])[]
  readonly limits: SessionLimits
  readonly clock: Clock
  readonly quiet: QuietDuringFreeze
}

export interface CreatedSet {
  readonly copies: readonly ShadowCopy[]
  readonly instants: readonly Instant[]
}

export async function doSnapshotSet(set: SnapshotSet, writers: Writers, providers: Providers): Promise<CreatedSet> {
  await using abort = abortUnlessCreated(writers, providers)
  const instants: Instant[] = []

  await writers.prepareForSnapshot() // save VMs; later: the guest's whole own session
  await providers.endPrepareSnapshots() // slow work ends here

  for (const components of set.instants) {
    await using frozen = await FrozenWriters.open(writers.ofInstant(components), set.quiet, set.limits, set.clock)
    await frozen.within(providers.preCommitSnapshots(components, frozen))
    {
      await using held = HeldWrites.open(frozen, set.limits, set.clock)
      instants.push(...(await held.within(frozen.within(providers.commitSnapshots(components, held))))) // the instant
    } // writes flow again
    await frozen.within(providers.postCommitSnapshots(components, frozen))
  } // Thaw

  let copies: readonly ShadowCopy[]
  {
    await using writable = new WritableCopies(await providers.preFinalCommitSnapshots(), () =>
      providers.postFinalCommitSnapshots(),
    )
    await writers.postSnapshot(writable) // VMs back to their state; copies rolled back
    copies = writable.copies
  } // read-only from here on

  abort.created()
  return { copies, instants }
}

/** Abort goes to all writers and providers unless the set was created; both take it more than once. */
function abortUnlessCreated(writers: Writers, providers: Providers): AsyncDisposable & { created(): void } {
  let created = false
  return {
    created: () => {
      created = true
    },
    async [Symbol.asyncDispose]() {
      if (created) return
      await using _copies = { [Symbol.asyncDispose]: () => providers.abortSnapshots() } // after the writers, whatever they say
      await writers.abort()
    },
  }
}
