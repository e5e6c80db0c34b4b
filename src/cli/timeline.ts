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

/**
 * Says each event as it comes. The first one waits for the second, so that a request that is refused at once (a misspelt
 * name) is answered by one line and nothing else.
 */
export function openTimeline(say: (line: string) => void): (event: Told) => void {
  let kept: string[] = []
  let heard = 0
  return (event) => {
    kept.push(eventLine(event))
    if (++heard < 2) return
    for (const line of kept) say(line)
    kept = []
  }
}
