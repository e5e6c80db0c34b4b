/**
 * Ages as people type them: 36h, 14d, 8w. A day is 24 hours and a week seven of them; months and years are left out, because
 * their length would depend on when one asks.
 */
const unitMs = { h: 3_600_000, d: 86_400_000, w: 7 * 86_400_000 } as const
const unitNames = { h: 'hour', d: 'day', w: 'week' } as const
type Unit = keyof typeof unitMs

/** A century: longer is a slip of the finger. */
const longestMs = 36_525 * unitMs.d

/** What `parseAge` understands, for messages. */
export const ageForm = 'a number and h, d or w, as in 36h, 14d, 8w (at most 100 years)'

/** Milliseconds; undefined when `text` is no age. */
export function parseAge(text: string): number | undefined {
  const [, count = '', unit] = /^(\d{1,7})\s?([hdw])$/.exec(text.trim()) ?? []
  if (unit === undefined) return undefined
  const ms = Number(count) * unitMs[unit as Unit]
  return ms > 0 && ms <= longestMs ? ms : undefined
}

/** 14 days, 36 hours: in the largest unit that comes out even, of days and hours. */
export function ageText(ms: number): string {
  const unit: Unit = ms % unitMs.d === 0 ? 'd' : 'h'
  const count = Math.round((ms / unitMs[unit]) * 10) / 10
  return `${count} ${unitNames[unit]}${count === 1 ? '' : 's'}`
}
