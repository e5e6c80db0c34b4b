/**
 * The data path: holes are neither read nor written, the last chunk is as short as it is, one error or a cancellation ends
 * all lanes, and no lane is left running.
 */
import assert from 'node:assert/strict'
import { afterEach, describe, test } from 'node:test'
import fc from 'fast-check'
import { ChunkBuffers } from '../../test/sim/chunk-buffers.ts'
import { MemoryDisk } from '../../test/sim/memory-disk.ts'
import { oneByOne } from '../disk/block-device.ts'
import { type ChunkWriter, readInto, type TransferOptions, writeOut } from './transfer.ts'

const chunk = 1024 * 1024
/** Six lanes of two chunks. */
const underWay = 12

function options(changes: Partial<TransferOptions> = {}) {
  const progress = { bytes: 0 }
  const signal = new AbortController().signal
  return {
    chunkSizeBytes: chunk,
    signal,
    onProgress: (bytes: number) => {
      progress.bytes += bytes
    },
    progress,
    ...changes,
  }
}

const buffers = new ChunkBuffers(chunk)
afterEach(() => assert.equal(buffers.outstanding, 0, 'a buffer was not given back'))

const writer = (writeChunk: ChunkWriter['writeChunk']): ChunkWriter => ({ ...buffers, writeChunk })

/** A disk with one byte of data in each of these chunks. */
function disk(sizeBytes: number, chunks: readonly number[]): MemoryDisk {
  const made = new MemoryDisk(sizeBytes)
  for (const one of chunks) made.put(one * chunk, Uint8Array.of(one + 1))
  return made
}

describe('reading into the repository', () => {
  test('takes each chunk with data once, and never reads a hole', async () => {
    const source = disk(100 * chunk, [0, 7, 8, 99])
    const written: number[] = []
    const told = options()
    const readBytes = await readInto(
      source.open(),
      writer(async (number) => void written.push(number)),
      told,
    )
    assert.deepEqual(
      written.toSorted((a, b) => a - b),
      [0, 7, 8, 99],
    )
    assert.equal(source.calls.read, 4)
    assert.equal(readBytes, 4 * chunk)
    assert.equal(told.progress.bytes, 100 * chunk, 'progress counts holes as dealt with')
  })

  test('hands over a last chunk that is as short as the disk ends', async () => {
    const source = disk(2 * chunk + 512, [0, 2])
    const lengths = new Map<number, number>()
    const told = options()
    await readInto(
      source.open(),
      writer(async (number, data) => void lengths.set(number, data.length)),
      told,
    )
    assert.deepEqual([...lengths].toSorted(), [
      [0, chunk],
      [2, 512],
    ])
    assert.equal(told.progress.bytes, 2 * chunk + 512)
  })

  test('of a disk that is one hole, or nothing at all, reads nothing', async () => {
    for (const size of [0, 5 * chunk]) {
      const told = options()
      assert.equal(
        await readInto(
          new MemoryDisk(size).open(),
          writer(async () => assert.fail('written')),
          told,
        ),
        0,
      )
      assert.equal(told.progress.bytes, size)
    }
  })

  test('gives a buffer to one chunk at a time, until its writer has it', async () => {
    const source = disk(
      40 * chunk,
      Array.from({ length: 40 }, (_, index) => index),
    )
    const inUse = new Set<ArrayBufferLike>()
    let most = 0
    await readInto(
      source.open(),
      writer(async (number, data) => {
        assert.ok(!inUse.has(data.buffer), 'two writers have one buffer')
        inUse.add(data.buffer)
        most = Math.max(most, inUse.size)
        await new Promise(setImmediate)
        assert.equal(data[0], number + 1)
        inUse.delete(data.buffer)
      }),
      options(),
    )
    assert.equal(most, underWay)
  })

  test('ends at the first error, with that error, after all that was under way has ended', async () => {
    const all = Array.from({ length: 64 }, (_, index) => index)
    const source = disk(64 * chunk, all)
    let under = 0
    let begun = 0
    await assert.rejects(
      readInto(
        source.open(),
        writer(async (number) => {
          under++
          begun++
          await new Promise((resolve) => setTimeout(resolve, number === 3 ? 1 : 5))
          under--
          if (number === 3) throw new Error('the repository is full')
        }),
        options(),
      ),
      /the repository is full/,
    )
    assert.equal(under, 0)
    assert.ok(begun <= 2 * underWay, `${begun} of 64 chunks were begun`)
  })

  test('ends with the error of a read that fails', async () => {
    const source = new MemoryDisk(8 * chunk, [{ operation: 'read', offset: 5 * chunk, reason: 'bad sector' }])
    source.put(0, new Uint8Array(8 * chunk).fill(1))
    await assert.rejects(
      readInto(
        source.open(),
        writer(async () => undefined),
        options(),
      ),
      {
        code: 'DISK_READ_FAILED',
        message: /bad sector/,
      },
    )
  })

  test('stops when it is cancelled, with the reason', async () => {
    const controller = new AbortController()
    const source = disk(
      64 * chunk,
      Array.from({ length: 64 }, (_, index) => index),
    )
    let written = 0
    const write = async () => {
      if (++written === 5) controller.abort(new Error('^C'))
    }
    await assert.rejects(readInto(source.open(), writer(write), options({ signal: controller.signal })), /\^C/)
    assert.ok(written <= 2 * underWay, `${written} of 64 chunks were written`)
  })
})

