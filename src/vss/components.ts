/**
 * Components: what a writer offers for backup, and how a requester names it.
 * Source: "Working with Selectability and Logical Paths", "Writer Metadata Document Contents".
 * The XML shapes are in documents.ts.
 */
import type { JsonObject } from '../base/cleanup.ts'
import type { Volume } from './provider.ts'
import type { BackupType, FileRestoreStatus } from './vocabulary.ts'

/** The four-part address of a component as one value. */
export interface ComponentRef {
  readonly writerId: string
  readonly type: 'filegroup' | 'database'
  readonly logicalPath: string
  readonly name: string
}

export interface FileSpecification {
  readonly path: string
  readonly filespec: string
  readonly recursive: boolean
}

/** One entry of the writer metadata document. */
export interface ComponentMetadata extends ComponentRef {
  /** How people know it, and how it will be backed up ("Online\web01"). */
  readonly caption: string
  /** The plain name inside the caption, for events and vetoes. */
  readonly label: string
  readonly selectable: boolean
  readonly selectableForRestore: boolean
  readonly notifyOnBackupComplete: boolean
  /** VSS_COMPONENT_FLAGS; 1 = backup recovery: its copies must be auto-recoverable. */
  readonly flags: number
  readonly files: readonly FileSpecification[]
  /** Volumes that must be in the snapshot set. */
  readonly volumes: readonly Volume[]
  /** Components with one instant key are frozen and committed together. */
  readonly instant: string
  /** What the writer tells about its plan; unread by the requester. */
  readonly plan: JsonObject
  /** Why it can not be backed up at all; empty when it can. */
  readonly obstacles: readonly string[]
}

export interface WriterMetadata {
  readonly writerId: string
  readonly instanceId: string
  readonly name: string
  readonly components: readonly ComponentMetadata[]
  /** What the writer knows of but can not offer on this host, and where it is; for refusals, and in no document. */
  readonly elsewhere?: readonly { readonly label: string; readonly name?: string; readonly reason: string }[]
}

/** One component in the backup components document. */
export interface BackedUpComponent {
  readonly component: ComponentRef
  readonly succeeded: boolean
  /** What the writer left for its own restore (BACKUP_METADATA). */
  readonly metadata: JsonObject
  readonly fileRestoreStatus: FileRestoreStatus
}

/** The backup components document: what one session backed up, without any file path (those are in the metadata). */
export interface BackupComponentsDocument {
  readonly snapshotSetId: string
  readonly backupType: BackupType
  readonly writers: readonly {
    readonly writerId: string
    readonly instanceId: string
    readonly name: string
    readonly components: readonly BackedUpComponent[]
  }[]
}

export function refOf(component: ComponentRef): ComponentRef {
  const { writerId, type, logicalPath, name } = component
  return { writerId, type, logicalPath, name }
}

/** The path that VSS tools print: `\name`, or `\logical\path\name`. */
export function fullPath(ref: ComponentRef): string {
  return ref.logicalPath === '' ? `\\${ref.name}` : `\\${ref.logicalPath}\\${ref.name}`
}

export function sameComponent(a: ComponentRef, b: ComponentRef): boolean {
  return a.writerId === b.writerId && fullPath(a) === fullPath(b)
}

/** A name for a refusal: with the place where it is, when a writer knows that. */
export function withPlace(name: string, elsewhere: NonNullable<WriterMetadata['elsewhere']>): string {
  const there = elsewhere.find((one) => one.label === name || one.name === name.toLowerCase())
  return there === undefined ? name : `${name} here (${there.reason})`
}
