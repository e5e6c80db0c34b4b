/**
 * The calendar of retention: which hour, day, ISO week, month and year an instant belongs to, in one time zone.
 */
export interface CalendarPlace {
  /** 2026-10-25 02:00+01:00: the hour that comes twice when summer time ends is two hours. */
  readonly hourly: string
  /** 2026-10-25 */
  readonly daily: string
  /** 2026-W43: weeks begin on Monday, and week 1 is the one with the year's first Thursday (ISO 8601). */
  readonly weekly: string
  /** 2026-10 */
  readonly monthly: string
  /** 2026 */
  readonly yearly: string
}

export type Period = keyof CalendarPlace
export const periods: readonly Period[] = ['hourly', 'daily', 'weekly', 'monthly', 'yearly']

/** Answers where an instant (milliseconds since the epoch) lies. `timeZone` is an IANA name; the machine's own if missing. */
export function openCalendar(timeZone?: string): (epochMs: number) => CalendarPlace {
  const format = new Intl.DateTimeFormat('en-GB', {
    ...(timeZone === undefined ? {} : { timeZone }),
    calendar: 'gregory',
    numberingSystem: 'latn',
    hourCycle: 'h23',
    year: 'numeric',
    month: '2-digit',
    day: '2-digit',
    hour: '2-digit',
    timeZoneName: 'longOffset',
  })
  return (epochMs) => {
    const parts = Object.fromEntries(format.formatToParts(epochMs).map(({ type, value }) => [type, value]))
    const { year = '', month = '', day = '', hour = '', timeZoneName = '' } = parts
    const date = `${year}-${month}-${day}`
    const offset = timeZoneName.slice('GMT'.length) || '+00:00'
    return {
      hourly: `${date} ${hour}:00${offset}`,
      daily: date,
      weekly: isoWeek(Number(year), Number(month), Number(day)),
      monthly: `${year}-${month}`,
      yearly: year,
    }
  }
}

const dayMs = 86_400_000

/** The week belongs to the year in which its Thursday lies. Counted in UTC, where every day has 24 hours. */
function isoWeek(year: number, month: number, day: number): string {
  const dayMsUtc = Date.UTC(year, month - 1, day)
  const fromMonday = (new Date(dayMsUtc).getUTCDay() + 6) % 7
  const thursday = new Date(dayMsUtc + (3 - fromMonday) * dayMs)
  const weekYear = thursday.getUTCFullYear()
  const week = 1 + Math.floor((thursday.getTime() - Date.UTC(weekYear, 0, 1)) / (7 * dayMs))
  return `${weekYear}-W${String(week).padStart(2, '0')}`
}
