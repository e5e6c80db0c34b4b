/**
 * Dirty bitmaps of simulated images: named, kept in the layer itself as in a qcow2 file, 64 KiB to the bit. A layer knows
 * nothing of what they are for; sim-backup-job.ts does.
 */

export const granuleBytes = 64 * 1024

export interface SimBitmap {
  /** Numbers of the granules written since. */
  readonly granules: Set<number>
  /** The process that wrote to the image died before it could store it. */
  broken: boolean
}

/** What a layer tells before it changes. */
export type BeforeWrite = (cluster: number) => void

/** The part of a layer that is about who watches its writes. */
export class WriteWatch {
  readonly bitmaps = new Map<string, SimBitmap>()
  readonly before = new Set<BeforeWrite>()

  /** Before any cluster of these is changed; throws when somebody can not allow it, and then nothing is. */
  announce(clusters: Iterable<number>, clusterBytes: number): void {
    const all = [...clusters]
    for (const each of this.before) for (const cluster of all) each(cluster)
    for (const { granules } of this.bitmaps.values())
      for (const cluster of all) granules.add(Math.floor((cluster * clusterBytes) / granuleBytes))
  }

  /** As after kill -9 of whoever had it open for writing. */
  break(): void {
    for (const bitmap of this.bitmaps.values()) bitmap.broken = true
  }
}
