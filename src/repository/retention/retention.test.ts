/**
 * Retention by examples: what each rule keeps, what nothing takes away, and what is told about it.
 */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { Failure } from '../../base/failure.ts'
import {
  planRetention,
  type RetentionDecision,
  type RetentionPoint,
  type RetentionPolicy,
  type RetentionRule,
} from './retention.ts'

const dayMs = 86_400_000
const now = Date.parse('2026-11-22T12:00:00Z')
const uuidOf = (name: string) => `uuid-of-${name}`

/** A point of some VMs; its id is its time. */
function point(time: string, vms = 'web01', more: Partial<RetentionPoint> = {}): RetentionPoint {
  const held = vms.split(' ').map((name) => ({ uuid: uuidOf(name), name }))
  return { id: time, createdAtMs: Date.parse(`${time}:00Z`), vms: held, ...more }
}

const rule = (counts: Omit<RetentionRule, 'vms'>, ...vms: string[]): RetentionRule => ({
  vms: vms.length === 0 ? ['*'] : vms,
  ...counts,
})

const plan = (points: readonly RetentionPoint[], policy: RetentionPolicy, zone = 'UTC') =>
  planRetention(points, policy, now, zone)

const kept = (decisions: readonly RetentionDecision[]) =>
  decisions.filter(({ keep }) => keep).map(({ point: { id } }) => id)

function reasonsOf(decisions: readonly RetentionDecision[], id: string): string {
  return decisions.find((one) => one.point.id === id)?.reasons.join('; ') ?? 'no such point'
}

describe('a retention rule', () => {
  it('keeps the last', () => {
    const points = ['2026-11-18T01:00', '2026-11-19T01:00', '2026-11-20T01:00'].map((time) => point(time))
    const decisions = plan(points, { rules: [rule({ keepLast: 2 })] })
    assert.deepEqual(kept(decisions), ['2026-11-19T01:00', '2026-11-20T01:00'])
    assert.equal(reasonsOf(decisions, '2026-11-20T01:00'), 'web01: its newest, last 1 of 2')
    assert.equal(reasonsOf(decisions, '2026-11-19T01:00'), 'web01: last 2 of 2')
    assert.equal(reasonsOf(decisions, '2026-11-18T01:00'), 'web01: not among the last 2')
  })

  it('keeps the newest of each of the last days that have one', () => {
    const times = ['2026-10-01T05:00', '2026-11-01T01:00', '2026-11-01T23:00', '2026-11-20T04:00', '2026-11-20T16:00']
    const decisions = plan(
      times.map((time) => point(time)),
      { rules: [rule({ keepDaily: 2 })] },
    )
    assert.deepEqual(kept(decisions), ['2026-11-01T23:00', '2026-11-20T16:00'])
    assert.match(reasonsOf(decisions, '2026-11-01T23:00'), /web01: the newest of 2026-11-01 \(daily 2 of 2\)$/)
    assert.equal(reasonsOf(decisions, '2026-11-01T01:00'), 'web01: not the newest of 2026-11-01')
    assert.equal(reasonsOf(decisions, '2026-10-01T05:00'), 'web01: 2026-10-01 is beyond daily 2')
  })

  it('keeps hours, weeks, months and years, each counted on its own', () => {
    const counts: [keyof Omit<RetentionRule, 'vms'>, string[]][] = [
      ['keepHourly', ['2026-11-20T10:59', '2026-11-20T11:30']],
      ['keepWeekly', ['2026-11-15T10:00', '2026-11-20T11:30']],
      ['keepMonthly', ['2026-10-31T10:00', '2026-11-20T11:30']],
      ['keepYearly', ['2025-12-31T10:00', '2026-11-20T11:30']],
    ]
    const times = ['2024-01-01T10:00', '2025-12-31T10:00', '2026-10-31T10:00', '2026-11-15T10:00']
    const points = [...times, '2026-11-20T10:10', '2026-11-20T10:59', '2026-11-20T11:30'].map((time) => point(time))
    for (const [count, expected] of counts) {
      assert.deepEqual(kept(plan(points, { rules: [rule({ [count]: 2 })] })), expected, count)
    }
    const all = Object.fromEntries(counts.map(([count]) => [count, 2]))
    assert.deepEqual(
      kept(plan(points, { rules: [rule(all)] })),
      [...new Set(counts.flatMap(([, expected]) => expected))].sort(),
    )
  })

  it('keeps what is younger than an age', () => {
    const points = ['2026-11-08T11:00', '2026-11-08T13:00', '2026-11-22T11:00'].map((time) => point(time))
    const decisions = plan(points, { rules: [rule({ keepWithinMs: 14 * dayMs })] })
    assert.deepEqual(kept(decisions), ['2026-11-08T13:00', '2026-11-22T11:00'])
    assert.equal(reasonsOf(decisions, '2026-11-08T13:00'), 'web01: younger than 14 days')
    assert.equal(reasonsOf(decisions, '2026-11-08T11:00'), 'web01: older than 14 days')
  })

  it('sees days in the zone it is told', () => {
    const points = ['2026-11-20T22:30', '2026-11-20T23:30'].map((time) => point(time))
    const policy = { rules: [rule({ keepDaily: 2 })] }
    assert.deepEqual(kept(plan(points, policy, 'UTC')), ['2026-11-20T23:30'])
    assert.deepEqual(kept(plan(points, policy, 'Europe/Berlin')), ['2026-11-20T22:30', '2026-11-20T23:30'])
  })

  it('keeps one of a day of 25 hours, and both of its hours 2', () => {
    const points = ['2026-10-24T22:30', '2026-10-25T00:30', '2026-10-25T01:30', '2026-10-25T22:30'].map((t) => point(t))
    const hours = plan(points, { rules: [rule({ keepHourly: 9 })] }, 'Europe/Berlin')
    assert.equal(kept(hours).length, 4)
    const days = plan(points, { rules: [rule({ keepDaily: 9 })] }, 'Europe/Berlin')
    assert.deepEqual(kept(days), ['2026-10-25T22:30'])
  })
})

