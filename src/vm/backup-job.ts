/**
 * Backup jobs of a hypervisor: the instant of a running VM without an overlay. The VM writes on to its own disks; what a
 * write replaces goes into a scratch file first, and readers get the disk as it was. A change-tracking point begun with the
 * job records what is written from that instant on, so that the next job can tell what has changed.
 * Part of the Hypervisor port; test/contract/hypervisor-backup-job.contract.ts is what every implementation passes.
 */
import type { BlockSource } from '../disk/block-device.ts'
import type { Range } from '../disk/extents.ts'

/** How Umbra names its tracking points: `umbra-OWNER-STAMP`. Only such points are ever removed. */
export const trackingPointName = /^umbra-([0-9a-f]{8})-([0-9A-Za-z][0-9A-Za-z-]{0,63})$/

/** What tells an image from another one in its place; compared, never interpreted. */
export interface ImageMark {
  /** Path, or protocol and name. */
  readonly location: string
  /** As the guest sees it; undefined when it could not be told. */
  readonly sizeBytes?: number
  /** Of a file on this host: another one after the file was replaced. */
  readonly file?: string
}

/** One disk of a tracking point. */
export interface TrackedDisk {
  readonly target: string
  /**
   * `recording`: it is there, whole, and has recorded every write since the point. `broken`: it is missing, or was not
   * brought to rest by whoever wrote last. `unknown`: the VM does not run, so nobody can tell.
   */
  readonly bitmap: 'recording' | 'broken' | 'unknown'
  /** What has changed since the point, in bytes; only while recording. */
  readonly changedBytes?: number
  /** The disk's image when the point was begun; undefined for a point that Umbra did not begin. */
  readonly image?: ImageMark
}

/** A change-tracking point of a VM. */
export interface TrackingPoint {
  /** Unique for the VM: letters, digits, `-`, `_` and `.`. */
  readonly name: string
  /** The point before it; undefined for the first. */
  readonly parent?: string
  /** Milliseconds since the epoch. */
  readonly createdMs: number
  readonly disks: readonly TrackedDisk[]
}

/** A disk as it is now, as far as change tracking is concerned. */
export interface TrackableDisk {
  readonly target: string
  readonly image: ImageMark
  /** Why writes to it can not be recorded, for people; undefined when they can. */
  readonly untrackable?: string
  /** States inside the image (internal snapshots) to which it may have been turned back. */
  readonly internalStates: number
}

export interface ChangeTracking {
  /** Oldest first; those of other programs too. */
  readonly points: readonly TrackingPoint[]
  readonly disks: readonly TrackableDisk[]
  /** Names of Umbra's points whose bitmaps lie in the images although the hypervisor has forgotten the points. */
  readonly forgotten: readonly string[]
}

/** One disk of a job. */
export interface BackupJobDisk {
  readonly target: string
  /** Path of the scratch file. */
  readonly scratch: string
  /** Name of the tracking point since which changes are wanted. */
  readonly since?: string
  /** Whether the new tracking point is to record this disk. */
  readonly track: boolean
}

export interface BackupJobPlan {
  /**
   * Path of the unix socket that serves the copies; 107 bytes at most. Its directory is the job's own: it must not exist, is made
   * for the VM's process alone, and goes with the job.
   */
  readonly socket: string
  readonly disks: readonly BackupJobDisk[]
  /** Name of the tracking point to begin; without it, or when no disk is to be tracked, none is begun. */
  readonly point?: string
}

/** What is needed to end a job, also by somebody else after a crash. */
export interface BackupJobInPlace {
  readonly socket: string
  readonly scratch: readonly string[]
}

/** `ended`: the job is over although nobody ended it (the VM stopped); its copies are gone. */
export interface BackupJobStatus {
  readonly state: 'running' | 'ended'
  /** What the scratch files hold, in bytes. */
  readonly scratchBytes: number
  /** The VM stands still because of an error on a disk, mostly a full one. */
  readonly pausedByIoError: boolean
}

/** The copy of one disk, while its job runs. */
export interface BackupJobCopy extends BlockSource {
  /** What has changed since the point `since` of the plan, ascending; throws when the plan had none. */
  changes(): AsyncIterable<Range>
}

export interface BackupJobs {
  /** Everything that decides what can be built upon; disturbs nothing. For a VM that is off too, with less to tell. */
  changeTracking(uuid: string): Promise<ChangeTracking>
  /** Makes the scratch files and the socket's directory, none of which may exist, so that `beginBackupJob` is a single short call. Changes no VM. */
  prepareBackupJob(uuid: string, plan: BackupJobPlan): Promise<void>
  /**
   * The instant: one call over all disks named, all or none, for a VM that is running or paused. Rejects with
   * TRACKING_DOUBTFUL, having done nothing, when a point of the plan can not be built upon; its context names the disk as `target`,
   * if the hypervisor named it.
   */
  beginBackupJob(uuid: string, plan: BackupJobPlan): Promise<void>
  /** Opens the copy of one disk; dispose it before the job is ended. */
  openBackupJob(uuid: string, plan: BackupJobPlan, target: string): Promise<BackupJobCopy>
  backupJobStatus(uuid: string, job: BackupJobInPlace): Promise<BackupJobStatus>
  /** Calls `look` whenever something may have happened that a job has to know of; a hint, perhaps lost. */
  watchBackupJob(uuid: string, look: () => void): Promise<AsyncDisposable>
  /**
   * Ends that job and no other, resumes a VM that stands still because a scratch file found no room, removes scratch files,
   * socket and its directory. Idempotent, whatever a crash left; a VM that is gone is no obstacle.
   */
  endBackupJob(uuid: string, job: BackupJobInPlace): Promise<void>
  /**
   * Removes a tracking point with its bitmaps, as far as they can be reached; of a VM that is off only the point. Bitmaps whose
   * point has been forgotten go too. Idempotent. Refuses a name that is not Umbra's own.
   */
  removeTrackingPoint(uuid: string, name: string): Promise<void>
}
