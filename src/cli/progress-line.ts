/**
 * The one line at the bottom of a terminal while bytes move: what, how far, how fast, how long still.
 */
import type { Progress } from '../requester/progress.ts'
import { bytesText, durationText } from './output.ts'

/** web01 sda  34 %  12 GiB of 36 GiB  210 MiB/s  1 min 52 s left */
export function progressText(progress: Progress, columns: number): string {
  const { what, doneBytes, totalBytes, bytesPerSecond, etaSeconds } = progress
  const percent = totalBytes === 0 ? 100 : Math.floor((100 * doneBytes) / totalBytes)
  const parts = [
    what,
    `${percent} %`,
    `${bytesText(doneBytes)} of ${bytesText(totalBytes)}`,
    ...(bytesPerSecond > 0 ? [`${bytesText(Math.round(bytesPerSecond))}/s`] : []),
    ...(etaSeconds === undefined ? [] : [`${durationText(Math.max(1, Math.ceil(etaSeconds)) * 1000)} left`]),
  ]
  return parts.join('  ').slice(0, columns - 1)
}