describe('a retention policy', () => {
  const times = ['2026-11-18T01:00', '2026-11-19T01:00', '2026-11-20T01:00']

  it('takes for each VM the first rule that fits its name or UUID', () => {
    const points = times.flatMap((time) => [
      { ...point(time, 'db01'), id: `${time} db` },
      { ...point(time, 'web01'), id: `${time} web` },
    ])
    const rules = [rule({ keepLast: 3 }, 'UUID-of-db01'), rule({ keepLast: 1 }, 'web*', 'db*'), rule({ keepLast: 9 })]
    const names = kept(plan(points, { rules })).map((id) => id.split(' ')[1])
    assert.deepEqual(names, ['db', 'db', 'db', 'web'])
  })

  it('takes no part of a UUID for a name', () => {
    const points = times.map((time) => ({ ...point(time), vms: [{ uuid: 'db01-4711', name: 'web01' }] }))
    assert.equal(kept(plan(points, { rules: [rule({ keepLast: 1 }, 'db*')] })).length, 3)
    assert.equal(kept(plan(points, { rules: [rule({ keepLast: 1 }, 'DB01-4711')] })).length, 1)
  })

  it('counts each VM alone, and keeps a set as long as one VM in it wants it', () => {
    const points = [point('2026-11-18T01:00', 'db01 web01'), point('2026-11-19T01:00'), point('2026-11-20T01:00')]
    const decisions = plan(points, { rules: [rule({ keepLast: 1 })] })
    assert.deepEqual(kept(decisions), ['2026-11-18T01:00', '2026-11-20T01:00'])
    assert.equal(reasonsOf(decisions, '2026-11-18T01:00'), 'db01: its only one, last 1 of 1')
  })

  it('takes a VM that was renamed for the same, by its newest name', () => {
    const renamed = times.map((time, index) => ({
      ...point(time),
      vms: [{ uuid: 'one', name: index === 2 ? 'new' : 'old' }],
    }))
    const rules = [rule({ keepLast: 1 }, 'new'), rule({ keepLast: 9 }, 'old')]
    assert.deepEqual(kept(plan(renamed, { rules })), ['2026-11-20T01:00'])
  })

  it('is refused when it is empty or keeps nothing', () => {
    const refusal = (policy: RetentionPolicy): string => {
      try {
        plan([point('2026-11-20T01:00')], policy)
      } catch (error) {
        assert.ok(error instanceof Failure && error.code === 'USAGE')
        return error.message
      }
      throw new Error('it was accepted')
    }
    assert.match(refusal({ rules: [] }), /has no rule/)
    assert.match(refusal({ rules: [rule({})], allowNone: true }), /for \* says nothing about what to keep/)
    assert.match(
      refusal({ rules: [rule({ keepLast: 0, keepDaily: 0 }, 'db*')] }),
      /for db\* keeps nothing; .*--allow-none/,
    )
    assert.match(refusal({ rules: [{ vms: [], keepLast: 1 }] }), /for no VM/)
  })
})

