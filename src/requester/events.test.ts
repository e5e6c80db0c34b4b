/**
 * Events keep still while a guest is frozen (law 4), and progress tells no lies about its rate.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { ManualClock } from '../../test/sim/manual-clock.ts'
import { EventStream } from './events.ts'
import { type Progress, ProgressMeter } from './progress.ts'

describe('the stream of events', () => {
  test('tells every listener at once, in order, with the time since the session began', async () => {
    const clock = new ManualClock()
    await clock.advance(500)
    const events = new EventStream(clock)
    const heard: string[] = []
    events.listen(({ event, atMs }) => heard.push(`${atMs} ${event}`))
    events.emit({ event: 'Identify' })
    await clock.advance(20)
    events.emit({ event: 'PrepareForBackup' })
    assert.deepEqual(heard, ['0 Identify', '20 PrepareForBackup'])
    assert.equal(events.all.length, 2)
  })

  test('is silent while a guest is frozen, and tells afterwards what happened when (law 4)', async () => {
    const clock = new ManualClock()
    const events = new EventStream(clock)
    const heard: string[] = []
    events.listen(({ event, atMs }) => heard.push(`${atMs} ${event}`))
    events.hold()
    events.emit({ event: 'Freeze' })
    events.hold()
    await clock.advance(7)
    events.emit({ event: 'Commit' })
    events.release()
    assert.deepEqual(heard, [], 'another window is still open')
    events.release()
    assert.deepEqual(heard, ['0 Freeze', '7 Commit'])
    assert.equal(events.all.length, 2)
  })

  test('tells what a listener emits itself once', () => {
    const events = new EventStream(new ManualClock())
    const heard: string[] = []
    events.listen(({ event }) => {
      heard.push(event)
      if (event === 'first') events.emit({ event: 'second' })
    })
    events.emit({ event: 'first' })
    assert.deepEqual(heard, ['first', 'second'])
  })
})

describe('progress', () => {
  function meter() {
    const clock = new ManualClock()
    const told: Progress[] = []
    return { clock, told, meter: new ProgressMeter(clock, (progress) => told.push(progress)) }
  }

  test('adds up what was begun, and tells no more often than five times a second', async () => {
    const { clock, told, meter: progress } = meter()
    progress.begin('web01 sda', 1000)
    progress.begin('web01 sdb', 500)
    for (let step = 0; step < 10; step++) {
      progress.advance(100)
      await clock.advance(50)
    }
    assert.ok(told.length <= 5, `told ${told.length} times in half a second`)
    assert.deepEqual([told.at(-1)?.totalBytes, told.at(-1)?.what], [1500, 'web01 sdb'])
  })

  test('tells the end at once', () => {
    const { told, meter: progress } = meter()
    progress.begin('web01 sda', 100)
    progress.advance(100)
    assert.equal(told.at(-1)?.doneBytes, 100)
  })

  test('has no rate and no end in sight before it knows one', () => {
    const { told, meter: progress } = meter()
    progress.begin('web01 sda', 1000)
    assert.deepEqual([told[0]?.bytesPerSecond, told[0]?.etaSeconds], [0, undefined])
  })

  test('has the rate of the last ten seconds: a great hole long ago promises nothing', async () => {
    const { clock, told, meter: progress } = meter()
    progress.begin('web01 sda', 1_000_000)
    progress.advance(800_000) // a hole
    for (let second = 0; second < 15; second++) {
      await clock.advance(1000)
      progress.advance(1000)
    }
    const last = told.at(-1)
    assert.equal(last?.bytesPerSecond, 1000)
    assert.equal(last?.etaSeconds, 185)
  })
})
