/**
 * How much room the scratch files of a backup job may take: what the guest has written per second since its last tracking
 * point, for as long as the transfer may last, twice. Pure. A disk of which nothing is known counts for nothing: while the
 * transfer runs, the room that is left is watched anyhow.
 */
import type { ChangeTracking } from '../vm/backup-job.ts'

/** Slower than any transfer that was measured over a network of 1 Gbit/s. */
const transferBytesPerMs = 50 * 1024
const safety = 2

/** Bytes for one disk; never more than the disk has. */
export function scratchForecast(tracking: ChangeTracking, target: string, nowMs: number): number {
  const sizeBytes = tracking.disks.find((disk) => disk.target === target)?.image.sizeBytes ?? 0
  const latest = tracking.points.findLast(({ disks }) =>
    disks.some((disk) => disk.target === target && disk.changedBytes !== undefined),
  )
  const changedBytes = latest?.disks.find((disk) => disk.target === target)?.changedBytes
  if (latest === undefined || changedBytes === undefined) return 0
  const elapsedMs = Math.max(1000, nowMs - latest.createdMs)
  const transferMs = changedBytes / transferBytesPerMs
  return Math.min(sizeBytes, Math.ceil((changedBytes / elapsedMs) * transferMs * safety))
}
