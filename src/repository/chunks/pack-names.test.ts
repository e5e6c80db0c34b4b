/**
 * PackNames against a Map, and what it costs.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { objectKeys } from '../format.ts'
import { blake3Digest } from './blake3.ts'
import { PackNames, packFlags } from './pack-names.ts'

const digestOf = (value: number) => blake3Digest(Buffer.from(String(value)))
const pointOf = (value: number) => `20240101T00000${value % 10}Z-aaaa`

test('a pack keeps its number, and is found by its name and nothing else, as in a Map', () => {
  fc.assert(
    fc.property(fc.array(fc.nat(4000), { maxLength: 4000 }), (values) => {
      const names = new PackNames()
      const model = new Map<number, number>()
      for (const value of values) {
        const number = names.add(pointOf(value), digestOf(value))
        assert.equal(number, model.get(value) ?? model.size)
        model.set(value, number)
      }
      assert.equal(names.size, model.size)
      for (const [value, number] of model) {
        const key = objectKeys.pack(pointOf(value), digestOf(value))
        assert.equal(names.key(number), key)
        assert.equal(names.findKey(key), number)
        assert.equal(names.find(pointOf(value + 1), digestOf(value)), -1)
      }
      assert.equal(names.find(pointOf(1), digestOf(-1)), -1)
    }),
    { numRuns: 10 },
  )
})

test('flags are of one pack, and taken off all of them at once', () => {
  const names = new PackNames()
  const numbers = Array.from({ length: 3000 }, (_, value) => names.add(pointOf(value), digestOf(value)))
  for (const number of numbers) names.set(number, number % 2 === 0 ? packFlags.seen : packFlags.condemned)
  names.follow(packFlags.indexed, packFlags.seen)
  for (const number of numbers) assert.equal(names.has(number, packFlags.indexed), number % 2 === 0)
  names.clear(packFlags.condemned)
  for (const number of numbers) assert.ok(!names.has(number, packFlags.condemned))
  assert.ok(names.has(2, packFlags.seen))
})

test('keys that are no pack are found nowhere', () => {
  const names = new PackNames()
  names.add(pointOf(1), digestOf(1))
  for (const key of ['', 'packs', 'packs/x', 'points/x.json', `packs/${pointOf(1)}/zz`, `indexes/${pointOf(1)}/aa`]) {
    assert.equal(names.findKey(key), -1)
  }
})

test('the names of the packs of 1 TiB take less than 3 MiB', () => {
  const names = new PackNames()
  const digest = Buffer.alloc(32)
  for (let value = 0; value < 67_650; value += 1) {
    digest.writeUInt32LE(Math.imul(value, 0x9e3779b1) >>> 0, 0)
    names.add(pointOf(1), digest)
  }
  assert.ok(names.memoryBytes < 3 * 1024 * 1024, `${names.memoryBytes} bytes`)
})
