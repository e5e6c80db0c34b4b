/**
 * A backend with a limit is a backend, and moves no more bytes than it may.
 */
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { backendContract } from '../../../test/contract/backend.contract.ts'
import { ManualClock } from '../../../test/sim/manual-clock.ts'
import { systemClock } from '../../base/clock.ts'
import { openRateLimit } from '../../base/rate-limit.ts'
import { limitedBackend } from './limited-backend.ts'
import { openLocalBackend } from './local-backend.ts'

async function openPlace() {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-limited-'))
  return { folder, [Symbol.asyncDispose]: () => rm(folder, { recursive: true, force: true }) }
}

backendContract('a limited backend', async () => {
  const { folder, [Symbol.asyncDispose]: dispose } = await openPlace()
  const limit = openRateLimit(1e9, systemClock)
  return {
    open: async () => limitedBackend(openLocalBackend(folder), { put: limit, get: limit }),
    [Symbol.asyncDispose]: dispose,
  }
})

const parts = (bytes: number) => [Buffer.alloc(bytes / 2), Buffer.alloc(bytes / 2)]

test('what is put waits for the limit, all parts of it; what is got waits for the other', async () => {
  await using place = await openPlace()
  const clock = new ManualClock()
  const [put, get] = [openRateLimit(1000, clock), openRateLimit(100, clock)]
  await using backend = limitedBackend(openLocalBackend(place.folder), { put, get })
  await clock.drive(backend.put('a', parts(1000)), { idleMs: 5 })
  assert.equal(clock.monotonicMs(), 0)
  await clock.drive(backend.put('b', parts(200)), { idleMs: 5 })
  assert.equal(clock.monotonicMs(), 950)
  await clock.drive(backend.get('b', 1000), { idleMs: 5 })
  assert.equal(clock.monotonicMs(), 950, 'the first is a burst')
  await clock.drive(backend.read('a', 0, Buffer.alloc(25)), { idleMs: 5 })
  assert.equal(clock.monotonicMs(), 950 + 2000)
  assert.equal(clock.pending, 0)
})

test('the signal ends the waiting, and afterwards nothing waits', async () => {
  await using place = await openPlace()
  const clock = new ManualClock()
  const stop = new AbortController()
  const put = openRateLimit(1000, clock)
  await using backend = limitedBackend(openLocalBackend(place.folder), { put, signal: stop.signal })
  await backend.put('a', parts(5000))
  const waiting = backend.put('b', parts(2))
  stop.abort(new Error('stopped'))
  await assert.rejects(waiting, /stopped/)
  assert.equal(await backend.put('c', parts(2)), 'stored')
  assert.equal(clock.pending, 0)
  assert.equal(clock.monotonicMs(), 0)
})