describe('writing out', () => {
  test('writes what is no hole, and flushes', async () => {
    const source = disk(10 * chunk + 100, [2, 10])
    const sink = new MemoryDisk(10 * chunk + 100)
    await writeOut(source.open(), sink.open(), options())
    assert.deepEqual(sink.content(), source.content())
    assert.equal(sink.calls.write, 2)
    assert.equal(sink.calls.flush, 1)
  })

  test('does not flush what it could not write: nobody may call it complete', async () => {
    const source = disk(4 * chunk, [0, 1, 2, 3])
    const sink = new MemoryDisk(4 * chunk, [{ operation: 'write', offset: chunk }])
    await assert.rejects(writeOut(source.open(), sink.open(), options()), { code: 'DISK_WRITE_FAILED' })
    assert.equal(sink.calls.flush, 0)
  })
})

/** The same disk, with requests for several buffers. */
function inParts(disk: MemoryDisk) {
  const handle = disk.open()
  handle.readParts = (offset, targets) => oneByOne(offset, targets, (at, target) => handle.read(at, target))
  handle.writeParts = (offset, parts) => oneByOne(offset, parts, (at, data) => handle.write(at, data))
  return handle
}

test('there and back is the same, whatever the disk looks like', async () => {
  const writes = fc.array(fc.record({ at: fc.nat(20 * chunk), length: fc.integer({ min: 1, max: 3 * chunk }) }), {
    maxLength: 6,
  })
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 1, max: 20 * chunk }), writes, fc.boolean(), async (sizeBytes, all, parts) => {
      const open = (disk: MemoryDisk) => (parts ? inParts(disk) : disk.open())
      const source = new MemoryDisk(sizeBytes)
      for (const { at, length } of all) {
        const end = Math.min(at + length, sizeBytes)
        if (end > at) source.put(at, new Uint8Array(end - at).fill(at % 255 || 1))
      }
      const stored = new Map<number, Uint8Array>()
      await readInto(
        open(source),
        writer(async (number, data) => void stored.set(number, Uint8Array.from(data))),
        options(),
      )
      const back = new MemoryDisk(sizeBytes)
      for (const [number, data] of stored) back.put(number * chunk, data)
      assert.deepEqual(Buffer.compare(back.content(), source.content()), 0)
      const copy = new MemoryDisk(sizeBytes)
      await writeOut(open(source), open(copy), options())
      assert.deepEqual(Buffer.compare(copy.content(), source.content()), 0)
    }),
    { numRuns: 40 },
  )
})
