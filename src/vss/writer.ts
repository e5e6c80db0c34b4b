/**
 * The contract of a writer: who owns the data that is being backed up. One handler per VSS event; the order is that of
 * "Overview of Processing a Backup Under VSS". A handler answers with vetoes (data) for what it can not do; an exception
 * counts as a veto of the whole writer. test/contract/writer.contract.ts is what every writer must pass.
 */
import type { Cleanup, JsonObject } from '../base/cleanup.ts'
import type { ComponentRef, WriterMetadata } from './components.ts'
import type { ShadowCopy } from './provider.ts'
import type { EmitEvent, FileRestoreStatus, Veto } from './vocabulary.ts'
import type { WritableCopies } from './windows.ts'

/** What a handler gets of the session. `undo` is the session's: register before the deed. */
export interface WriterSession {
  readonly snapshotSetId: string
  /** Components of this writer that take part. */
  readonly components: readonly ComponentRef[]
  readonly undo: Cleanup
  readonly emit: EmitEvent
  /** Aborts when the session is cancelled or the event's window has expired. */
  readonly signal: AbortSignal
}

/** A file of a component besides its volumes: small ones by content, as they were at the instant; large ones by path. */
export type ComponentFile =
  | { readonly name: string; readonly content: Uint8Array }
  | { readonly name: string; readonly path: string }

/** What a writer leaves for one component once the copies exist: goes into the backup components document. */
export interface ComponentOutcome {
  readonly component: ComponentRef
  /** Written as BACKUP_METADATA; the requester stores and returns it unread. */
  readonly metadata: JsonObject
  readonly files: readonly ComponentFile[]
}

export interface RestoredComponent {
  readonly component: ComponentRef
  readonly metadata: JsonObject
  readonly status: FileRestoreStatus
}

export interface RestoreSession {
  readonly components: readonly ComponentRef[]
  readonly undo: Cleanup
  readonly emit: EmitEvent
}

type Vetoes = Promise<readonly Veto[]>

export interface Writer {
  readonly id: string
  readonly instanceId: string
  readonly name: string

  /** Describes what could be backed up, now. May come at any time and must change nothing. */
  onIdentify(): Promise<WriterMetadata>
  onPrepareBackup(session: WriterSession): Vetoes
  /** All the slow work. Everything that Freeze and Thaw may have to undo is registered here. */
  onPrepareSnapshot(session: WriterSession): Vetoes
  /** The last word. `session.components` are those of one instant. */
  onFreeze(session: WriterSession): Vetoes
  /** Follows every Freeze, also a failed one. */
  onThaw(session: WriterSession): Vetoes
  /** The copies exist; those with a `writableImage` may be written until the window closes, which waits for this. */
  onPostSnapshot(session: WriterSession, copies: readonly ShadowCopy[], window: WritableCopies): Vetoes
  /** What the writer has to say about each component; called once after PostSnapshot. */
  outcomes(session: WriterSession): Promise<readonly ComponentOutcome[]>
  onBackupComplete(session: WriterSession, succeeded: ReadonlyMap<string, boolean>): Vetoes
  /** The last event of every session; may be the only one after a crash. */
  onBackupShutdown(session: WriterSession): Promise<void>
  /** Does what Thaw and PostSnapshot would do. May come more than once. */
  onAbort(session: WriterSession): Promise<void>

  onPreRestore(session: RestoreSession): Vetoes
  /** Any status but `all` must end in a veto, with nothing registered. */
  onPostRestore(session: RestoreSession, restored: readonly RestoredComponent[]): Vetoes
}
