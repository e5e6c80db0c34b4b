/**
 * Aligned buffers: each its own memory, and where they promise it the beginning of a page, which only the kernel can tell.
 */
import assert from 'node:assert/strict'
import { constants } from 'node:fs'
import { mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { AlignedBuffers } from './aligned-buffers.ts'

test('buffers do not overlap, and one that was given back is taken again', () => {
  const buffers = new AlignedBuffers(10_000, 56)
  const taken = Array.from({ length: 20 }, () => buffers.take())
  for (const [number, buffer] of taken.entries()) buffer.fill(number)
  for (const [number, buffer] of taken.entries()) {
    assert.equal(buffer.length, 10_000)
    assert.ok(buffer.every((byte) => byte === number))
  }
  const [first] = taken
  assert.ok(first !== undefined)
  buffers.give(first)
  assert.equal(buffers.take(), first)
})

test('a page begins where it was asked for: the kernel writes from there past its cache', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'umbra-aligned-'))
  t.after(() => rm(folder, { recursive: true }))
  const file = await open(join(folder, 'file'), constants.O_CREAT | constants.O_WRONLY | constants.O_DIRECT).catch(
    () => undefined,
  )
  if (file === undefined) return t.skip('a file system that knows no O_DIRECT')
  await using _file = file
  const buffers = new AlignedBuffers(20_000, 56)
  for (let count = 0; count < 20; count += 1) {
    const buffer = buffers.take()
    assert.equal((await file.write(buffer, 56, 8192, count * 8192)).bytesWritten, 8192)
  }
})
