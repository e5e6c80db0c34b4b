/**
 * The windows: they close themselves, they close once, and nothing passes through them after that (laws 1, 4, 5).
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { ManualClock } from '../../test/sim/manual-clock.ts'
import { primaryError } from '../base/failure.ts'
import { failure } from '../errors.ts'
import type { Providers } from './gather.ts'
import { defaultLimits, type SessionLimits } from './vocabulary.ts'
import { type Freezable, FrozenWriters, HeldWrites, WritableCopies } from './windows.ts'

const never = new Promise<never>(() => undefined)

/** A writer of an instant that notes what happens to it. */
function sandbox(writer: Partial<Freezable> = {}, limits: SessionLimits = defaultLimits) {
  const clock = new ManualClock()
  const trace: string[] = []
  const writers: Freezable = {
    async freeze(signal) {
      trace.push('freeze')
      await writer.freeze?.(signal)
    },
    async thaw() {
      trace.push(`thaw at ${clock.monotonicMs()}`)
      await writer.thaw?.()
    },
    expire: () => writer.expire?.() ?? ['app: was still frozen'],
  }
  const quiet = {
    settled: async () => void trace.push('settled'),
    hold: (windowMs: number) => void trace.push(`hold ${windowMs}`),
    release: () => void trace.push('release'),
  }
  return { clock, trace, limits, freeze: () => FrozenWriters.open(writers, quiet, limits, clock) }
}

describe('Freeze to Thaw', () => {
  test('what must keep still is held before Freeze and released after Thaw', async () => {
    const { trace, freeze } = sandbox()
    {
      await using _frozen = await freeze()
      trace.push('body')
    }
    assert.deepEqual(trace, ['settled', 'hold 60000', 'freeze', 'body', 'thaw at 0', 'release'])
  })

  test('closes itself after 60 s though the provider hangs, and the body fails with VSS_WRITER_TIMEOUT', async () => {
    const { clock, trace, freeze } = sandbox()
    const body = async () => {
      await using frozen = await freeze()
      await frozen.within(never)
    }
    await assert.rejects(clock.drive(body()), {
      code: 'VSS_WRITER_TIMEOUT',
      message: 'freezing took too long (the window is 60000 ms): app: was still frozen',
    })
    assert.deepEqual(trace, ['settled', 'hold 60000', 'freeze', 'thaw at 60000', 'release'])
    assert.equal(clock.pending, 0)
  })

  test('closes itself at its limit even while the body does not look', async () => {
    const { clock, trace, freeze } = sandbox()
    const body = async () => {
      await using _frozen = await freeze()
      await clock.sleep(70_000)
      trace.push('body ends')
    }
    await assert.rejects(clock.drive(body()), { code: 'VSS_WRITER_TIMEOUT' })
    assert.deepEqual(trace, ['settled', 'hold 60000', 'freeze', 'thaw at 60000', 'body ends', 'release'])
  })

  test('its limit can be lowered', async () => {
    const { clock, trace, freeze } = sandbox({}, { ...defaultLimits, freezeMs: 20_000 })
    const body = async () => {
      await using frozen = await freeze()
      await frozen.within(never)
    }
    await assert.rejects(clock.drive(body()), { code: 'VSS_WRITER_TIMEOUT' })
    assert.deepEqual(trace, ['settled', 'hold 20000', 'freeze', 'thaw at 20000', 'release'])
  })

  test('a freeze that failed is thawed anyway, and its own failure is told', async () => {
    const { trace, freeze, clock } = sandbox({ freeze: () => Promise.reject(new Error('refused')) })
    await assert.rejects(freeze(), { message: 'refused' })
    assert.deepEqual(trace, ['settled', 'hold 60000', 'freeze', 'thaw at 0', 'release'])
    assert.equal(clock.pending, 0)
  })

  test('a freeze that hangs is thawed at the limit', async () => {
    const { clock, trace, freeze } = sandbox({ freeze: () => never, expire: () => ['app: did not answer Freeze'] })
    await assert.rejects(clock.drive(freeze()), { code: 'VSS_WRITER_TIMEOUT', message: /did not answer Freeze/ })
    assert.deepEqual(trace, ['settled', 'hold 60000', 'freeze', 'thaw at 60000', 'release'])
  })

  test('when thawing fails after a freeze that failed, the freeze is what is told first', async () => {
    const { trace, freeze } = sandbox({
      freeze: () => Promise.reject(new Error('not frozen')),
      thaw: () => Promise.reject(new Error('not thawed')),
    })
    const error: unknown = await freeze().catch((reason) => reason)
    assert.ok(error instanceof SuppressedError)
    assert.equal(primaryError(error), error.suppressed)
    assert.equal(error.suppressed.message, 'not frozen')
    assert.equal(trace.at(-1), 'release', 'what kept still is released even then')
  })

  test('a failing thaw fails the window, and releases', async () => {
    const { trace, freeze } = sandbox({ thaw: () => Promise.reject(new Error('not thawed')) })
    const frozen = await freeze()
    await assert.rejects(frozen[Symbol.asyncDispose](), { message: 'not thawed' })
    assert.equal(trace.at(-1), 'release')
  })

  test('thaws exactly once, though the window expired while it was thawing', async () => {
    const thawed = Promise.withResolvers<void>()
    const { clock, trace, freeze } = sandbox({ thaw: () => thawed.promise })
    const frozen = await freeze()
    const body = frozen.within(never).catch(() => undefined)
    await clock.advance(60_000)
    const disposed = frozen[Symbol.asyncDispose]()
    await clock.advance(120_000)
    thawed.resolve()
    await Promise.all([body, disposed])
    assert.equal(trace.filter((line) => line.startsWith('thaw')).length, 1)
  })

  test('the signal given to Freeze aborts with the window', async () => {
    const seen: boolean[] = []
    const { clock, freeze } = sandbox({
      freeze: async (signal) => signal.addEventListener('abort', () => seen.push(signal.aborted)),
    })
    const frozen = await freeze()
    await clock.advance(60_000)
    assert.deepEqual(seen, [true])
    assert.equal(frozen.open, false)
    await frozen[Symbol.asyncDispose]().catch(() => undefined)
  })

  test('a token kept past its block fails, and swallows the work given to it', async () => {
    const { freeze } = sandbox()
    let kept: FrozenWriters | undefined
    {
      await using frozen = await freeze()
      kept = frozen
    }
    await assert.rejects(kept.within(Promise.reject(new Error('nobody waits for this'))), { code: 'VSS_BAD_STATE' })
  })
})

