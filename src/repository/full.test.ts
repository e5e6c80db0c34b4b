/**
 * A full repository: REPOSITORY_FULL names path and bytes, the draft leaves nothing, the points before stay.
 * Needs root for a small file system of its own.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { Failure } from '../base/failure.ts'
import { createRepository } from './repository.ts'

const megabyte = 1024 * 1024

async function smallFileSystem() {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-full-'))
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=24m', 'umbra-full', folder]).status === 0
  return {
    folder,
    mounted,
    async [Symbol.asyncDispose]() {
      if (mounted) execFileSync('umount', [folder])
      await rm(folder, { recursive: true, force: true })
    },
  }
}

test('a full repository says so, discards the draft and keeps what was there', async (t) => {
  await using place = await smallFileSystem()
  if (!place.mounted) {
    t.skip('no file system may be mounted here')
    return
  }
  await using repository = await createRepository(place.folder, { chunkSizeBytes: megabyte, encryption: 'none' })
  const kept = randomBytes(megabyte)
  let keptId: string
  {
    await using draft = await repository.beginPoint()
    await using stream = await draft.openStream('disk', megabyte)
    await stream.writeChunk(0, kept)
    await stream.finish()
    keptId = (await draft.commit({})).id
  }
  const backup = async () => {
    await using draft = await repository.beginPoint()
    await using stream = await draft.openStream('disk', 64 * megabyte)
    for (let number = 0; number < 64; number += 1) await stream.writeChunk(number, randomBytes(megabyte))
    await stream.finish()
    await draft.commit({})
  }
  await assert.rejects(backup(), (error) => {
    assert.ok(error instanceof Failure, String(error))
    assert.equal(error.code, 'REPOSITORY_FULL')
    assert.match(error.message, /packs\/.* needs \d+ bytes/)
    return true
  })
  const points = await repository.listPoints()
  assert.deepEqual(
    points.map(({ id }) => id),
    [keptId],
  )
  await using source = await (await repository.point(keptId)).openStream('disk')
  const read = Buffer.alloc(megabyte)
  await source.read(0, read)
  assert.ok(read.equals(kept))
  // There is room again for what fits.
  await using draft = await repository.beginPoint()
  await draft.putDocument('note', randomBytes(8 * megabyte))
  await draft.commit({})
})
