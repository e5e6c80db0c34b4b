/**
 * DoSnapshotSet: the writers' and providers' half of a backup, on one screen. The braces are the windows.
 * Source: "Overview of Pre-Backup Tasks" and "Shadow Copy Creation for Providers".
 * A guest's own session inside PrepareForSnapshot runs this same function.
 */
import { type Settled, settleAll } from '../base/async.ts'
import type { Clock } from '../base/clock.ts'
import { describeError } from '../base/failure.ts'
import { failure } from '../errors.ts'
import type { Providers, Writers } from './gather.ts'
import type { Instant, ShadowCopy } from './provider.ts'
import type { SessionLimits } from './vocabulary.ts'
import { FrozenWriters, HeldWrites, type QuietDuringFreeze, WritableCopies } from './windows.ts'

export interface SnapshotSet {
  readonly id: string
  /** Components that share an instant; one group unless each VM is frozen only for its own commit. */
  readonly instants: readonly (readonly string[])[]
  /** How many of them may be under way side by side. */
  readonly instantsAtOnce: number
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

  await writers.prepareForSnapshot() // save VMs; the guest's whole own session
  await providers.endPrepareSnapshots() // slow work ends here

  for (const wave of wavesOf(set)) {
    const work = (components: readonly string[]) => takeInstant(set, components, writers, providers)
    instants.push(...judgeWave(await settleAll(wave, work)))
  }

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

/** Freeze, commit, Thaw of the components that share an instant; nobody else's freeze is waited for. */
async function takeInstant(
  set: SnapshotSet,
  components: readonly string[],
  writers: Writers,
  providers: Providers,
): Promise<readonly Instant[]> {
  let instants: readonly Instant[]
  await using frozen = await FrozenWriters.open(writers.ofInstant(components), set.quiet, set.limits, set.clock)
  await frozen.within(providers.preCommitSnapshots(components, frozen))
  {
    await using held = HeldWrites.open(frozen, set.limits, set.clock)
    instants = await held.within(frozen.within(providers.commitSnapshots(components, held))) // the instant
  } // writes flow again
  await frozen.within(providers.postCommitSnapshots(components, frozen))
  return instants
} // Thaw

/** Between two waves nobody is frozen, and journal and events catch up. */
function wavesOf({ instants, instantsAtOnce }: SnapshotSet): (readonly string[])[][] {
  const count = Math.ceil(instants.length / instantsAtOnce)
  return Array.from({ length: count }, (_, i) => instants.slice(i * instantsAtOnce, (i + 1) * instantsAtOnce))
}

/** Law 10, for windows that were open side by side: what went wrong in any of them is told at once. */
function judgeWave(settled: readonly Settled<readonly string[], readonly Instant[]>[]): Instant[] {
  const errors = settled.flatMap(({ outcome }) => (outcome.ok ? [] : [outcome.error]))
  if (errors.length > 1) throw failure('VSS_INSTANTS_FAILED', { reasons: errors.map(describeError) }, errors[0])
  if (errors.length > 0) throw errors[0]
  return settled.flatMap(({ outcome }) => (outcome.ok ? outcome.value : []))
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