describe('held writes', () => {
  test('close themselves after 10 s though the commit hangs; then come Thaw and the failure', async () => {
    const { clock, trace, limits, freeze } = sandbox()
    const body = async () => {
      await using frozen = await freeze()
      await using held = HeldWrites.open(frozen, limits, clock)
      await held.within(frozen.within(never))
    }
    await assert.rejects(clock.drive(body()), { code: 'VSS_HOLD_WRITES_TIMEOUT' })
    assert.deepEqual(trace, ['settled', 'hold 60000', 'freeze', 'thaw at 10000', 'release'])
    assert.equal(clock.pending, 0)
  })

  test('can not outlast the freeze around them', async () => {
    const { clock, freeze } = sandbox({}, { ...defaultLimits, freezeMs: 5_000 })
    const body = async () => {
      await using frozen = await freeze()
      await using held = HeldWrites.open(frozen, defaultLimits, clock)
      await held.within(frozen.within(never))
    }
    await assert.rejects(clock.drive(body()), { code: 'VSS_WRITER_TIMEOUT' })
    assert.equal(clock.monotonicMs(), 5_000)
  })

  test('a commit that took too long fails though it did arrive', async () => {
    const { clock, limits, freeze } = sandbox()
    const body = async () => {
      await using frozen = await freeze()
      await using _held = HeldWrites.open(frozen, limits, clock)
      await clock.sleep(11_000)
    }
    await assert.rejects(clock.drive(body()), { code: 'VSS_HOLD_WRITES_TIMEOUT' })
  })

  test('are not to be had from writers that were thawed', async () => {
    const { clock, limits, freeze } = sandbox()
    const frozen = await freeze()
    await frozen[Symbol.asyncDispose]()
    assert.throws(() => HeldWrites.open(frozen, limits, clock), { code: 'VSS_BAD_STATE' })
  })

  test('are not to be had from a window that has expired', async () => {
    const { clock, limits, freeze } = sandbox()
    const frozen = await freeze()
    await clock.advance(60_000)
    assert.throws(() => HeldWrites.open(frozen, limits, clock), { code: 'VSS_WRITER_TIMEOUT' })
    await frozen[Symbol.asyncDispose]().catch(() => undefined)
  })

  test('a token kept past its block fails', async () => {
    const { clock, limits, freeze } = sandbox()
    await using frozen = await freeze()
    const held = HeldWrites.open(frozen, limits, clock)
    await held[Symbol.asyncDispose]()
    assert.equal(held.open, false)
    await assert.rejects(held.within(Promise.resolve()), { code: 'VSS_BAD_STATE' })
  })
})

describe('writable copies', () => {
  test('are writable inside their block and read-only after it', async () => {
    const trace: string[] = []
    const writable = new WritableCopies([], async () => void trace.push(`closing, open: ${writable.open}`))
    assert.equal(writable.open, true)
    await writable[Symbol.asyncDispose]()
    assert.deepEqual(trace, ['closing, open: false'])
  })
})

/** Never called: the compiler is the test. Without the errors that are expected here, tsc fails. */
export async function commitCanNotBeReachedWithoutHeldWrites(providers: Providers, frozen: FrozenWriters) {
  // @ts-expect-error no token at all
  await providers.commitSnapshots([])
  // @ts-expect-error frozen writers are not held writes
  await providers.commitSnapshots([], frozen)
  // @ts-expect-error a look-alike is not a token: it lacks the private field
  await providers.commitSnapshots([], { open: true, signal: frozen.signal, within: async (work) => work })
  // @ts-expect-error only `open` makes one
  new HeldWrites()
  // @ts-expect-error only `open` makes one
  new FrozenWriters()
  // @ts-expect-error without frozen writers there are no held writes
  HeldWrites.open(undefined, defaultLimits, new ManualClock())
  throw failure('VSS_BAD_STATE', {})
}
