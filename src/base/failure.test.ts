/**
 * How a failure looks, and which of several is the one that came first.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { cleanupErrors, describeError, Failure, invariant, isCancellation, primaryError } from './failure.ts'

const disposing = (message: string): AsyncDisposable => ({
  [Symbol.asyncDispose]: () => Promise.reject(new Error(message)),
})

describe('when disposers fail as well', () => {
  const nested = async () => {
    await using _outer = disposing('outer')
    await using _inner = disposing('inner')
    throw new Error('body')
  }

  test('the primary error is what went wrong in the body', async () => {
    const error = await nested().then(assert.fail, (reason) => reason)
    assert.equal((primaryError(error) as Error).message, 'body')
  })

  test('the others are told in the order they happened', async () => {
    const error = await nested().then(assert.fail, (reason) => reason)
    assert.deepEqual(
      cleanupErrors(error).map((one) => (one as Error).message),
      ['inner', 'outer'],
    )
  })
})

describe('one line for people', () => {
  test('is the message and what is underneath, each said once', () => {
    const cause = new Error('connection refused')
    assert.equal(describeError(new Failure('X', 'no host', { cause })), 'no host: connection refused')
    assert.equal(
      describeError(new Failure('X', 'no host: connection refused', { cause })),
      'no host: connection refused',
    )
    assert.equal(describeError(new SuppressedError(new Error('later'), cause)), 'connection refused')
    assert.equal(describeError('just text'), 'just text')
  })
})

test('a cancellation is known by its name; a failure is none', () => {
  assert.equal(isCancellation(AbortSignal.abort().reason), true)
  assert.equal(isCancellation(new Failure('X', 'no')), false)
})

test('an invariant that does not hold is a bug, not a failure', () => {
  assert.throws(() => invariant(false, 'this can not be'), { name: 'Error', message: 'bug: this can not be' })
})
