/**
 * The gatherer: blocks stand where it said they would, in the order of their arrival, whoever waits; a failure is told to all.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { afterEach, test } from 'node:test'
import { ChunkBuffers } from '../../../test/sim/chunk-buffers.ts'
import { BlockGatherer } from './block-gatherer.ts'
import type { GatheredBlocks } from './map-log.ts'

const blockBytes = 64 * 1024
const recordBytes = 4 * blockBytes
const buffers = new ChunkBuffers(recordBytes)
afterEach(() => assert.equal(buffers.outstanding, 0, 'a buffer was not given back'))

test('many at once: every block stands where its caller was told, and records are full but the last', async () => {
  const records: Buffer[] = []
  const gatherer = new BlockGatherer(recordBytes, buffers, async (plain) => {
    const copy = Buffer.from(plain)
    await new Promise(setImmediate)
    assert.deepEqual(plain, copy, 'nobody writes into a record that is being stored')
    return Buffer.from([records.push(copy) - 1])
  })
  const placed: { bytes: Buffer; at: GatheredBlocks; index: number }[] = []
  const add = (count: number) => {
    const blocks = Array.from({ length: count }, (_, block) => ({ block, bytes: randomBytes(blockBytes) }))
    let next = 0
    return gatherer.add(blocks, (at) => {
      for (let index = 0; index < at.blocks.length; index += 1) {
        placed.push({ bytes: blocks[next]?.bytes ?? Buffer.alloc(0), at, index })
        assert.equal(at.blocks[index], next++)
      }
    })
  }
  await Promise.all([3, 1, 2, 3, 0, 1, 3].map(add))
  const ids = await gatherer.finish()
  assert.deepEqual(
    records.map(({ length }) => length / blockBytes),
    [4, 4, 4, 1],
  )
  assert.equal(placed.length, 13)
  for (const { bytes, at, index } of placed) {
    const record = records[ids[at.record]?.[0] ?? -1]
    const start = (at.position + index) * blockBytes
    assert.ok(record?.subarray(start, start + blockBytes).equals(bytes))
  }
})

test('the short block at the end of a disk takes the room of a whole one, followed by zeros', async () => {
  const records: Buffer[] = []
  const gatherer = new BlockGatherer(recordBytes, buffers, async (plain) =>
    Buffer.from([records.push(Buffer.from(plain))]),
  )
  const add = (bytes: Buffer) => gatherer.add([{ block: 0, bytes }], () => undefined)
  for (let count = 0; count < 4; count += 1) await add(Buffer.alloc(blockBytes, 0xff))
  await add(Buffer.alloc(10, 1))
  await add(Buffer.alloc(blockBytes, 2))
  await gatherer.finish()
  const wanted = Buffer.concat([Buffer.alloc(10, 1), Buffer.alloc(blockBytes - 10), Buffer.alloc(blockBytes, 2)])
  assert.ok(records[1]?.equals(wanted))
})

test('when a record can not be stored, its caller and everybody after is told', async () => {
  let calls = 0
  const gatherer = new BlockGatherer(blockBytes, buffers, async () => {
    calls += 1
    throw new Error('no space')
  })
  const add = () => gatherer.add([{ block: 0, bytes: Buffer.alloc(blockBytes, 1) }], () => undefined)
  await Promise.all([assert.rejects(add(), /no space/), assert.rejects(add(), /no space/)])
  await assert.rejects(add(), /no space/)
  await assert.rejects(gatherer.finish(), /no space/)
  gatherer[Symbol.dispose]()
  assert.equal(calls, 1)
})
