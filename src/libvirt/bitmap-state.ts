/**
 * The state of change tracking of a disk, and what follows from it: pure, explicit, drawn in docs/change-tracking.md. The rule
 * is that a bitmap is believed only if nothing speaks against it. Whatever is in doubt is read whole and compared.
 */
import { createHash } from 'node:crypto'
import type { ChangeTracking, ImageMark, TrackableDisk, TrackedDisk, TrackingPoint } from '../vm/backup-job.ts'
import { trackingPointName } from '../vm/backup-job.ts'

/**
 * `none`: nothing was ever recorded that one could build on. `recording`: everything since the point is known. `in-doubt`: there
 * is a bitmap, but it may not be the whole truth. `lost`: there should be a bitmap, and there is none that is whole.
 */
export type BitmapState = 'none' | 'recording' | 'in-doubt' | 'lost'

export type BitmapDecision =
  | { readonly state: 'recording'; readonly stamp: string; readonly point: string; readonly changedBytes: number }
  | { readonly state: Exclude<BitmapState, 'recording'>; readonly reason: string }

/** The first eight hexadecimal digits of an owner that is a UUID; of the digest of any other. */
export function ownerTag(owner: string): string {
  const digits = owner.replaceAll('-', '').slice(0, 8).toLowerCase()
  return /^[0-9a-f]{8}$/.test(digits) ? digits : createHash('sha256').update(owner).digest('hex').slice(0, 8)
}

export const pointNameOf = (owner: string, stamp: string): string => `umbra-${ownerTag(owner)}-${stamp}`

/** True for the points of this owner, and of nobody else. */
export const isOwnedBy = (owner: string, name: string): boolean => trackingPointName.exec(name)?.[1] === ownerTag(owner)

/** What is known of one disk; `previous`: stamps that can be built upon, newest first. */
export function decide(
  tracking: ChangeTracking,
  target: string,
  owner: string,
  previous: readonly string[],
): BitmapDecision {
  const disk = tracking.disks.find((each) => each.target === target)
  if (disk === undefined) return { state: 'none', reason: 'the hypervisor does not know the disk' }
  if (disk.untrackable !== undefined) return { state: 'none', reason: disk.untrackable }
  if (previous.length === 0) return { state: 'none', reason: 'there is no earlier backup that it could build upon' }
  for (const stamp of previous) {
    const point = tracking.points.find(({ name }) => name === pointNameOf(owner, stamp))
    const tracked = point?.disks.find((each) => each.target === target)
    if (point !== undefined && tracked !== undefined) return judge(stamp, point, tracked, disk)
  }
  return { state: 'lost', reason: 'the hypervisor has no tracking point of an earlier backup any more' }
}

function judge(stamp: string, point: TrackingPoint, tracked: TrackedDisk, disk: TrackableDisk): BitmapDecision {
  if (tracked.bitmap === 'unknown') return { state: 'in-doubt', reason: 'only a running VM tells what has changed' }
  if (tracked.bitmap === 'broken') {
    const reason = 'its bitmap is missing or was not stored: the VM was killed, or the image was rewritten'
    return { state: 'lost', reason }
  }
  const doubt = doubtOf(tracked.image, disk)
  if (doubt !== undefined) return { state: 'in-doubt', reason: doubt }
  return { state: 'recording', stamp, point: point.name, changedBytes: tracked.changedBytes ?? 0 }
}

function doubtOf(then: ImageMark | undefined, { image: now, internalStates }: TrackableDisk): string | undefined {
  if (then === undefined) return 'it is not known which image the tracking point was made on'
  if (then.location !== now.location) return `its image was ${then.location} then, and is ${now.location} now`
  if (then.sizeBytes === undefined || now.sizeBytes === undefined) return 'its size could not be told'
  if (then.sizeBytes !== now.sizeBytes) return `its size has changed from ${then.sizeBytes} to ${now.sizeBytes} bytes`
  if (then.file !== now.file) return `the file ${now.location} was replaced by another one`
  if (internalStates > 0) return 'its image holds internal snapshots, to which it may have been turned back'
  return undefined
}

/**
 * Points of this owner, and bitmaps of points that the hypervisor forgot, which nobody builds upon any more: they go before a
 * new point is begun, so that a VM has two of an owner at most. `builtUpon`: names of points.
 */
export function surplusPoints(
  { points, forgotten }: ChangeTracking,
  owner: string,
  builtUpon: ReadonlySet<string>,
  previous: ReadonlySet<string>,
): string[] {
  const ours = points.map(({ name }) => name).filter((name) => isOwnedBy(owner, name))
  // A backup that builds on nothing because it was told so leaves the chain whole until it has succeeded.
  const spared = builtUpon.size === 0 && previous.size === 0 ? ours.at(-1) : undefined
  const surplus = ours.filter((name) => !builtUpon.has(name) && name !== spared)
  return [...surplus, ...forgotten.filter((name) => isOwnedBy(owner, name))]
}
