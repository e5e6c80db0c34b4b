/**
 * Retention by its laws, over any points and policies: idempotent, monotone, blind to order, fair to the newest.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { planRetention, type RetentionPoint, type RetentionPolicy, type RetentionRule } from './retention.ts'
import { openCalendar, type Period, periods } from './retention-calendar.ts'

const hourMs = 3_600_000
const now = Date.parse('2026-11-22T12:00:00Z')
const zones = ['UTC', 'Europe/Berlin', 'America/St_Johns', 'Australia/Lord_Howe', 'Pacific/Kiritimati']
const counts = ['keepLast', 'keepHourly', 'keepDaily', 'keepWeekly', 'keepMonthly', 'keepYearly'] as const

/** Dense near now, sparse before, some in the future; half hours, so that some fall on one instant. */
const timeMs = fc.oneof(
  fc.integer({ min: -4, max: 400 }).map((halfHours) => now - halfHours * (hourMs / 2)),
  fc.integer({ min: 0, max: 3 * 365 }).map((days) => now - days * 24 * hourMs - hourMs),
)
const vm = fc.record({ uuid: fc.constantFrom('1', '2', '3'), name: fc.constantFrom('web', 'db', 'dc') })
const pointAt = fc.record(
  {
    createdAtMs: fc.option(timeMs, { nil: undefined, freq: 20 }),
    vms: fc.array(vm, { maxLength: 3 }),
    pinned: fc.constant('note'),
    unreadable: fc.constant('damaged'),
  },
  { requiredKeys: ['createdAtMs', 'vms'] },
)
const rarely = (point: Omit<RetentionPoint, 'id'>, index: number): RetentionPoint => {
  const { pinned, unreadable, ...rest } = point
  return {
    ...rest,
    id: `point ${index}`,
    ...(pinned !== undefined && index % 5 === 0 ? { pinned } : {}),
    ...(unreadable !== undefined && index % 7 === 0 ? { unreadable } : {}),
  }
}
const manyPoints = fc.array(pointAt, { maxLength: 60 }).map((points) => points.map(rarely))

const someCounts = fc.record(
  {
    ...Object.fromEntries(counts.map((count) => [count, fc.nat(4)])),
    keepWithinMs: fc.nat(100).map((hours) => hours * hourMs),
  },
  { requiredKeys: [] },
)
const someRule = fc
  .tuple(fc.constantFrom(['*'], ['d*'], ['web', '3'], ['db']), someCounts)
  .map(([vms, own]): RetentionRule => ({ keepLast: 0, ...own, vms }))
const keepsSome = (rule: RetentionRule) => Object.entries(rule).some(([key, value]) => key !== 'vms' && value !== 0)
const somePolicy = fc.record({
  rules: fc.array(someRule.filter(keepsSome), { minLength: 1, maxLength: 3 }),
  allowNone: fc.boolean(),
})
const zone = fc.constantFrom(...zones)

const keptIds = (points: readonly RetentionPoint[], policy: RetentionPolicy, timeZone: string) =>
  planRetention(points, policy, now, timeZone)
    .filter(({ keep }) => keep)
    .map(({ point }) => point.id)

test('planning what was kept again removes nothing', () => {
  fc.assert(
    fc.property(manyPoints, somePolicy, zone, (points, policy, timeZone) => {
      const first = keptIds(points, policy, timeZone)
      const rest = points.filter(({ id }) => first.includes(id))
      assert.deepEqual(keptIds(rest, policy, timeZone), first)
    }),
    { numRuns: 400 },
  )
})

test('a larger policy keeps no less', () => {
  const growth = fc.record({
    ...Object.fromEntries(counts.map((count) => [count, fc.nat(2)])),
    keepWithinMs: fc.nat(1e8),
  })
  fc.assert(
    fc.property(manyPoints, somePolicy, growth, zone, (points, policy, more, timeZone) => {
      const grown = policy.rules.map((rule): RetentionRule => {
        const larger = Object.entries(more).map(([key, by]) => [key, Number(rule[key as keyof typeof rule] ?? 0) + by])
        return { ...Object.fromEntries(larger), vms: rule.vms }
      })
      const large = new Set(keptIds(points, { ...policy, rules: grown }, timeZone))
      for (const id of keptIds(points, policy, timeZone)) assert.ok(large.has(id), id)
    }),
    { numRuns: 400 },
  )
})

test('the order in which points come does not matter', () => {
  const shuffled = manyPoints.chain((points) =>
    fc.tuple(fc.constant(points), fc.shuffledSubarray(points, { minLength: points.length, maxLength: points.length })),
  )
  fc.assert(
    fc.property(shuffled, somePolicy, zone, ([points, others], policy, timeZone) => {
      assert.deepEqual(planRetention(others, policy, now, timeZone), planRetention(points, policy, now, timeZone))
    }),
    { numRuns: 200 },
  )
})

test('every point has a decision and a reason, and what nothing may take away stays', () => {
  fc.assert(
    fc.property(manyPoints, somePolicy, zone, (points, policy, timeZone) => {
      const decisions = planRetention(points, policy, now, timeZone)
      assert.deepEqual(decisions.map(({ point }) => point.id).sort(), points.map(({ id }) => id).sort())
      for (const { point, keep, reasons } of decisions) {
        assert.ok(reasons.length > 0 && reasons.every((reason) => reason !== ''))
        const safe = point.pinned ?? point.unreadable ?? point.createdAtMs === undefined
        if (safe || point.vms.length === 0 || (point.createdAtMs ?? 0) > now) assert.ok(keep)
      }
    }),
    { numRuns: 200 },
  )
})

test('the newest point of every VM stays unless that is allowed', () => {
  fc.assert(
    fc.property(manyPoints, somePolicy, zone, (points, policy, timeZone) => {
      const kept = keptIds(points, { ...policy, allowNone: false }, timeZone)
      for (const uuid of ['1', '2', '3']) {
        const own = points.filter((point) => point.unreadable === undefined && (point.createdAtMs ?? now + 1) <= now)
        const times = own.filter(({ vms }) => vms.some((held) => held.uuid === uuid))
        const newest = Math.max(...times.map(({ createdAtMs = 0 }) => createdAtMs))
        if (times.length > 0)
          assert.ok(times.some(({ id, createdAtMs }) => createdAtMs === newest && kept.includes(id)))
      }
    }),
    { numRuns: 200 },
  )
})

test('of each period it is the newest that stands for it, and of the newest periods as many as asked for', () => {
  const one = fc.constantFrom<Period>(...periods)
  const times = fc.array(timeMs, { minLength: 1, maxLength: 60 })
  fc.assert(
    fc.property(times, one, fc.integer({ min: 1, max: 5 }), zone, (all, period, limit, timeZone) => {
      const past = all.filter((time) => time <= now)
      const points = past.map((createdAtMs, index) => ({
        id: `${index}`,
        createdAtMs,
        vms: [{ uuid: '1', name: 'web' }],
      }))
      const name = `keep${period[0]?.toUpperCase()}${period.slice(1)}`
      const decisions = planRetention(points, { rules: [{ vms: ['*'], [name]: limit }] }, now, timeZone)
      const kept = decisions.filter(({ keep }) => keep).map(({ point }) => point.createdAtMs ?? 0)
      const calendar = openCalendar(timeZone)
      const groups = Map.groupBy(past, (time) => calendar(time)[period])
      const newest = [...groups.values()].map((group) => Math.max(...group)).sort((a, b) => b - a)
      assert.deepEqual(kept.toReversed(), newest.slice(0, limit))
    }),
    { numRuns: 400 },
  )
})
