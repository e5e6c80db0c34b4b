/**
 * The contract of a provider: who makes the point-in-time copies of volumes. A volume here is one disk of a VM, or
 * whatever else a writer names. Order: "Shadow Copy Creation for Providers": beginPrepareSnapshot (each volume) ->
 * endPrepareSnapshots -> preCommit -> commit (the instant) -> postCommit -> preFinalCommit -> postFinalCommit.
 * There is no partial commit. test/contract/provider.contract.ts is what every provider must pass.
 */
import type { Cleanup, JsonObject } from '../base/cleanup.ts'
import type { BlockSource } from '../disk/block-device.ts'
import type { BackupStamps, Changes } from './change-tracking.ts'
import type { EmitEvent } from './vocabulary.ts'
import type { FrozenWriters, HeldWrites, WritableCopies } from './windows.ts'

/** What a writer asks a copy of. */
export interface Volume {
  /** Unique in a snapshot set. */
  readonly id: string
  /** Name of the component it belongs to. */
  readonly component: string
  /** For people: the component's caption and the volume's own name. */
  readonly caption: string
  readonly name: string
  /** Why not every provider may copy it, for people. */
  readonly restriction?: string
  /** What its provider needs to know; meaningless to everybody else. */
  readonly properties: JsonObject
}

/** The instant image of a volume. Readable until its set is deleted. */
export interface ShadowCopy {
  readonly id: string
  readonly volume: Volume
  readonly provider: string
  /** Where the copied file or directory lies on this host, read-only; undefined where the copy is no file. */
  readonly path?: string
  /** Opens the copy for reading; the caller disposes it before the set is deleted. */
  open(): Promise<BlockSource>
  /** What has changed since an earlier backup; absent where nobody recorded it. */
  readonly changes?: Changes
  /**
   * Only on a copy with VSS_VOLSNAP_ATTR_AUTORECOVER: where its writer can write it, in the provider's own words. Throws
   * VSS_BAD_STATE once the window has closed; the copy is read-only from then on.
   */
  writableImage?(window: WritableCopies): JsonObject
}

/** When the instant of one component was: on the coordinator's monotonic clock. */
export interface Instant {
  readonly component: string
  readonly beganMs: number
  readonly endedMs: number
}

export interface ProviderSession {
  readonly snapshotSetId: string
  readonly undo: Cleanup
  readonly emit: EmitEvent
  readonly signal: AbortSignal
  /** Set from endPrepareSnapshots on when the requester builds on earlier backups. */
  readonly stamps?: BackupStamps
  /** Ends the whole session for a reason found outside of any call (a disk that fills up). */
  abandon(reason: Error): void
}

export interface Provider {
  readonly id: string
  readonly name: string
  /** 0: can not; larger: more specific. VSS's rule: the most specific provider that can makes the copy. */
  supports(volume: Volume): number | Promise<number>
  /** `attributes`: a sum of snapshotAttributes. */
  beginPrepareSnapshot(session: ProviderSession, volume: Volume, attributes: number): Promise<void>
  /** All slow work ends here; every undo of the commit is registered. */
  endPrepareSnapshots(session: ProviderSession): Promise<void>
  preCommitSnapshots(session: ProviderSession, volumes: readonly Volume[], frozen: FrozenWriters): Promise<void>
  /** The instant, for all volumes given, all or none. */
  commitSnapshots(session: ProviderSession, volumes: readonly Volume[], held: HeldWrites): Promise<readonly Instant[]>
  postCommitSnapshots(session: ProviderSession, volumes: readonly Volume[], frozen: FrozenWriters): Promise<void>
  /** The copies that may be recovered become writable. */
  preFinalCommitSnapshots(session: ProviderSession): Promise<readonly ShadowCopy[]>
  /** The copies are read-only from here on. */
  postFinalCommitSnapshots(session: ProviderSession): Promise<void>
  /**
   * The backup is complete and can be built upon: its stamp stays, older ones of the same owner go. A stamp that is not kept
   * goes with its set. Comes before deleteSnapshots; idempotent.
   */
  keepStamps?(session: ProviderSession): Promise<void>
  /** Idempotent; waits for a commit that is still on its way, then takes everything back. */
  abortSnapshots(session: ProviderSession): Promise<void>
  /** Releases all copies of the set. Idempotent. */
  deleteSnapshots(session: ProviderSession): Promise<void>
}

/** VSS's choice: the most specific provider that supports the volume, the first of equals; undefined if none does. */
export async function chooseProvider(providers: readonly Provider[], volume: Volume): Promise<Provider | undefined> {
  const answers = await Promise.all(providers.map((provider) => provider.supports(volume)))
  const most = Math.max(0, ...answers)
  return most === 0 ? undefined : providers[answers.indexOf(most)]
}
