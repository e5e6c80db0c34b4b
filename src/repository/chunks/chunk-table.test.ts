/**
 * ChunkTable against a Map, and what it costs.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { recordBytes } from '../format.ts'
import { blake3Digest } from './blake3.ts'
import { ChunkTable } from './chunk-table.ts'

const idOf = (value: number) => blake3Digest(Buffer.from(String(value)))

test('it finds what was inserted and nothing else, as a Map would', () => {
  fc.assert(
    fc.property(fc.array(fc.nat(3000), { maxLength: 3000 }), (values) => {
      const table = new ChunkTable(recordBytes(512 * 1024))
      const model = new Map<number, number>()
      for (const value of values) {
        if (model.has(value)) assert.equal(table.find(idOf(value)), model.get(value))
        else model.set(value, table.insert(idOf(value)))
      }
      assert.equal(table.size, model.size)
      for (const [value, number] of model) assert.equal(table.find(idOf(value)), number)
      assert.equal(table.find(idOf(-1)), -1)
    }),
    { numRuns: 15 },
  )
})

test('ids that begin alike are told apart', () => {
  const table = new ChunkTable(recordBytes(65536))
  const ids = Array.from({ length: 500 }, (_, value) =>
    Buffer.concat([Buffer.alloc(12, 7), idOf(value).subarray(0, 20)]),
  )
  const numbers = ids.map((id) => table.insert(id))
  assert.deepEqual(
    ids.map((id) => table.find(id)),
    numbers,
  )
})

test('a location covers its record and at most one part in 255 more', () => {
  const table = new ChunkTable(recordBytes(512 * 1024))
  const number = table.insert(idOf(1))
  assert.equal(table.location(number), undefined)
  const length = fc.integer({ min: 1, max: 512 * 1024 }).map(recordBytes)
  fc.assert(
    fc.property(fc.nat(1_000_000), fc.integer({ min: 5, max: 2 ** 24 - 1 }), length, (packNumber, place, bytes) => {
      table.setLocation(number, packNumber, place * 8, bytes)
      const location = table.location(number)
      assert.ok(location !== undefined)
      assert.equal(location.packNumber, packNumber)
      assert.equal(location.offset, place * 8)
      assert.ok(
        location.readBytes >= bytes && location.readBytes < bytes + 2100 && location.readBytes <= table.maxReadBytes,
      )
    }),
  )
})

test('1 TiB of different data in chunks of 512 KiB takes less than 58 MiB, at every moment in proportion', () => {
  const table = new ChunkTable(recordBytes(512 * 1024))
  const count = 1024 ** 4 / (512 * 1024)
  const id = Buffer.alloc(32)
  for (let value = 0; value < count; value += 1) {
    id.writeUInt32LE(Math.imul(value, 0x9e3779b1) >>> 0, 0)
    id.writeUInt32LE(value, 4)
    table.insert(id)
    if (value > 100_000 && value % 10_000 === 0) assert.ok(table.memoryBytes < (value + 16_384) * 30)
  }
  assert.ok(table.memoryBytes < 58 * 1024 * 1024, `${table.memoryBytes} bytes`)
})

test('what is not retained is forgotten, and the others are found by new numbers', () => {
  const table = new ChunkTable(recordBytes(65536))
  for (let value = 0; value < 40_000; value += 1)
    table.setLocation(table.insert(idOf(value)), value, 40 + 8 * value, 100)
  table.spoil(39_998)
  table.retain((number) => number % 2 === 0)
  assert.equal(table.size, 20_000)
  for (let value = 0; value < 40_000; value += 1) {
    const number = table.find(idOf(value))
    if (value % 2 === 1) assert.equal(number, -1)
    else assert.ok(table.standsAt(number, value, 40 + 8 * value) && table.location(number)?.offset === 40 + 8 * value)
  }
  assert.ok(table.isSpoiled(table.find(idOf(39_998))))
  assert.ok(!table.isSpoiled(table.find(idOf(39_996))))
  for (let value = 1; value < 40_000; value += 2) table.insert(idOf(value))
  assert.equal(table.size, 40_000)
})
