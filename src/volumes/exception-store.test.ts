import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { exceptionStore, MiB, memoryDevice } from '../../test/sim/volume-images.ts'
import { ChunkBitmap, TooManyChunksError } from './chunk-bitmap.ts'
import { wholeDisk } from './disk-stretch.ts'
import { type CopyRun, checkStore, copyRuns, openStore } from './exception-store.ts'
import type { VolumeMap } from './volume-map.ts'

function mapOf(bytes: Buffer): VolumeMap {
  const stretch = wholeDisk({ name: 'vda', device: memoryDevice(bytes) })
  const segment = { start: 0, sizeBytes: bytes.length, stripeBytes: bytes.length, stripes: [stretch] }
  return { sizeBytes: bytes.length, segments: [segment] }
}

async function runsOf(bytes: Buffer, originBytes: number, mostBytes: number): Promise<CopyRun[]> {
  return await Array.fromAsync(copyRuns(await openStore(mapOf(bytes)), originBytes, mostBytes))
}

describe('an exception store', () => {
  it('that is full to its last area has no end', async () => {
    const olds = Array.from({ length: 256 }, (_, chunk) => chunk)
    const full = exceptionStore(258 * 4096, 4096, Buffer.alloc(MiB), olds)
    await assert.rejects(
      openStore(mapOf(full)).then((store) => checkStore(store, MiB)),
      { message: 'has no end' },
    )
    const roomy = exceptionStore(259 * 4096, 4096, Buffer.alloc(MiB), olds)
    assert.equal(await checkStore(await openStore(mapOf(roomy)), MiB), 256)
  })

  it('is copied in runs: neighbours merged, large chunks in pieces, the last one cut short', async () => {
    const small = exceptionStore(MiB, 4096, Buffer.alloc(MiB), [7, 8, 3, 10])
    const [first, second, ...rest] = await runsOf(small, 10 * 4096 + 512, 3 * 4096)
    assert.deepEqual(first?.parts, [
      { at: 0, to: 7 * 4096, length: 8192 },
      { at: 8192, to: 3 * 4096, length: 4096 },
    ])
    assert.deepEqual(second, { from: 5 * 4096, length: 512, parts: [{ at: 0, to: 10 * 4096, length: 512 }] })
    assert.deepEqual(rest, [])
    const large = exceptionStore(4 * MiB, MiB, Buffer.alloc(2 * MiB), [1])
    const pieces = await runsOf(large, 2 * MiB, MiB / 4)
    assert.deepEqual(
      pieces.map(({ from, length }) => [from, length]),
      [0, 1, 2, 3].map((at) => [2 * MiB + (at * MiB) / 4, MiB / 4]),
    )
  })

  it('is checked in memory that has a limit', () => {
    const bitmap = new ChunkBitmap(2)
    assert.equal(bitmap.add(5), true)
    assert.equal(bitmap.add(6), true)
    assert.equal(bitmap.add(5), false)
    assert.equal(bitmap.add(2 ** 40), true)
    assert.throws(() => bitmap.add(2 ** 41), TooManyChunksError)
  })
})
