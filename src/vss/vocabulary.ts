/**
 * Every word of VSS that Umbra uses, with the numbers that its tools print.
 * Source: VSS API pages VSS_WRITER_STATE, VSS_BACKUP_TYPE, SetWriterFailure,
 * and "Overview of Processing a Backup Under VSS".
 */

/** The reader's landmark: the class id of Microsoft's Hyper-V writer, whose work src/vm does on libvirt. */
export const hyperVWriterId = '66841cd4-6ded-4f4b-8f17-fd23f8ddc3de'

export const writerEvents = [
  'Identify',
  'PrepareForBackup',
  'PrepareForSnapshot',
  'Freeze',
  'Thaw',
  'PostSnapshot',
  'BackupComplete',
  'BackupShutdown',
  'Abort',
  'PreRestore',
  'PostRestore',
] as const
export type WriterEvent = (typeof writerEvents)[number]

/** VSS_WRITER_STATE; the index is the number in brackets that `vssadmin list writers` prints. */
export const writerStates = [
  'unknown',
  'stable',
  'waiting-for-freeze',
  'waiting-for-thaw',
  'waiting-for-post-snapshot',
  'waiting-for-backup-complete',
  'failed-at-identify',
  'failed-at-prepare-backup',
  'failed-at-prepare-snapshot',
  'failed-at-freeze',
  'failed-at-thaw',
  'failed-at-post-snapshot',
  'failed-at-backup-complete',
  'failed-at-pre-restore',
  'failed-at-post-restore',
  'failed-at-backup-shutdown',
] as const
export type WriterState = (typeof writerStates)[number]

/** The five codes a writer may give (SetWriterFailure), with their HRESULTs and the words of `vssadmin`. */
export const writerFailures = {
  VSS_E_WRITERERROR_INCONSISTENTSNAPSHOT: { hresult: 0x800423f0, lastError: 'Inconsistent shadow copy' },
  VSS_E_WRITERERROR_OUTOFRESOURCES: { hresult: 0x800423f1, lastError: 'Out of resources' },
  VSS_E_WRITERERROR_TIMEOUT: { hresult: 0x800423f2, lastError: 'Timed out' },
  VSS_E_WRITERERROR_RETRYABLE: { hresult: 0x800423f3, lastError: 'Retryable error' },
  VSS_E_WRITERERROR_NONRETRYABLE: { hresult: 0x800423f4, lastError: 'Non-retryable error' },
} as const
export type WriterFailureCode = keyof typeof writerFailures

/** A writer's no, for one component or (component undefined) for all of it. Data, not an exception (law 10). */
export interface Veto {
  readonly writer: string
  /** Caption of the component concerned, as people know it. */
  readonly component?: string
  readonly code: WriterFailureCode
  readonly reason: string
}

/** VSS_SNAPSHOT_CONTEXT. Contexts are sums of attributes; the others are for shadow copies that outlive their session. */
export const snapshotContexts = { VSS_CTX_BACKUP: 0x0 } as const

/** _VSS_VOLUME_SNAPSHOT_ATTRIBUTES, those that mean something here. */
export const snapshotAttributes = {
  /** In a context: copies are read-only from the commit on. */
  VSS_VOLSNAP_ATTR_NO_AUTORECOVERY: 0x2,
  /** On a copy: its writer may write it until PostSnapshot has ended. */
  VSS_VOLSNAP_ATTR_AUTORECOVER: 0x400000,
} as const

/** VSS_COMPONENT_FLAGS: the writer wants to recover its copies in PostSnapshot. */
export const backupRecoveryFlag = 0x1

export const backupTypes = ['full', 'incremental', 'differential', 'log', 'copy', 'other'] as const
export type BackupType = (typeof backupTypes)[number]

/** VSS_FILE_RESTORE_STATUS: `none` nothing was written, `failed` what is on disk is damaged. */
export type FileRestoreStatus = 'undefined' | 'none' | 'all' | 'failed'

/** One thing that happened in a session; the same stream feeds progress, the log, the result and the traces in tests. */
export interface SessionEvent {
  /** Milliseconds since the session began. */
  readonly atMs: number
  /** A WriterEvent, or a step of the coordinator, a provider or the requester (PascalCase). */
  readonly event: string
  readonly writer?: string
  /** Caption of the component (for the VM writer, the VM's name). */
  readonly vm?: string
  readonly detail?: string
}

/** Where events go; must neither block nor touch a disk (law 4). */
export type EmitEvent = (event: Omit<SessionEvent, 'atMs'>) => void

/** Limits in milliseconds. Defaults are VSS's own; they may be lowered. */
export interface SessionLimits {
  /** Freeze to Thaw, per instant. CVssWriter::Initialize, dwTimeoutFreeze. */
  readonly freezeMs: number
  /** Writes held around the commit. "Shadow Copy Creation for Providers". */
  readonly holdWritesMs: number
  /** PrepareForSnapshot and the other slow events. */
  readonly prepareMs: number
}

export const defaultLimits: SessionLimits = { freezeMs: 60_000, holdWritesMs: 10_000, prepareMs: 600_000 }
