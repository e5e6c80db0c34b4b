/**
 * The indexes made again from the packs: whatever became of them, afterwards everything that still is there restores.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { copyFile, mkdir, mkdtemp, readdir, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { Failure } from '../../base/failure.ts'
import type { Encryption } from '../keys/unlock.ts'
import { createRepository, openRepository, type RecoveryPoint, type Repository } from '../repository.ts'

const chunkSizeBytes = 64 * 1024

async function place(encryption: Encryption = 'none', pointCount = 2) {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-repair-'))
  const repository = await createRepository(folder, { chunkSizeBytes, encryption })
  const points: { id: string; data: Buffer }[] = []
  for (let number = 0; number < pointCount; number += 1) {
    const data = Buffer.concat([randomBytes(2 * chunkSizeBytes), Buffer.alloc(chunkSizeBytes, `text ${number} `)])
    points.push({ id: (await writePoint(repository, data)).id, data })
  }
  return {
    folder,
    repository,
    points,
    async [Symbol.asyncDispose]() {
      await repository[Symbol.asyncDispose]()
      await rm(folder, { recursive: true, force: true })
    },
  }
}

async function writePoint(repository: Repository, data: Buffer): Promise<RecoveryPoint> {
  await using draft = await repository.beginPoint()
  await using stream = await draft.openStream('disk', data.length)
  for (let number = 0; number * chunkSizeBytes < data.length; number += 1) {
    await stream.writeChunk(number, data.subarray(number * chunkSizeBytes, (number + 1) * chunkSizeBytes))
  }
  await stream.finish()
  return draft.commit({})
}

async function checkRestores(folder: string, points: readonly { id: string; data: Buffer }[]): Promise<void> {
  await using repository = await openRepository(folder)
  assert.deepEqual(await repository.listDamagedIndexes(), [])
  for (const { id, data } of points) {
    await using source = await (await repository.point(id)).openStream('disk')
    const target = Buffer.alloc(data.length)
    await source.read(0, target)
    assert.ok(target.equals(data))
  }
  assert.deepEqual((await repository.verify()).damage, [])
}

async function filesIn(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => [])
  return entries.filter((entry) => entry.isFile()).map((entry) => path.join(entry.parentPath, entry.name))
}

const indexFiles = (folder: string) => filesIn(path.join(folder, 'indexes'))
const packFiles = (folder: string) => filesIn(path.join(folder, 'packs'))

async function repair(folder: string) {
  await using repository = await openRepository(folder)
  return await repository.repairIndex() // before it is disposed
}

test('with every index deleted, or some, or spoiled, everything restores after the repair', async () => {
  const spoilers: ((files: string[]) => Promise<unknown>)[] = [
    (files) => Promise.all(files.map((file) => rm(file))),
    (files) => rm(files[0] ?? ''),
    (files) => truncate(files[0] ?? '', 50),
    (files) => Promise.all(files.map((file) => writeFile(file, 'garbage'))),
    async () => undefined,
  ]
  for (const spoil of spoilers) {
    await using here = await place()
    await spoil(await indexFiles(here.folder))
    const report = await repair(here.folder)
    assert.equal(report.packs, 2)
    assert.deepEqual(report.damagedPacks, [])
    assert.equal((await indexFiles(here.folder)).length, report.indexesPut)
    await checkRestores(here.folder, here.points)
    assert.deepEqual(await readdir(path.join(here.folder, 'drafts')), [])
    // A process that had the old indexes open goes on with the new ones.
    const more = await writePoint(here.repository, here.points[0]?.data ?? Buffer.alloc(0))
    assert.equal(more.streams[0]?.newChunks, 0)
  }
})

test('a trial run changes nothing and says the same', async () => {
  await using here = await place()
  for (const file of await indexFiles(here.folder)) await rm(file)
  await using repository = await openRepository(here.folder)
  const told = await repository.repairIndex({ dryRun: true })
  assert.deepEqual(await indexFiles(here.folder), [])
  assert.deepEqual(await repository.repairIndex(), told)
})

test('foreign objects, packs of another repository and copies under another name do no harm', async () => {
  await using here = await place()
  await using other = await place('none', 1)
  const [pack = ''] = await packFiles(here.folder)
  const [strange = ''] = await packFiles(other.folder)
  await writeFile(path.join(path.dirname(pack), 'note.txt'), 'garbage')
  await writeFile(path.join(path.dirname(pack), 'a'.repeat(64)), randomBytes(5000))
  await writeFile(path.join(path.dirname(pack), 'b'.repeat(64)), '')
  await copyFile(strange, path.join(path.dirname(pack), path.basename(strange)))
  await copyFile(pack, path.join(path.dirname(pack), 'c'.repeat(64)))
  await mkdir(path.join(here.folder, 'packs', 'nonsense'))
  await writeFile(path.join(here.folder, 'packs', 'nonsense', 'd'.repeat(64)), 'garbage')
  for (const file of await indexFiles(here.folder)) await rm(file)
  const report = await repair(here.folder)
  assert.equal(report.packs, 3)
  assert.equal(report.foreign.length, 3)
  assert.equal(report.damagedPacks.length, 2)
  await checkRestores(here.folder, here.points)
})

test('of a pack that is cut off or overwritten, what can still be proven is found', async () => {
  await using here = await place()
  const wholeRecords = (await here.repository.repairIndex({ dryRun: true })).records
  for (const pack of await packFiles(here.folder)) await truncate(pack, (await stat(pack)).size - 300)
  for (const file of await indexFiles(here.folder)) await rm(file)
  const report = await repair(here.folder)
  assert.equal(report.damagedPacks.length, 2)
  assert.equal(report.records, wholeRecords, 'only tables of contents were cut')
  await checkRestores(here.folder, here.points)

  const [pack = ''] = await packFiles(here.folder)
  const bytes = await readFile(pack)
  await writeFile(pack, bytes.fill(0x55, 1000, 1100)) // in the first record's data
  const spoiled = await repair(here.folder)
  assert.equal(spoiled.records, wholeRecords - 1)
  await using repository = await openRepository(here.folder)
  const { damage } = await repository.verify()
  assert.deepEqual(
    damage.map(({ offset, length }) => ({ offset, length })),
    [{ offset: 0, length: chunkSizeBytes }],
  )
})

test('a draft that has not published is left alone, and its packs with it', async () => {
  await using here = await place()
  await using draft = await here.repository.beginPoint()
  await using stream = await draft.openStream('disk', 400 * chunkSizeBytes)
  for (let number = 0; number < 400; number += 1) await stream.writeChunk(number, randomBytes(chunkSizeBytes))
  for (const file of await indexFiles(here.folder)) await rm(file)
  const report = await repair(here.folder)
  assert.deepEqual(
    report.skippedDrafts.map((skipped) => skipped.draft),
    [draft.id],
  )
  assert.equal(report.packs, 2)
  await stream.finish()
  const point = await draft.commit({})
  assert.equal((await here.repository.verify({ points: [point.id] })).damage.length, 0)
  await checkRestores(here.folder, here.points)
})

test('one that was killed before the old indexes were deleted is repeated, and two at once are refused', async () => {
  await using here = await place()
  const stop = new AbortController()
  stop.abort(new Error('stopped'))
  await assert.rejects(here.repository.repairIndex({ signal: stop.signal }), /stopped/)
  await checkRestores(here.folder, here.points)
  const outcomes = await Promise.allSettled([here.repository.repairIndex(), here.repository.repairIndex()])
  for (const outcome of outcomes) {
    if (outcome.status === 'fulfilled') continue
    assert.ok(outcome.reason instanceof Failure && outcome.reason.code === 'COLLECT_IN_PROGRESS')
  }
  await checkRestores(here.folder, here.points)
})

test('an encrypted repository is repaired as well, also where packs are cut off', async () => {
  const passphrase = 'correct horse battery staple'
  await using here = await place({ passphrase })
  for (const file of await indexFiles(here.folder)) await rm(file)
  const [pack = ''] = await packFiles(here.folder)
  await truncate(pack, (await stat(pack)).size - 300)
  await using repository = await openRepository(here.folder, { unlock: { passphrase: async () => passphrase } })
  const report = await repository.repairIndex()
  assert.deepEqual({ packs: report.packs, damaged: report.damagedPacks.length }, { packs: 2, damaged: 1 })
  assert.deepEqual((await repository.verify()).damage, [])
  for (const { id, data } of here.points) {
    await using source = await (await repository.point(id)).openStream('disk')
    const target = Buffer.alloc(data.length)
    await source.read(0, target)
    assert.ok(target.equals(data))
  }
})
