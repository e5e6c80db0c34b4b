/**
 * The four ways of waiting, and law 8: whoever stops waiting gives back what arrives late.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { ManualClock } from '../../test/sim/manual-clock.ts'
import { mapLimit, settleAll, untilAborted, withDeadline } from './async.ts'
import { type Clock, systemClock } from './clock.ts'

const tick = () => new Promise<void>((resolve) => setImmediate(resolve))

describe('settleAll', () => {
  test('waits for every one, whatever the others do, and answers in the order of the items', async () => {
    const settled = await settleAll([1, 2, 3], async (item) => {
      await tick()
      if (item === 2) throw new Error('two')
      return item * 10
    })
    assert.deepEqual(
      settled.map(({ item, outcome }) => [item, outcome.ok ? outcome.value : (outcome.error as Error).message]),
      [
        [1, 10],
        [2, 'two'],
        [3, 30],
      ],
    )
  })

  test('takes work that throws before it returns a promise as failed', async () => {
    const [only] = await settleAll([1], () => {
      throw new Error('at once')
    })
    assert.equal(only?.outcome.ok, false)
  })

  test('starts everything at once without a limit', async () => {
    let started = 0
    const all = settleAll([1, 2, 3], async () => {
      started++
      await tick()
    })
    assert.equal(started, 3)
    await all
  })
})

describe('mapLimit', () => {
  test('never has more under way than its limit, loses nothing and keeps the order', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer({ min: 1, max: 4 }), { maxLength: 30 }),
        fc.integer({ min: 1, max: 8 }),
        async (items, limit) => {
          let running = 0
          let most = 0
          const results = await mapLimit(items.entries(), limit, async ([index, ticks]) => {
            most = Math.max(most, ++running)
            for (let i = 0; i < ticks; i++) await tick()
            running--
            return index
          })
          assert.deepEqual(results, [...items.keys()])
          assert.equal(most, Math.min(limit, items.length))
        },
      ),
      { numRuns: 50 },
    )
  })

  test('throws the first error in order, after all work has ended', async () => {
    const ended: number[] = []
    const work = mapLimit([1, 2, 3, 4], 2, async (item) => {
      for (let i = 0; i < 4 - item; i++) await tick()
      ended.push(item)
      if (item > 1) throw new Error(`item ${item}`)
    })
    await assert.rejects(work, { message: 'item 2' })
    assert.deepEqual(ended.toSorted(), [1, 2, 3, 4])
  })
})

describe('withDeadline', () => {
  test('answers with what arrives in time, and leaves no timer behind', async () => {
    const clock = new ManualClock()
    assert.equal(await withDeadline(Promise.resolve(7), { clock, limitMs: 1000, what: 'work' }), 7)
    assert.equal(clock.pending, 0)
  })

  test('rejects with DEADLINE_EXCEEDED, naming what did not finish', async () => {
    const clock = new ManualClock()
    const work = withDeadline(new Promise(() => undefined), { clock, limitMs: 1000, what: 'Freeze of app' })
    await assert.rejects(clock.drive(work), {
      code: 'DEADLINE_EXCEEDED',
      message: 'Freeze of app did not finish within 1000 ms',
    })
  })

  test('passes a failure on untouched', async () => {
    const clock = new ManualClock()
    const error = new Error('no')
    await assert.rejects(withDeadline(Promise.reject(error), { clock, limitMs: 1000, what: 'work' }), error)
    assert.equal(clock.pending, 0)
  })

  test('gives back what arrives late', async () => {
    const clock = new ManualClock()
    const late: string[] = []
    const work = Promise.withResolvers<string>()
    const waited = withDeadline(work.promise, { clock, limitMs: 1000, what: 'attach' }, (value) => late.push(value))
    await assert.rejects(clock.drive(waited), { code: 'DEADLINE_EXCEEDED' })
    work.resolve('disk')
    await tick()
    assert.deepEqual(late, ['disk'])
  })

  test('gives back what arrives in the very moment of the deadline', async () => {
    let expire: () => void = () => assert.fail('no deadline was set')
    const clock: Clock = {
      ...systemClock,
      timer(_ms, callback) {
        expire = callback
        return { cancel: () => undefined }
      },
    }
    const late: string[] = []
    const work = Promise.withResolvers<string>()
    const waited = withDeadline(work.promise, { clock, limitMs: 1000, what: 'attach' }, (value) => late.push(value))
    expire()
    work.resolve('disk') // before anybody else has run
    await assert.rejects(waited, { code: 'DEADLINE_EXCEEDED' })
    assert.deepEqual(late, ['disk'])
  })

  test('a failure after the deadline disturbs nobody', async () => {
    const clock = new ManualClock()
    const work = Promise.withResolvers<string>()
    const waited = withDeadline(work.promise, { clock, limitMs: 1000, what: 'attach' }, () => assert.fail())
    await assert.rejects(clock.drive(waited), { code: 'DEADLINE_EXCEEDED' })
    work.reject(new Error('late'))
    await tick()
  })

  test('hands on each result once: to the waiting one or to onLate, never to both, never to neither', async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 0, max: 3 }), fc.integer({ min: 0, max: 3 }), async (arrives, limitMs) => {
        const clock = new ManualClock()
        const seen: string[] = []
        const work = clock.sleep(arrives).then(() => 'value')
        const waited = withDeadline(work, { clock, limitMs, what: 'work' }, () => seen.push('late'))
        await clock.drive(waited).then(
          () => seen.push('in time'),
          () => undefined,
        )
        await clock.advance(10)
        assert.equal(seen.length, 1)
      }),
    )
  })
})

describe('untilAborted', () => {
  test('answers with the work, and takes its listener away', async () => {
    const { signal } = new AbortController()
    assert.equal(await untilAborted(Promise.resolve(7), signal), 7)
  })

  test("rejects with the signal's own reason", async () => {
    const controller = new AbortController()
    const waited = untilAborted(new Promise(() => undefined), controller.signal)
    const reason = new Error('stop')
    controller.abort(reason)
    await assert.rejects(waited, reason)
  })

  test('gives back what arrives after the abort', async () => {
    const controller = new AbortController()
    const late: string[] = []
    const work = Promise.withResolvers<string>()
    const waited = untilAborted(work.promise, controller.signal, (value) => late.push(value))
    controller.abort()
    work.resolve('disk')
    await assert.rejects(waited, { name: 'AbortError' })
    assert.deepEqual(late, ['disk'])
  })

  test('a signal that was aborted before wins over work that is done, and gives it back', async () => {
    const late: string[] = []
    const waited = untilAborted(Promise.resolve('disk'), AbortSignal.abort(), (value) => late.push(value))
    await assert.rejects(waited, { name: 'AbortError' })
    assert.deepEqual(late, ['disk'])
  })
})
