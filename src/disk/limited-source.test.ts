/**
 * Disks behind a limit: every byte the same, only later, and holes for nothing.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ManualClock } from '../../test/sim/manual-clock.ts'
import { openRateLimit } from '../base/rate-limit.ts'
import type { BlockSink, BlockSource, Extent } from './block-device.ts'
import { limited, limitedSink } from './limited-source.ts'

function openDisk() {
  const calls: string[] = []
  const extents: Extent[] = [{ offset: 0, length: 4096, data: false }]
  const disk: BlockSource & BlockSink = {
    sizeBytes: 4096,
    read: async (offset, target) => void calls.push(`read ${offset}+${target.length}`),
    write: async (offset, data) => void calls.push(`write ${offset}+${data.length}`),
    flush: async () => void calls.push('flush'),
    async *extents() {
      yield* extents
    },
    [Symbol.asyncDispose]: async () => void calls.push('disposed'),
  }
  return { disk, calls, extents }
}

test('each read waits for the limit; extents do not', async () => {
  const clock = new ManualClock()
  const { disk, calls, extents } = openDisk()
  {
    await using source = limited(disk, openRateLimit(1000, clock))
    assert.equal(source.sizeBytes, 4096)
    assert.deepEqual(await Array.fromAsync(source.extents(0, 4096)), extents)
    await source.read(0, Buffer.alloc(250))
    const second = source.read(250, Buffer.alloc(100))
    assert.deepEqual(calls, ['read 0+250'])
    await clock.drive(second)
    assert.equal(clock.monotonicMs(), 100)
  }
  assert.deepEqual(calls, ['read 0+250', 'read 250+100', 'disposed'])
})

test('each write waits for the limit; the signal ends the waiting before anything is written', async () => {
  const clock = new ManualClock()
  const { disk, calls } = openDisk()
  const stop = new AbortController()
  {
    await using sink = limitedSink(disk, openRateLimit(1000, clock), stop.signal)
    await sink.write(0, Buffer.alloc(250))
    const waiting = sink.write(250, Buffer.alloc(100))
    stop.abort(new Error('stopped'))
    await assert.rejects(waiting, /stopped/)
    await sink.flush()
  }
  assert.deepEqual(calls, ['write 0+250', 'flush', 'disposed'])
  assert.equal(clock.pending, 0)
})

test('several buffers in one request wait for all their bytes; who has no such request gets none', async () => {
  const clock = new ManualClock()
  const { disk, calls } = openDisk()
  assert.equal(limited(disk, openRateLimit(1000, clock)).readParts, undefined)
  assert.equal(limitedSink(disk, openRateLimit(1000, clock)).writeParts, undefined)
  const inParts: BlockSource & BlockSink = {
    ...disk,
    readParts: async (offset, targets) => void calls.push(`read ${offset} into ${targets.length}`),
    writeParts: async (offset, parts) => void calls.push(`write ${offset} from ${parts.length}`),
  }
  const buffers = [Buffer.alloc(250), Buffer.alloc(100)]
  const source = limited(inParts, openRateLimit(1000, clock))
  const sink = limitedSink(inParts, openRateLimit(1000, clock))
  await source.readParts?.(0, buffers) // the first is a burst
  await sink.writeParts?.(0, buffers)
  const second = Promise.all([source.readParts?.(350, buffers), sink.writeParts?.(350, buffers)])
  assert.deepEqual(calls, ['read 0 into 2', 'write 0 from 2'])
  await clock.drive(second)
  assert.ok(clock.monotonicMs() > 300, `${clock.monotonicMs()} ms`)
  assert.deepEqual(calls.slice(2), ['read 350 into 2', 'write 350 from 2'])
})
