/**
 * The id of a draft is nobody else's: not of an open draft, and not of a point that was committed in the same second.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { MemoryBackend } from '../../test/sim/memory-backend.ts'
import { beginDraftMark } from './draft-mark.ts'
import { objectKeys } from './format.ts'

const now = () => new Date('2026-11-22T01:02:03Z')

test('an id that a recovery point of the same second has is left to it, with everything that is its own', async () => {
  const backend = new MemoryBackend()
  const announced: string[] = []
  const id = await beginDraftMark(backend, now, async (tried) => {
    announced.push(tried)
    if (announced.length === 1) await backend.put(objectKeys.point(tried), [Buffer.from('a manifest')])
  })
  const [first = ''] = announced
  assert.notEqual(id, first)
  assert.equal(announced.at(-1), id)
  const keys = (await Array.fromAsync(backend.list(''))).map(({ key }) => key).sort()
  assert.deepEqual(keys, [objectKeys.draft(id), objectKeys.point(first)].sort())
})

test('an id that an open draft has is left to it', async () => {
  const backend = new MemoryBackend()
  const announced: string[] = []
  const id = await beginDraftMark(backend, now, async (tried) => {
    announced.push(tried)
    if (announced.length === 1) await backend.put(objectKeys.draft(tried), [Buffer.from('another process')])
  })
  assert.equal(announced.length, 2)
  assert.equal(announced.at(-1), id)
})
