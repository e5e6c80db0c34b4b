import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ManualClock } from '../../test/sim/manual-clock.ts'
import type { BlockSource } from '../disk/block-device.ts'
import { type ErrorCode, failure } from '../errors.ts'
import { type OpenDisks, PatientDisks } from './patient-disks.ts'

/** A repository that is away, damaged or well, as told. */
class World {
  trouble: ErrorCode | undefined
  away = false
  opened = 0
  closed = 0

  readonly open = async (): Promise<OpenDisks> => {
    if (this.away) throw failure('REPOSITORY_NOT_FOUND', { path: '/backup' })
    this.opened += 1
    return {
      sources: new Map([['sda', this.#disk()]]),
      [Symbol.asyncDispose]: async () => {
        this.closed += 1
      },
    }
  }

  #disk(): BlockSource {
    const check = (offset: number) => {
      if (this.trouble !== undefined) throw failure(this.trouble, { stream: 's', point: 'p', offset, reason: 'so' })
    }
    return {
      sizeBytes: 4096,
      read: async (offset, target) => {
        check(offset)
        target.fill(7)
      },
      extents: async function* (offset, length) {
        check(offset)
        yield { offset, length: length / 2, data: true }
        yield { offset: offset + length / 2, length: length / 2, data: false }
      },
      [Symbol.asyncDispose]: async () => undefined,
    }
  }
}

async function begin(patienceMs?: number) {
  const world = new World()
  const end = new AbortController()
  const clock = new ManualClock()
  const told: unknown[] = []
  const disks = new PatientDisks(await world.open(), {
    ...{ open: world.open, signal: end.signal, clock },
    ...(patienceMs === undefined ? {} : { patienceMs }),
    onAway: (error) => told.push(error),
  })
  const read = async () => {
    const target = new Uint8Array(16)
    await disks.source('sda').read(0, target)
    return target[0]
  }
  return { world, end, clock, disks, read, told }
}

/** Lets time pass until the work has settled. */
async function passing<T>(clock: ManualClock, work: Promise<T>): Promise<T> {
  let settled = false
  const done = work.finally(() => {
    settled = true
  })
  done.catch(() => undefined)
  while (!settled) {
    await new Promise((resolve) => setImmediate(resolve))
    await clock.advance(5000)
  }
  return done
}

test('a repository that is away looks damaged: the read waits, and is answered when it is back', async () => {
  const { world, clock, read } = await begin()
  world.away = true
  world.trouble = 'REPOSITORY_CHUNK_CORRUPT'
  let answered = false
  const reading = read().finally(() => {
    answered = true
  })
  for (let i = 0; i < 50; i++) {
    await new Promise((resolve) => setImmediate(resolve))
    await clock.advance(5000)
  }
  assert.equal(answered, false)
  world.away = false
  world.trouble = undefined
  assert.equal(await passing(clock, reading), 7)
})

test('damage is damage only when a repository opened anew says so too', async () => {
  const { world, clock, read } = await begin()
  world.trouble = 'REPOSITORY_CHUNK_CORRUPT'
  await assert.rejects(passing(clock, read()), { code: 'REPOSITORY_CHUNK_CORRUPT' })
  assert.deepEqual([world.opened, world.closed], [2, 1])
  await assert.rejects(passing(clock, read()), { code: 'REPOSITORY_CHUNK_CORRUPT' })
  assert.equal(world.opened, 2, 'known by now')
  world.trouble = undefined
  assert.equal(await read(), 7, 'and repaired it is read')
})

test('a repository that opens and can never be read there is no reason to wait for ever', async () => {
  const { world, clock, read } = await begin()
  world.trouble = 'REPOSITORY_IO'
  await assert.rejects(passing(clock, read()), { code: 'REPOSITORY_IO' })
})

test('patience may have an end, for each read its own: it fails with why the repository can not be opened', async () => {
  const { world, clock, read, told } = await begin(60_000)
  world.away = true
  world.trouble = 'REPOSITORY_CHUNK_CORRUPT'
  const first = read()
  first.catch(() => undefined)
  await clock.advance(40_000)
  const second = read()
  second.catch(() => undefined)
  await clock.advance(30_000)
  await assert.rejects(first, { code: 'REPOSITORY_NOT_FOUND' })
  world.away = false
  world.trouble = undefined
  assert.equal(await passing(clock, second), 7)
  assert.equal(told.length, 1, 'told once for the time that it was away')
})

test('what is damaged is not waited for, whatever the patience', async () => {
  const { world, clock, read, told } = await begin(3_600_000)
  world.trouble = 'REPOSITORY_CHUNK_CORRUPT'
  await assert.rejects(read(), { code: 'REPOSITORY_CHUNK_CORRUPT' })
  assert.deepEqual([clock.monotonicMs(), told], [0, []])
})

test('extents are as patient, and gapless', async () => {
  const { world, clock, disks } = await begin()
  world.trouble = 'REPOSITORY_IO'
  const listed = (async () => {
    const found = []
    for await (const extent of disks.source('sda').extents(0, 4096)) found.push(extent)
    return found
  })()
  await new Promise((resolve) => setImmediate(resolve))
  world.trouble = undefined
  const extents = await passing(clock, listed)
  let at = 0
  for (const { offset, length } of extents) {
    assert.equal(offset, at)
    at += length
  }
  assert.equal(at, 4096)
})

test('the end of the server ends the waiting', async () => {
  const { world, end, clock, read } = await begin()
  world.away = true
  world.trouble = 'REPOSITORY_IO'
  const reading = read()
  await new Promise((resolve) => setImmediate(resolve))
  end.abort(new DOMException('over', 'AbortError'))
  await assert.rejects(passing(clock, reading), { name: 'AbortError' })
})
