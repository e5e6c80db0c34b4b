/**
 * Pins: what is pinned stays, who pinned it is told, and a damaged pin pins too.
 */
import assert from 'node:assert/strict'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { Failure } from '../../base/failure.ts'
import { plainSeal } from '../keys/seal.ts'
import { createRepository, openRepository } from '../repository.ts'
import { openLocalBackend } from '../storage/local-backend.ts'
import { pin, pinOf, pins, unpin } from './pins.ts'

const withCode = (code: string) => (error: unknown) => error instanceof Failure && error.code === code

async function placeWithPoint() {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-pins-'))
  const repository = await createRepository(folder, { chunkSizeBytes: 64 * 1024, encryption: 'none' })
  await using draft = await repository.beginPoint()
  const { id } = await draft.commit({})
  return {
    folder,
    repository,
    id,
    pinFile: path.join(folder, 'pins', `${id}.json`),
    async [Symbol.asyncDispose]() {
      await repository[Symbol.asyncDispose]()
      await rm(folder, { recursive: true })
    },
  }
}

test('a pinned point is not deleted, and the refusal tells the note; unpinned it is', async () => {
  await using place = await placeWithPoint()
  const { repository, id, folder } = place
  assert.equal(await repository.pin(id, 'before the migration'), 'pinned')
  await using other = await openRepository(folder)
  await assert.rejects(other.deletePoint(id), (error: unknown) => {
    assert.ok(error instanceof Failure && error.code === 'RECOVERY_POINT_PINNED')
    assert.equal(error.message, `recovery point ${id} is pinned: before the migration`)
    return true
  })
  assert.equal((await repository.listPoints()).length, 1)
  await repository.unpin(id)
  await repository.unpin(id)
  await other.deletePoint(id)
  assert.deepEqual(await repository.listPoints(), [])
})

test('the first pin stands, and all are listed with note and time', async () => {
  await using place = await placeWithPoint()
  const { repository, id } = place
  assert.deepEqual(await repository.pins(), new Map())
  await repository.pin(id, 'first')
  assert.equal(await repository.pin(id, 'second'), 'exists')
  const listed = await repository.pins()
  assert.deepEqual([...listed.keys()], [id])
  assert.equal(listed.get(id)?.note, 'first')
  assert.ok(Math.abs(Date.parse(listed.get(id)?.pinnedAt ?? '') - Date.now()) < 3_600_000)
})

test('a point that is not there can not be pinned, and nothing is left of the attempt', async () => {
  await using place = await placeWithPoint()
  const { repository, id } = place
  await repository.deletePoint(id)
  await assert.rejects(repository.pin(id, 'too late'), withCode('RECOVERY_POINT_NOT_FOUND'))
  assert.deepEqual(await repository.pins(), new Map())
})

test('a point that another process deleted can not be pinned, although it was read before', async () => {
  await using place = await placeWithPoint()
  const { repository, id, folder } = place
  await repository.point(id)
  await using other = await openRepository(folder)
  await other.deletePoint(id)
  await assert.rejects(repository.pin(id, 'too late'), withCode('RECOVERY_POINT_NOT_FOUND'))
})

test('a damaged pin pins, and says that it is damaged', async () => {
  await using place = await placeWithPoint()
  const { repository, id, pinFile } = place
  await repository.pin(id, 'before the migration')
  const whole = await readFile(pinFile, 'utf8')
  const damaged = [whole.replace('migration', 'migratiom'), '', 'x'.repeat(100_000)]
  for (const content of damaged) {
    await writeFile(pinFile, content)
    assert.equal((await repository.pins()).get(id)?.note, 'its note can not be read')
    await assert.rejects(repository.deletePoint(id), withCode('RECOVERY_POINT_PINNED'))
  }
})

test('the pin of one point is none of another: its place is part of what is sealed', async () => {
  await using place = await placeWithPoint()
  await using backend = openLocalBackend(place.folder)
  const seal = {
    ...plainSeal,
    close: (key: string, _: string, body: Buffer) => Buffer.concat([Buffer.from(key), body]),
    open: (key: string, _: string, stored: Buffer) => {
      assert.equal(stored.subarray(0, key.length).toString(), key)
      return stored.subarray(key.length)
    },
  }
  const sealed = { backend, seal }
  await pin(sealed, place.id, 'secret', new Date(0))
  assert.deepEqual(await pinOf(sealed, place.id), { note: 'secret', pinnedAt: '1970-01-01T00:00:00.000Z' })
  assert.deepEqual([...(await pins(sealed)).keys()], [place.id])
  await unpin(sealed, place.id)
  assert.equal(await pinOf(sealed, place.id), undefined)
})
