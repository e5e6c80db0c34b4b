/**
 * A session's events as people read them: when, what, to whom, and what came of it.
 */
import type { SessionEvent } from '../vss/vocabulary.ts'

const secondsWidth = 8
const eventWidth = 20

type Told = Pick<SessionEvent, 'atMs' | 'event'> & { [Key in 'writer' | 'vm' | 'detail']?: string | undefined }

/** `   1.204 s  Freeze              web01  …` */
export function eventLine({ atMs, event, writer, vm, detail }: Told): string {
  const at = (atMs / 1000).toFixed(3).padStart(secondsWidth)
  const rest = [vm ?? writer, detail].filter((word) => word !== undefined && word !== '').join('  ')
  return `${at} s  ${event.padEnd(eventWidth)}  ${rest}`.trimEnd()
}
