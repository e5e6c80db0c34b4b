/**
 * Retention: which recovery points are kept, and why. A pure plan; whoever deletes does it by this plan and no other way.
 *
 * A policy is a list of rules; of each VM the first rule with a pattern that fits its name, or with its UUID, decides. What a rule counts
 * (the last, the days, the weeks ...) it counts for each VM alone and each on its own, and a point stays when anything in it
 * is kept by anything. So a larger policy never keeps less, and what was kept once is kept again when nothing has changed.
 * docs/retention.md has the rules with examples.
 */
import { ageText } from '../../base/age.ts'
import { invariant } from '../../base/failure.ts'
import { failure } from '../../errors.ts'
import { type CalendarPlace, openCalendar, type Period, periods } from './retention-calendar.ts'
import { matchesPattern } from './retention-pattern.ts'

/** A VM in a recovery point. It is the same VM as long as its UUID is, whatever its name. */
export interface HeldVm {
  readonly uuid: string
  readonly name: string
}

/** A recovery point as retention sees it. */
export interface RetentionPoint {
  readonly id: string
  /** Milliseconds since the epoch; undefined when it can not be told. */
  readonly createdAtMs: number | undefined
  readonly vms: readonly HeldVm[]
  /** The note of its pin. */
  readonly pinned?: string
  /** Why it, or what it holds, can not be read. */
  readonly unreadable?: string
}

/** What is kept of the VMs that fit one of `vms`, see `fitsVm`. What is missing keeps nothing. */
export interface RetentionRule {
  readonly vms: readonly string[]
  readonly keepLast?: number | undefined
  readonly keepHourly?: number | undefined
  readonly keepDaily?: number | undefined
  readonly keepWeekly?: number | undefined
  readonly keepMonthly?: number | undefined
  readonly keepYearly?: number | undefined
  readonly keepWithinMs?: number | undefined
}

export interface RetentionPolicy {
  readonly rules: readonly RetentionRule[]
  /** Only VMs that fit one of these; the others are kept. Missing: all. */
  readonly only?: readonly string[]
  /** Even the newest point of a VM may go. */
  readonly allowNone?: boolean
}

export interface RetentionDecision {
  readonly point: RetentionPoint
  readonly keep: boolean
  /** At least one; of each VM that has a say one, which begins with its name. */
  readonly reasons: readonly string[]
}

const countOf = {
  hourly: 'keepHourly',
  daily: 'keepDaily',
  weekly: 'keepWeekly',
  monthly: 'keepMonthly',
  yearly: 'keepYearly',
} as const satisfies Record<Period, keyof RetentionRule>

/**
 * A decision for every point, newest last, whatever the order of `points`. `nowMs` since the epoch; `timeZone` an IANA name,
 * the machine's if missing. USAGE when the policy has no rule, or one that keeps nothing.
 */
export function planRetention(
  points: readonly RetentionPoint[],
  policy: RetentionPolicy,
  nowMs: number,
  timeZone?: string,
): RetentionDecision[] {
  refuseEmpty(policy)
  const ordered = points.toSorted(newestFirst)
  const verdicts = judgeVms(ordered, policy, nowMs, openCalendar(timeZone))
  return ordered.toReversed().map((point) => {
    const always = whyAlways(point, nowMs)
    const judged = verdicts.get(point) ?? { keep: [], remove: [] }
    const keep = [...always, ...judged.keep]
    if (keep.length > 0) return { point, keep: true, reasons: keep }
    invariant(judged.remove.length > 0, `nothing speaks against ${point.id}`)
    return { point, keep: false, reasons: judged.remove }
  })
}

function refuseEmpty({ rules, allowNone = false }: RetentionPolicy): void {
  const refuse = (reason: string) => failure('USAGE', { reason })
  if (rules.length === 0) throw refuse('the retention policy has no rule: it would keep nothing')
  for (const rule of rules) {
    const counts = countsOf(rule)
    const names = rule.vms.join(', ')
    if (rule.vms.length === 0) throw refuse('a rule of the retention policy is for no VM')
    if (counts.length === 0) throw refuse(`the retention rule for ${names} says nothing about what to keep`)
    if (!allowNone && counts.every((count) => count === 0)) {
      throw refuse(`the retention rule for ${names} keeps nothing; if that is meant, say --allow-none`)
    }
  }
}

function countsOf({ vms: _, ...counts }: RetentionRule): number[] {
  return Object.values(counts).filter((count) => count !== undefined)
}

/** By time, then by id, so that the order is the same whatever order they came in. */
function newestFirst(one: RetentionPoint, other: RetentionPoint): number {
  const byTime = (other.createdAtMs ?? 0) - (one.createdAtMs ?? 0)
  if (byTime !== 0) return byTime
  return one.id < other.id ? 1 : -1
}

const isOfFuture = ({ createdAtMs = 0 }: RetentionPoint, nowMs: number): boolean => createdAtMs > nowMs

/** Whether rules can count it: those that can not be placed in time or in a VM stand outside. */
const isCounted = (point: RetentionPoint, nowMs: number): boolean =>
  point.unreadable === undefined && point.createdAtMs !== undefined && !isOfFuture(point, nowMs)

