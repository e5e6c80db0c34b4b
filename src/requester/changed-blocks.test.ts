/**
 * The data path of an incremental backup: what a range touches is read in whole blocks, each once, and nothing else; what
 * the guest has discarded is not read; what the repository can not use any more is read whole; a look at some chunks finds
 * tracking that has missed changes.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { ChunkBuffers } from '../../test/sim/chunk-buffers.ts'
import { MemoryDisk } from '../../test/sim/memory-disk.ts'
import type { Range } from '../disk/extents.ts'
import type { StreamWriter } from '../repository/repository.ts'
import { type ChangedPiece, changedPieces, readChanges, spotCheck } from './changed-blocks.ts'

const block = 64 * 1024
const chunk = 8 * block
const sizes = { chunkSizeBytes: chunk, blockSizeBytes: block }

async function* some<T>(items: readonly T[]): AsyncGenerator<T> {
  yield* items
}

const changed = (offset: number, length: number): Range => ({ offset, length })

async function piecesOf(disk: MemoryDisk, ranges: readonly Range[]): Promise<ChangedPiece[]> {
  const pieces: ChangedPiece[] = []
  for await (const piece of changedPieces(disk.open(), some(ranges), sizes)) pieces.push(piece)
  return pieces
}

describe('the changed blocks of a disk', () => {
  test('are those a range touches, by chunk, each once', async () => {
    const disk = new MemoryDisk(3 * chunk)
    const ranges = [changed(1, 1), changed(block - 1, 2), changed(chunk - 1, 2), changed(2 * chunk + block, block)]
    assert.deepEqual(await piecesOf(disk, ranges), [
      { chunk: 0, data: [0, 1, 7], holes: [] },
      { chunk: 1, data: [0], holes: [] },
      { chunk: 2, data: [1], holes: [] },
    ])
  })

  test('end with the disk, whatever the range says', async () => {
    const disk = new MemoryDisk(chunk + 1000)
    assert.deepEqual(await piecesOf(disk, [changed(chunk, 5 * block)]), [{ chunk: 1, data: [0], holes: [] }])
  })

  test('are holes where a long range was discarded: one byte of data makes a block data', async () => {
    const disk = new MemoryDisk(2 * chunk)
    disk.put(3 * block + 17, Uint8Array.of(1))
    assert.deepEqual(await piecesOf(disk, [changed(0, 2 * chunk)]), [
      { chunk: 0, data: [3], holes: [0, 1, 2, 4, 5, 6, 7] },
      { chunk: 1, data: [], holes: [0, 1, 2, 3, 4, 5, 6, 7] },
    ])
  })
})

/** A stream that starts as `base` and becomes what is written to it. */
function modelStream(base: Buffer, unusable: readonly number[] = []) {
  const content = Buffer.from(base)
  const whole: number[] = []
  const stream: Omit<StreamWriter, 'finish'> = {
    async writeChunk(number, data) {
      whole.push(number)
      content.set(data, number * chunk)
    },
    async writeBlocks(number, blocks, data) {
      let at = 0
      for (const one of blocks) {
        const offset = number * chunk + one * block
        const length = Math.min(block, content.length - offset)
        content.set(data.subarray(at, at + length), offset)
        at += length
      }
      assert.equal(at, data.length)
    },
    async zeroBlocks(number, blocks) {
      for (const one of blocks) content.fill(0, number * chunk + one * block, number * chunk + (one + 1) * block)
    },
    lendBuffer: new ChunkBuffers(chunk).lendBuffer,
    unusableChunks: () => some(unusable),
    startEmpty: () => undefined,
    [Symbol.asyncDispose]: async () => undefined,
  }
  return { content, whole, stream: stream as StreamWriter }
}

const options = { ...sizes, signal: new AbortController().signal, onProgress: () => undefined }

describe('reading what has changed', () => {
  test('makes the disk from the base, and reads little more than the changes', async () => {
    const position = fc.integer({ min: 0, max: 5 * chunk - 1 })
    const writes = fc.array(
      fc.tuple(position, fc.integer({ min: 1, max: 2 * chunk }), fc.integer({ min: 0, max: 255 })),
      {
        maxLength: 12,
      },
    )
    await fc.assert(
      fc.asyncProperty(writes, fc.integer({ min: 4 * chunk + 1, max: 5 * chunk }), async (list, sizeBytes) => {
        const base = Buffer.alloc(sizeBytes, 7)
        const now = Buffer.from(base)
        const dirty = new Set<number>()
        for (const [offset, length, value] of list) {
          const end = Math.min(offset + length, sizeBytes)
          if (offset >= end) continue
          now.fill(value, offset, end)
          for (let one = Math.floor(offset / block); one * block < end; one += 1) dirty.add(one)
        }
        const disk = new MemoryDisk(sizeBytes)
        disk.put(0, now)
        const ranges = [...dirty].sort((a, b) => a - b).map((one) => changed(one * block, block))
        const { content, stream } = modelStream(base)
        const readBytes = await readChanges(disk.open(), some(ranges), stream, options)
        assert.ok(content.equals(now))
        assert.ok(readBytes <= dirty.size * block)
      }),
      { numRuns: 60 },
    )
  })

  test('reads chunks whole that the repository can not use any more, changed or not', async () => {
    const now = Buffer.alloc(4 * chunk, 3)
    const disk = new MemoryDisk(now.length)
    disk.put(0, now)
    const base = Buffer.from(now)
    base.fill(0, chunk, 2 * chunk) // lost there
    const { content, whole, stream } = modelStream(base, [1, 3])
    const readBytes = await readChanges(disk.open(), some([changed(3 * chunk, block)]), stream, options)
    assert.equal(readBytes, 2 * chunk, 'each once')
    assert.ok(content.equals(now))
    assert.deepEqual(whole.toSorted(), [1, 3])
  })

  test('of a disk without changes reads nothing', async () => {
    const disk = new MemoryDisk(100 * chunk)
    const { stream } = modelStream(Buffer.alloc(0))
    assert.equal(await readChanges(disk.open(), some([]), stream, options), 0)
    assert.equal(disk.calls.read, 0)
  })
})

describe('a look at chunks that are said to be unchanged', () => {
  const then = new MemoryDisk(4 * chunk)
  then.put(0, Buffer.alloc(4 * chunk, 1))
  const now = new MemoryDisk(4 * chunk)
  now.put(0, Buffer.alloc(4 * chunk, 2))

  test('finds that they differ, and where', async () => {
    const offset = await spotCheck(now.open(), then.open(), some([]), options)
    assert.ok(offset !== undefined && offset % chunk === 0)
  })

  test('leaves alone those that have changed', async () => {
    assert.equal(await spotCheck(now.open(), then.open(), some([changed(0, 4 * chunk)]), options), undefined)
  })

  test('has nothing to look at in an empty disk', async () => {
    const empty = new MemoryDisk(4 * chunk)
    assert.equal(await spotCheck(now.open(), empty.open(), some([]), options), undefined)
  })
})
