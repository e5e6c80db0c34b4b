/**
 * Cleanup: laws 1 to 3.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { ManualClock } from '../../test/sim/manual-clock.ts'
import { Cleanup, runUndo, type UndoHandlers, type UndoLog, type UndoRecord } from './cleanup.ts'
import { cleanupErrors, primaryError } from './failure.ts'

const never = new Promise<never>(() => undefined)

function sandbox(handlers: UndoHandlers = {}) {
  const clock = new ManualClock()
  const trace: string[] = []
  const log: UndoLog = {
    async add(record, supersedes) {
      trace.push(`logged ${record.undo}${supersedes === undefined ? '' : ` for ${supersedes}`}`)
      return trace.length
    },
    done: (id) => void trace.push(`done ${id}`),
  }
  const noting = async (record: UndoRecord) => void trace.push(`undone ${record.undo}`)
  const all: UndoHandlers = { a: noting, b: noting, c: noting, ...handlers }
  return { clock, trace, log, cleanup: new Cleanup(log, all, { clock, stepDeadlineMs: 1000 }) }
}

describe('Cleanup', () => {
  test('undoes the last deed first', async () => {
    const { cleanup, trace } = sandbox()
    for (const undo of ['a', 'b', 'c']) await cleanup.defer({ undo })
    trace.length = 0
    await cleanup[Symbol.asyncDispose]()
    assert.deepEqual(
      trace.filter((line) => line.startsWith('undone')),
      ['undone c', 'undone b', 'undone a'],
    )
  })

  test('a step is on the log before the deed may be done', async () => {
    const written = Promise.withResolvers<number>()
    const cleanup = new Cleanup({ add: () => written.promise, done: () => undefined }, {})
    let mayDo = false
    const deferred = cleanup.defer({ undo: 'a' }).then(() => {
      mayDo = true
    })
    await new Promise(setImmediate)
    assert.equal(mayDo, false)
    written.resolve(1)
    await deferred
    assert.equal(mayDo, true)
  })

  test('a step that could not be logged is not registered, and its deed not done', async () => {
    const undone: string[] = []
    const refusing: UndoLog = { add: () => Promise.reject(new Error('disk full')), done: () => undefined }
    const cleanup = new Cleanup(refusing, { a: async () => void undone.push('a') })
    await assert.rejects(cleanup.defer({ undo: 'a' }), { message: 'disk full' })
    await cleanup[Symbol.asyncDispose]()
    assert.deepEqual(undone, [])
  })

  test('a step is told as done to the log only after its handler has succeeded', async () => {
    const { cleanup, trace } = sandbox({ b: () => Promise.reject(new Error('no')) })
    await cleanup.defer({ undo: 'a' })
    await cleanup.defer({ undo: 'b' })
    await assert.rejects(cleanup[Symbol.asyncDispose]())
    assert.deepEqual(trace, ['logged a', 'logged b', 'undone a', 'done 1'])
  })

  test('the handler gets the record as it was registered, with all it needs in another process', async () => {
    const seen: UndoRecord[] = []
    const { cleanup } = sandbox({ thaw: async (record) => void seen.push(record) })
    await cleanup.defer({ undo: 'thaw', vm: 'web01', former: { power: 'paused' } })
    await cleanup[Symbol.asyncDispose]()
    assert.deepEqual(seen, [{ undo: 'thaw', vm: 'web01', former: { power: 'paused' } }])
  })

  test('one failing step does not stop the next; there is one error, at the end, that names each', async () => {
    const { cleanup, trace } = sandbox({
      b: () => Promise.reject(new Error('agent silent')),
      c: () => {
        throw new Error('thrown at once')
      },
    })
    for (const undo of ['a', 'b', 'c', 'unknown']) await cleanup.defer({ undo })
    await assert.rejects(cleanup[Symbol.asyncDispose](), (error: { code?: string; context?: { steps?: unknown } }) => {
      assert.equal(error.code, 'CLEANUP_INCOMPLETE')
      assert.deepEqual(error.context?.steps, [
        'unknown: no handler for the undo step unknown',
        'c: thrown at once',
        'b: agent silent',
      ])
      return true
    })
    assert.ok(trace.includes('undone a'))
  })

  test('a step that hangs is given up at its own deadline, and the next one runs', async () => {
    const { cleanup, clock, trace } = sandbox({ b: () => never, c: () => never })
    for (const undo of ['a', 'b', 'c']) await cleanup.defer({ undo })
    await assert.rejects(clock.drive(cleanup[Symbol.asyncDispose]()), { code: 'CLEANUP_INCOMPLETE' })
    assert.equal(clock.monotonicMs(), 2000)
    assert.ok(trace.includes('undone a'))
  })

  test('a step that failed stays registered, so that disposing again tries again', async () => {
    let broken = true
    const { cleanup } = sandbox({
      b: async () => {
        if (broken) throw new Error('not now')
      },
    })
    await cleanup.defer({ undo: 'b' })
    await assert.rejects(cleanup[Symbol.asyncDispose](), { code: 'CLEANUP_INCOMPLETE' })
    broken = false
    await cleanup[Symbol.asyncDispose]()
  })

  test('run undoes one step now, and it does not run again', async () => {
    const { cleanup, trace } = sandbox()
    const step = await cleanup.defer({ undo: 'a' })
    await cleanup.run(step)
    await cleanup[Symbol.asyncDispose]()
    assert.deepEqual(trace, ['logged a', 'undone a', 'done 1'])
  })

  test('run rejects when its step fails, and keeps it', async () => {
    let broken = true
    const { cleanup, trace } = sandbox({
      b: async () => {
        if (broken) throw new Error('not now')
        trace.push('undone b')
      },
    })
    const step = await cleanup.defer({ undo: 'b' })
    await assert.rejects(cleanup.run(step), { message: 'not now' })
    broken = false
    await cleanup[Symbol.asyncDispose]()
    assert.ok(trace.includes('undone b'))
  })

  test('forget drops a step whose deed stands, and doing it twice does no harm', async () => {
    const { cleanup, trace } = sandbox()
    const step = await cleanup.defer({ undo: 'a' })
    cleanup.forget(step)
    cleanup.forget(step)
    await cleanup[Symbol.asyncDispose]()
    assert.deepEqual(trace, ['logged a', 'done 1'])
  })

  test('supersede replaces a step in one write to the log', async () => {
    const { cleanup, trace } = sandbox()
    const first = await cleanup.defer({ undo: 'a' })
    await cleanup.supersede(first, { undo: 'b' })
    assert.deepEqual(trace, ['logged a', 'logged b for 1'])
    await cleanup[Symbol.asyncDispose]()
    assert.deepEqual(
      trace.filter((line) => line.startsWith('undone')),
      ['undone b'],
    )
  })

  test("the body's failure is the primary one, that of the cleanup is what is left", async () => {
    const body = async () => {
      const { cleanup } = sandbox({ b: () => Promise.reject(new Error('agent silent')) })
      await using _undo = cleanup
      await cleanup.defer({ undo: 'b' })
      throw new Error('the disk is full')
    }
    const error = await body().then(assert.fail, (reason) => reason)
    assert.equal((primaryError(error) as Error).message, 'the disk is full')
    assert.deepEqual(
      cleanupErrors(error).map((one) => (one as Error).message),
      ['done, but this is left: b: agent silent'],
    )
  })
})

describe('an undo record', () => {
  test('is run by the same handler in another process, and any number of times', async () => {
    let frozen = true
    const handlers: UndoHandlers = {
      thaw: async () => {
        frozen = false
      },
    }
    const record = JSON.parse(JSON.stringify({ undo: 'thaw', vm: 'web01' })) as UndoRecord
    await runUndo(record, handlers, new ManualClock(), 1000)
    await runUndo(record, handlers, new ManualClock(), 1000)
    assert.equal(frozen, false)
  })
})
