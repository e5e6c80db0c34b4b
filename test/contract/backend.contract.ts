/**
 * What every backend of the repository must do: the contract of src/repository/storage/backend.ts as tests.
 * A backend's own test file calls `backendContract` with a way to make an empty one.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { Failure } from '../../src/base/failure.ts'
import type { Backend } from '../../src/repository/storage/backend.ts'

/** Disposal removes what the backend holds. */
export interface BackendPlace extends AsyncDisposable {
  /** Another connection to the same objects; each is disposed by whoever opened it. */
  open(): Promise<Backend>
}

const hasCode = (code: string) => (error: unknown) => error instanceof Failure && error.code === code
const maxBytes = 1 << 20

async function keysOf(backend: Backend, prefix: string): Promise<string[]> {
  const keys: string[] = []
  for await (const { key } of backend.list(prefix)) keys.push(key)
  return keys.sort()
}

export function backendContract(name: string, openPlace: () => Promise<BackendPlace>): void {
  test(`${name}: an object is read back whole, by this connection and another`, async () => {
    await using place = await openPlace()
    await using backend = await place.open()
    const content = randomBytes(100_000)
    const parts = [content.subarray(0, 1), Buffer.alloc(0), content.subarray(1, 70_000), content.subarray(70_000)]
    assert.equal(await backend.put('packs/one/abc', parts), 'stored')
    assert.deepEqual(await backend.get('packs/one/abc', maxBytes), content)
    await using other = await place.open()
    assert.deepEqual(await other.get('packs/one/abc', maxBytes), content)
  })

  test(`${name}: an empty object is an object`, async () => {
    await using place = await openPlace()
    await using backend = await place.open()
    await backend.put('empty', [])
    assert.equal((await backend.get('empty', maxBytes)).length, 0)
    assert.deepEqual(await keysOf(backend, ''), ['empty'])
  })

  test(`${name}: what is there is not replaced`, async () => {
    await using place = await openPlace()
    await using backend = await place.open()
    assert.equal(await backend.put('a', [Buffer.from('first')]), 'stored')
    assert.equal(await backend.put('a', [Buffer.from('second')]), 'exists')
    assert.equal((await backend.get('a', maxBytes)).toString(), 'first')
  })

  test(`${name}: of many that put one key at once exactly one stores, and its object is whole`, async () => {
    await using place = await openPlace()
    await using backend = await place.open()
    await using other = await place.open()
    const contents = Array.from({ length: 12 }, (_, index) => Buffer.alloc(50_000, `writer ${index} `))
    const outcomes = await Promise.all(
      contents.map((content, index) => (index % 2 === 0 ? backend : other).put('deep/er/key', [content])),
    )
    assert.equal(outcomes.filter((outcome) => outcome === 'stored').length, 1)
    const stored = contents[outcomes.indexOf('stored')]
    assert.ok(stored !== undefined)
    assert.deepEqual(await backend.get('deep/er/key', maxBytes), stored)
  })

  test(`${name}: a range is cut at the end of the object; many are read at once`, async () => {
    await using place = await openPlace()
    await using backend = await place.open()
    const content = randomBytes(10_000)
    await backend.put('a', [content])
    const ranges = [
      [0, 10],
      [9_990, 10],
      [9_990, 100],
      [10_000, 5],
      [20_000, 5],
      [3, 0],
    ] as const
    await Promise.all(
      ranges.map(async ([offset, length]) => {
        const target = Buffer.from(new SharedArrayBuffer(length))
        const count = await backend.read('a', offset, target)
        assert.deepEqual(Buffer.from(target.subarray(0, count)), content.subarray(offset, offset + length))
      }),
    )
  })

  test(`${name}: what is missing is told as missing, and what is too long is not read`, async () => {
    await using place = await openPlace()
    await using backend = await place.open()
    await backend.put('a/b', [Buffer.alloc(100)])
    await assert.rejects(backend.get('a/c', maxBytes), hasCode('REPOSITORY_OBJECT_MISSING'))
    await assert.rejects(backend.get('a/b/c', maxBytes), hasCode('REPOSITORY_OBJECT_MISSING'))
    await assert.rejects(backend.read('x', 0, Buffer.alloc(1)), hasCode('REPOSITORY_OBJECT_MISSING'))
    await assert.rejects(backend.get('a/b', 99), hasCode('REPOSITORY_DAMAGED'))
  })

  test(`${name}: a prefix lists its objects and no others, with their sizes`, async () => {
    await using place = await openPlace()
    await using backend = await place.open()
    for (const key of ['a/1', 'a/b/2', 'ab/3', 'c']) await backend.put(key, [Buffer.from(key)])
    assert.deepEqual(await keysOf(backend, ''), ['a/1', 'a/b/2', 'ab/3', 'c'])
    assert.deepEqual(await keysOf(backend, 'a/'), ['a/1', 'a/b/2'])
    assert.deepEqual(await keysOf(backend, 'nothing/'), [])
    for await (const { key, sizeBytes } of backend.list('')) assert.equal(sizeBytes, key.length)
  })

  test(`${name}: a deleted object is gone, and to delete it again is no error`, async () => {
    await using place = await openPlace()
    await using backend = await place.open()
    await backend.put('a/1', [Buffer.from('x')])
    assert.equal(await backend.read('a/1', 0, Buffer.alloc(1)), 1)
    await backend.delete('a/1')
    await assert.rejects(backend.read('a/1', 0, Buffer.alloc(1)), hasCode('REPOSITORY_OBJECT_MISSING'))
    await backend.delete('a/1')
    await backend.delete('never/was')
    assert.deepEqual(await keysOf(backend, ''), [])
    assert.equal(await backend.put('a/1', [Buffer.from('y')]), 'stored')
  })

  test(`${name}: a whole object is read as it is now, whoever deleted it and put it again`, async () => {
    await using place = await openPlace()
    await using backend = await place.open()
    await using other = await place.open()
    await backend.put('pins/1', [Buffer.from('first')])
    assert.equal((await backend.get('pins/1', maxBytes)).toString(), 'first')
    assert.equal(await backend.read('pins/1', 0, Buffer.alloc(5)), 5)
    await other.delete('pins/1')
    await assert.rejects(backend.get('pins/1', maxBytes), hasCode('REPOSITORY_OBJECT_MISSING'))
    await other.put('pins/1', [Buffer.from('second')])
    assert.equal((await backend.get('pins/1', maxBytes)).toString(), 'second')
  })

  test(`${name}: a sweep takes nothing from a living writer`, async () => {
    await using place = await openPlace()
    await using backend = await place.open()
    await using other = await place.open()
    const puts = Array.from({ length: 20 }, (_, index) => backend.put(`packs/${index}`, [randomBytes(20_000)]))
    await Promise.all([other.sweep(), ...puts, other.sweep()])
    assert.equal((await keysOf(backend, 'packs/')).length, 20)
  })

  test(`${name}: a key that could leave its place is a bug of the caller`, async () => {
    await using place = await openPlace()
    await using backend = await place.open()
    for (const key of ['', '/a', '../a', 'a/../b', 'a//b', 'a/', '.hidden', 'a b', 'x'.repeat(201)]) {
      await assert.rejects(backend.put(key, []), /bug/, key)
    }
  })
}
