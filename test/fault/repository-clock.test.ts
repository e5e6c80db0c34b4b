/**
 * The host's clock is set back between two backups: each point is kept, found and restored, and told with the time that the clock had.
 */
import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { createRepository, openRepositoryOn } from '../../src/repository/repository.ts'
import { openLocalBackend } from '../../src/repository/storage/local-backend.ts'
import { bytesOf, chunkSizeBytes, directory, writePoint } from './power-cut-scenario.ts'
import { UnsyncedFiles } from './unsynced-files.ts'

const dayMs = 24 * 3600 * 1000
const firstMs = Date.parse('2026-03-01T12:00:00.000Z')

const setClock = (context: TestContext, nowMs: number) => {
  context.mock.timers.reset()
  context.mock.timers.enable({ apis: ['Date'], now: nowMs })
}

test('a clock that is set back by a day loses no point, and the list follows what the clock said', async (context) => {
  const files = new UnsyncedFiles()
  setClock(context, firstMs)
  await using repository = await createRepository(directory, { chunkSizeBytes, files, encryption: 'none' })
  const first = await writePoint(repository, 1)
  setClock(context, firstMs - dayMs)
  const second = await writePoint(repository, 2)
  setClock(context, firstMs - dayMs)
  const third = await writePoint(repository, 3) // the same second once more
  assert.match(first.id, /^20260301T120000Z-/)
  assert.match(second.id, /^20260228T120000Z-/)
  assert.equal(new Set([first.id, second.id, third.id]).size, 3)

  await using other = await openRepositoryOn(openLocalBackend(directory, files))
  const points = await other.listPoints()
  assert.equal(points.length, 3)
  assert.equal(points.at(-1)?.id, first.id)
  for (const [point, seed] of [
    [first, 1],
    [second, 2],
    [third, 3],
  ] as const) {
    const found = await other.point(point.id)
    assert.equal(found.createdAt.getTime(), point.createdAt.getTime())
    await using source = await found.openStream('disk')
    const bytes = Buffer.alloc(source.sizeBytes)
    await source.read(0, bytes)
    assert.ok(bytes.equals(bytesOf(seed)))
  }
  assert.deepEqual((await other.verify()).damage, [])
  await other.deletePoint(first.id)
  assert.deepEqual(new Set((await other.listPoints()).map(({ id }) => id)), new Set([second.id, third.id]))
})
