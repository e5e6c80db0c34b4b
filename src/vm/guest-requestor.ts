/**
 * The port to the backup integration service inside a guest ("Hyper-V Volume Shadow Copy Requestor"): the guest takes a
 * shadow copy of its own volumes, its writers taking part, and can revert a copy of its disks to it. docs/guest-protocol.md
 * is the protocol, guest/ the guest's side. Every call is bounded in time and rejects with GUEST_NOT_RESPONDING,
 * GUEST_REFUSED, GUEST_WRITER_VETO or GUEST_SET_LOST.
 */

/** `lvm`: a classic linear or striped logical volume. `other` can not have a snapshot. */
export type GuestVolumeKind = 'lvm' | 'thin' | 'btrfs' | 'other'

/** One mounted local file system, with what it lies on. */
export interface GuestVolume {
  readonly mountPoint: string
  readonly type: string
  readonly kind: GuestVolumeKind
  /** `group/volume`, `fsid:/subvolume`, or a device. */
  readonly where: string
  /** Targets of the VM's disks it lies on, those of its whole volume group included; matched by address or serial. */
  readonly targets: readonly string[]
  /** Bytes free for a snapshot area. */
  readonly roomBytes: number
  /** Why the guest can take no snapshot of it. */
  readonly obstacle?: string
}

export interface GuestDescription {
  /** How it is reached: the agent's exec, or the installed package's service. */
  readonly via: 'exec' | 'package'
  readonly volumes: readonly GuestVolume[]
  /** Names of the guest's writers. */
  readonly writers: readonly string[]
  /** Arrays and dynamic disks over which no snapshot is possible, in words. */
  readonly arrays: readonly string[]
  /** A volume group or file system has a part on a disk that is not one of the VM's. */
  readonly strayDevices: readonly string[]
}

export interface ShadowStorage {
  readonly where: string
  readonly usedBytes: number
  readonly totalBytes: number
}

/** A copy of a btrfs file system got another fsid while it was next to its original; `fsid` is to be put back. */
export interface ChangedFsid {
  readonly serial: string
  readonly fsid: string
}

/** `set`: the first eight hex digits of the snapshot set's id. */
export interface GuestRequestor {
  /** Changes nothing. */
  describe(): Promise<GuestDescription>
  /** Snapshot areas, everything slow; the guest releases the set by itself after `limitMs`. */
  prepare(set: string, limitMs: number): Promise<void>
  /** GUEST_WRITER_VETO when one of the guest's writers can not; then all are thawed again. Thaws by itself after `limitMs`. */
  freezeWriters(set: string, limitMs: number): Promise<void>
  /** The instant of the guest's own snapshot. */
  commit(set: string): Promise<void>
  /** GUEST_SET_LOST when the guest had thawed by itself. Harmless when nothing is frozen. */
  thawWriters(set: string): Promise<void>
  /** GUEST_SET_LOST when a snapshot can not be relied upon any more. */
  status(set: string): Promise<readonly ShadowStorage[]>
  /** Takes everything of the set away. Idempotent, also after the guest was restarted. */
  release(set: string): Promise<void>
  /** Reverts copies of this VM's disks that are attached with these serials; synced and closed when it resolves. */
  revert(set: string, serials: readonly string[]): Promise<readonly ChangedFsid[]>
}

/** How the guest's side calls a snapshot set. */
export const guestSetName = (snapshotSetId: string): string => snapshotSetId.slice(0, 8)
