/**
 * Change tracking from one backup to the next. A provider that can record what is written from an instant on does it under
 * the backup stamp of that backup, and tells at the next one what has changed since. The requester says which stamps it
 * can build on: those whose recovery points it still has. Whatever is in doubt is read whole and compared.
 * Source: "IVssComponent::SetBackupStamp", "IVssComponent::GetPreviousBackupStamp".
 */
import type { Range } from '../disk/extents.ts'
import type { Volume } from './provider.ts'

/** The change-tracking points of one requester; stamps are letters, digits and hyphens, at most 64. */
export interface BackupStamps {
  /** Whose chain it is (a repository): chains of different owners on one volume do not touch each other. At most 36 characters. */
  readonly owner: string
  /** The stamp of this backup: what is recorded from its instant on carries it. */
  readonly next: string
  /** Stamps of earlier backups of the volume that can be built upon, newest first. */
  previous(volume: Volume): readonly string[]
}

/** What a copy knows of the difference between an earlier backup and its own instant. */
export type Changes =
  | {
      /** The stamp of the earlier backup. */
      readonly since: string
      /** Whatever has changed since, or may have: ascending, bounded memory. Only while the copy is open to readers. */
      ranges(): AsyncIterable<Range>
    }
  | {
      readonly since: undefined
      /** Why all of it must be read, for people. */
      readonly reason: string
    }
