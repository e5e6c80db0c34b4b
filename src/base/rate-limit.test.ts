/**
 * The limit on bytes per second, with a clock that stands still: never more than allowed, first come first served,
 * no timer left.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { ManualClock } from '../../test/sim/manual-clock.ts'
import { openRateLimit } from './rate-limit.ts'

/** Notes when each request went. */
function openLog(clock: ManualClock) {
  const went: { name: string; atMs: number; bytes: number }[] = []
  return {
    went,
    note: (name: string, bytes: number) => () => void went.push({ name, atMs: clock.monotonicMs(), bytes }),
  }
}

test('a burst of a quarter of a second goes at once, the rest at the rate', async () => {
  const clock = new ManualClock()
  const limit = openRateLimit(1000, clock)
  const { went, note } = openLog(clock)
  const all = Promise.all([100, 150, 100, 400].map((bytes) => limit.take(bytes).then(note('one', bytes))))
  await clock.drive(all)
  assert.deepEqual(
    went.map(({ atMs }) => atMs),
    [0, 0, 100, 350],
  )
  assert.equal(clock.pending, 0)
})

test('a request larger than the burst goes, and is paid for afterwards', async () => {
  const clock = new ManualClock()
  const limit = openRateLimit(1000, clock)
  const { went, note } = openLog(clock)
  await limit.take(5000).then(note('large', 5000))
  await clock.drive(limit.take(1).then(note('small', 1)))
  assert.deepEqual(
    went.map(({ atMs }) => atMs),
    [0, 4751],
  )
})

test('after a rest no more is saved up than a burst', async () => {
  const clock = new ManualClock()
  const limit = openRateLimit(1000, clock)
  await clock.advance(60_000)
  await limit.take(250)
  const second = limit.take(250)
  assert.equal(clock.pending, 1)
  await clock.drive(second)
  assert.equal(clock.monotonicMs(), 60_250)
})

test('who came first goes first, small ones do not overtake', async () => {
  const clock = new ManualClock()
  const limit = openRateLimit(1000, clock)
  const { went, note } = openLog(clock)
  await limit.take(250)
  const names = ['large', 'small', 'other']
  const all = names.map((name) => limit.take(name === 'large' ? 200 : 1).then(note(name, 1)))
  await clock.drive(Promise.all(all))
  assert.deepEqual(
    went.map(({ name }) => name),
    names,
  )
})

test('who is aborted leaves the queue, takes nothing, and the next moves up', async () => {
  const clock = new ManualClock()
  const limit = openRateLimit(1000, clock)
  await limit.take(250)
  const stop = new AbortController()
  const aborted = limit.take(200, stop.signal)
  const next = limit.take(50)
  stop.abort(new Error('stopped'))
  await assert.rejects(aborted, /stopped/)
  await clock.drive(next)
  assert.equal(clock.monotonicMs(), 50)
  assert.equal(clock.pending, 0)
})

test('when the last one is aborted no timer is left; an aborted signal never waits', async () => {
  const clock = new ManualClock()
  const limit = openRateLimit(1000, clock)
  await limit.take(250)
  const stop = new AbortController()
  const aborted = limit.take(200, stop.signal)
  assert.equal(clock.pending, 1)
  stop.abort(new Error('stopped'))
  await assert.rejects(aborted, /stopped/)
  assert.equal(clock.pending, 0)
  await assert.rejects(limit.take(1, stop.signal), /stopped/)
})

test('over any time no more goes than rate and burst allow, and nobody waits longer than needed', async () => {
  const request = fc.record({ bytes: fc.integer({ min: 0, max: 2000 }), afterMs: fc.integer({ min: 0, max: 400 }) })
  await fc.assert(
    fc.asyncProperty(
      fc.array(request, { minLength: 1, maxLength: 12 }),
      fc.integer({ min: 100, max: 5000 }),
      async (requests, rate) => {
        const clock = new ManualClock()
        const limit = openRateLimit(rate, clock)
        const { went, note } = openLog(clock)
        const all: Promise<void>[] = []
        for (const [index, { bytes, afterMs }] of requests.entries()) {
          await clock.advance(afterMs)
          all.push(limit.take(bytes).then(note(String(index), bytes)))
        }
        await clock.drive(Promise.all(all))
        const burst = Math.max(rate / 4, ...requests.map(({ bytes }) => bytes))
        for (const [first, { atMs: from }] of went.entries()) {
          let sum = 0
          for (const { atMs, bytes } of went.slice(first)) {
            sum += bytes
            assert.ok(sum <= burst + ((atMs - from) * rate) / 1000 + 1, `${sum} bytes from ${from} to ${atMs} ms`)
          }
        }
        const total = requests.reduce((sum, { bytes }) => sum + bytes, 0)
        const asked = requests.reduce((sum, { afterMs }) => sum + afterMs, 0)
        assert.ok(clock.monotonicMs() <= asked + (total * 1000) / rate + requests.length)
        assert.equal(clock.pending, 0)
      },
    ),
    { numRuns: 60 },
  )
})
