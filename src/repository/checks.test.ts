/**
 * Checks: kept beside the point and gone with it, a damaged one counts as none, and none is left of a point that is gone.
 */
import assert from 'node:assert/strict'
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { Failure } from '../base/failure.ts'
import { createRepository, openRepository, type RepositoryOptions } from './repository.ts'

const code = (wanted: string) => (error: unknown) => error instanceof Failure && error.code === wanted
const web = { name: 'web01', uuid: '11111111-2222-4333-8444-555555555555' }
const passed = { vm: web, passed: true, reason: 'its agent answered after 7 s', evidence: { probes: [1, 2] } }

async function placeWithPoint(encryption: RepositoryOptions['encryption'] = 'none') {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-checks-'))
  const repository = await createRepository(folder, { chunkSizeBytes: 64 * 1024, encryption })
  await using draft = await repository.beginPoint()
  const { id } = await draft.commit({})
  return {
    folder,
    repository,
    id,
    checkFiles: async () => (await readdir(path.join(folder, 'checks', id)).catch(() => [])).sort(),
    async [Symbol.asyncDispose]() {
      await repository[Symbol.asyncDispose]()
      await rm(folder, { recursive: true })
    },
  }
}

test('a verdict is read back as it was given, by whoever opens the repository, oldest first', async () => {
  await using place = await placeWithPoint()
  const first = await place.repository.addCheck(place.id, passed)
  const screen = Buffer.from('a picture')
  const second = await place.repository.addCheck(place.id, { ...passed, passed: false, reason: 'silent', screen })
  await using other = await openRepository(place.folder)
  const found = (await other.checks()).get(place.id) ?? []
  assert.deepEqual(found.map(({ id }) => id).sort(), [first, second].sort())
  const one = found.find(({ id }) => id === first)
  assert.deepEqual({ ...passed, hasScreen: false, id: first, checkedAt: one?.checkedAt }, one)
  assert.equal(found.find(({ id }) => id === second)?.hasScreen, true)
  assert.deepEqual(await other.checkScreen(place.id, second), screen)
  assert.equal(await other.checkScreen(place.id, first), undefined)
  assert.deepEqual(await other.checks(place.id), await other.checks())
})

test('the checks of a point go with it, and a point that is gone gets none', async () => {
  await using place = await placeWithPoint()
  await place.repository.addCheck(place.id, { ...passed, screen: Buffer.from('a picture') })
  assert.equal((await place.checkFiles()).length, 2)
  await place.repository.deletePoint(place.id)
  assert.deepEqual(await place.checkFiles(), [])
  const late = place.repository.addCheck(place.id, { ...passed, screen: Buffer.from('a picture') })
  await assert.rejects(late, code('RECOVERY_POINT_NOT_FOUND'))
  assert.deepEqual(await place.checkFiles(), [])
  assert.equal((await place.repository.checks()).size, 0)
})

test('a check that is damaged, or no check at all, counts as none', async () => {
  await using place = await placeWithPoint()
  const id = await place.repository.addCheck(place.id, passed)
  const file = path.join(place.folder, 'checks', place.id, `${id}.json`)
  const bytes = await readFile(file)
  await rm(file)
  await writeFile(file, bytes.subarray(0, bytes.length - 9))
  await writeFile(path.join(place.folder, 'checks', place.id, 'README'), 'by hand')
  assert.deepEqual((await place.repository.checks()).get(place.id), [])
  assert.deepEqual((await place.repository.listPoints()).length, 1)
})

test('with encryption neither the verdict nor the picture can be read in the place', async () => {
  await using place = await placeWithPoint({ passphrase: 'correct horse battery staple' })
  await place.repository.addCheck(place.id, { ...passed, screen: Buffer.from('a picture') })
  for (const name of await place.checkFiles()) {
    const text = await readFile(path.join(place.folder, 'checks', place.id, name), 'latin1')
    assert.doesNotMatch(text, /web01|agent|YSBwaWN0dXJl/)
  }
})

test('collection, repair of indexes and verification leave checks alone', async () => {
  await using place = await placeWithPoint()
  await place.repository.addCheck(place.id, passed)
  await place.repository.collect()
  await place.repository.repairIndex()
  assert.deepEqual((await place.repository.verify()).damage, [])
  assert.equal((await place.repository.checks()).get(place.id)?.length, 1)
})