/** What no rule can take away. */
function whyAlways(point: RetentionPoint, nowMs: number): string[] {
  const { pinned, unreadable, vms, createdAtMs } = point
  if (pinned !== undefined) return [`pinned: ${pinned}`]
  if (unreadable !== undefined) return [`can not be read: ${unreadable}`]
  if (createdAtMs === undefined) return ['when it was made can not be read']
  if (isOfFuture(point, nowMs)) return ['made in the future: a clock was set back']
  return vms.length === 0 ? ['it names no VM'] : []
}

interface Verdict {
  readonly keep: string[]
  readonly remove: string[]
}

/** What the VMs of each point say. `ordered` is newest first. */
function judgeVms(
  ordered: readonly RetentionPoint[],
  policy: RetentionPolicy,
  nowMs: number,
  calendar: (epochMs: number) => CalendarPlace,
): Map<RetentionPoint, Verdict> {
  const verdicts = new Map(ordered.map((point): [RetentionPoint, Verdict] => [point, { keep: [], remove: [] }]))
  const places = new Map<RetentionPoint, CalendarPlace>()
  const placeOf = (point: RetentionPoint): CalendarPlace => {
    const place = places.get(point) ?? calendar(point.createdAtMs ?? 0)
    places.set(point, place)
    return place
  }
  for (const { current, history } of historiesOf(ordered, nowMs)) {
    const judge = judgeOf(current, history.length, policy, nowMs)
    for (const { point, name } of history) {
      const { keep, remove } = judge(point, () => placeOf(point))
      const verdict = verdicts.get(point)
      if (keep.length > 0) verdict?.keep.push(`${name}: ${keep.join(', ')}`)
      else verdict?.remove.push(`${name}: ${remove.join(', ')}`)
    }
  }
  return verdicts
}

interface History {
  /** The VM by its newest name, which is the one that rules are matched with. */
  readonly current: HeldVm
  /** Newest first. */
  readonly history: { readonly point: RetentionPoint; readonly name: string }[]
}

function historiesOf(ordered: readonly RetentionPoint[], nowMs: number): History[] {
  const histories = new Map<string, History>()
  for (const point of ordered) {
    if (!isCounted(point, nowMs)) continue
    for (const vm of new Map(point.vms.map((held) => [held.uuid.toLowerCase(), held])).values()) {
      const uuid = vm.uuid.toLowerCase()
      const known = histories.get(uuid) ?? { current: vm, history: [] }
      histories.set(uuid, known)
      known.history.push({ point, name: vm.name })
    }
  }
  return [...histories.values()]
}

/** Whether `pattern` means the VM: by its name, or by its UUID in full. A name like db* must not hit a UUID that begins so. */
export function fitsVm({ name, uuid }: HeldVm, pattern: string): boolean {
  return matchesPattern(name, pattern) || uuid.toLowerCase() === pattern.toLowerCase()
}

type Judge = (point: RetentionPoint, place: () => CalendarPlace) => Verdict

/** Judges the points of one VM, which must come newest first. */
function judgeOf(vm: HeldVm, pointCount: number, policy: RetentionPolicy, nowMs: number): Judge {
  const fits = (patterns: readonly string[]) => patterns.some((pattern) => fitsVm(vm, pattern))
  if (policy.only !== undefined && !fits(policy.only)) return () => ({ keep: ['not asked for'], remove: [] })
  const rule = policy.rules.find(({ vms }) => fits(vms))
  if (rule === undefined) return () => ({ keep: ['no rule for it'], remove: [] })

  const buckets = periods.map((period) => new Buckets(period, rule[countOf[period]] ?? 0))
  let rank = 0
  return (point, place) => {
    rank += 1
    const keep: string[] = []
    const remove: string[] = []
    const { keepLast = 0, keepWithinMs = 0 } = rule
    if (rank === 1 && policy.allowNone !== true) keep.push(pointCount === 1 ? 'its only one' : 'its newest')
    if (rank <= keepLast) keep.push(`last ${rank} of ${keepLast}`)
    else if (keepLast > 0) remove.push(`not among the last ${keepLast}`)
    if (nowMs - (point.createdAtMs ?? 0) < keepWithinMs) keep.push(`younger than ${ageText(keepWithinMs)}`)
    else if (keepWithinMs > 0) remove.push(`older than ${ageText(keepWithinMs)}`)
    for (const bucket of buckets) bucket.judge(place, keep, remove)
    if (keep.length === 0 && remove.length === 0) remove.push('its rule keeps none')
    return { keep, remove }
  }
}

/** The newest `limit` periods of one kind that hold any point; the first point that comes is the newest of its period. */
class Buckets {
  readonly #period: Period
  readonly #limit: number
  readonly #seen = new Set<string>()

  constructor(period: Period, limit: number) {
    this.#period = period
    this.#limit = limit
  }

  judge(placeOf: () => CalendarPlace, keep: string[], remove: string[]): void {
    if (this.#limit === 0) return
    const place = placeOf()[this.#period]
    if (this.#seen.has(place)) remove.push(`not the newest of ${place}`)
    else if (this.#seen.size === this.#limit) remove.push(`${place} is beyond ${this.#period} ${this.#limit}`)
    else {
      this.#seen.add(place)
      keep.push(`the newest of ${place} (${this.#period} ${this.#seen.size} of ${this.#limit})`)
    }
  }
}