describe('retention never removes', () => {
  const greedy: RetentionPolicy = { rules: [rule({ keepLast: 0 })], allowNone: true }
  const old = '2020-01-01T00:00'

  it('unless told to: with --allow-none and nothing to keep all of a VM goes', () => {
    const decisions = plan([point(old), point('2026-11-20T01:00')], greedy)
    assert.deepEqual(kept(decisions), [])
    assert.equal(reasonsOf(decisions, old), 'web01: its rule keeps none')
  })

  it('the newest of a VM, however old', () => {
    const policy = { rules: [rule({ keepWithinMs: dayMs })] }
    const decisions = plan([point('2019-01-01T00:00'), point(old)], policy)
    assert.equal(reasonsOf(decisions, old), 'web01: its newest')
    assert.deepEqual(kept(decisions), [old])
    assert.deepEqual(kept(plan([point(old)], { ...policy, allowNone: true })), [])
  })

  it('a VM that no rule fits, or that was not asked for', () => {
    const noRule = plan([point(old)], { rules: [rule({ keepLast: 0 }, 'db*')], allowNone: true })
    assert.equal(reasonsOf(noRule, old), 'web01: no rule for it')
    assert.equal(reasonsOf(plan([point(old)], { ...greedy, only: ['db*'] }), old), 'web01: not asked for')
    assert.deepEqual(kept(plan([point(old)], { ...greedy, only: ['db*', 'web*'] })), [])
  })

  it('what is pinned, and tells the note', () => {
    const decisions = plan([point(old, 'web01', { pinned: 'before the migration' })], greedy)
    assert.equal(reasonsOf(decisions, old), 'pinned: before the migration')
  })

  it('what can not be read, or not be placed', () => {
    const broken = point(old, 'web01', { unreadable: 'its digest does not match', vms: [] })
    assert.equal(reasonsOf(plan([broken], greedy), old), 'can not be read: its digest does not match')
    assert.equal(
      reasonsOf(plan([{ id: old, createdAtMs: undefined, vms: [{ uuid: 'a', name: 'a' }] }], greedy), old),
      'when it was made can not be read',
    )
    assert.equal(reasonsOf(plan([{ id: old, createdAtMs: 0, vms: [] }], greedy), old), 'it names no VM')
  })

  it('what was made in the future, which takes no place of others either', () => {
    const decisions = plan([point('2026-11-20T01:00'), point('2027-01-01T00:00')], {
      rules: [rule({ keepLast: 1 })],
      allowNone: true,
    })
    assert.deepEqual(kept(decisions), ['2026-11-20T01:00', '2027-01-01T00:00'])
    assert.equal(reasonsOf(decisions, '2027-01-01T00:00'), 'made in the future: a clock was set back')
  })
})
