/**
 * Time stands still until it is moved, and fires in order when it is.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { withDeadline } from '../../src/base/async.ts'
import { ManualClock } from './manual-clock.ts'

test('timers and sleeps fire in the order of their times, each at its own', async () => {
  const clock = new ManualClock(0)
  const seen: string[] = []
  const note = (what: string) => seen.push(`${clock.now()} ${what}`)
  clock.timer(30, () => note('timer'))
  clock.timer(20, () => note('cancelled')).cancel()
  const nap = clock.sleep(10).then(async () => {
    note('slept')
    await clock.sleep(10)
    note('slept again')
  })
  await clock.advance(25)
  await nap
  await clock.advance(25)
  assert.deepEqual(seen, ['10 slept', '20 slept again', '30 timer'])
  assert.equal(clock.monotonicMs(), 50)
  assert.equal(clock.pending, 0)
})

test('a sleep ends with the reason of its signal', async () => {
  const clock = new ManualClock()
  const controller = new AbortController()
  const nap = clock.sleep(10, controller.signal)
  controller.abort(new Error('enough'))
  await assert.rejects(nap, /enough/)
  assert.equal(clock.pending, 0)
})

test('drive moves time as far as the work needs, and says when nothing will ever happen', async () => {
  const clock = new ManualClock()
  const never = Promise.withResolvers<never>().promise
  await assert.rejects(clock.drive(withDeadline(never, { clock, limitMs: 60_000, what: 'Freeze' })), /Freeze did not/)
  assert.equal(clock.monotonicMs(), 60_000)
  await assert.rejects(clock.drive(never), /stuck/)
})
