/**
 * Verify: what it finds is marked and healed by the next backup, an interrupted run is resumed, and a run may read a part.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { recordHeaderBytes, scanPack } from '../format.ts'
import {
  createRepository,
  openRepository,
  openRepositoryOn,
  type RecoveryPoint,
  type Repository,
} from '../repository.ts'
import type { Backend } from '../storage/backend.ts'
import { openLocalBackend } from '../storage/local-backend.ts'

const chunkSizeBytes = 128 * 1024

async function place() {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-verify-'))
  const repository = await createRepository(folder, { chunkSizeBytes, encryption: 'none' })
  return {
    folder,
    repository,
    async [Symbol.asyncDispose]() {
      await repository[Symbol.asyncDispose]()
      await rm(folder, { recursive: true, force: true })
    },
  }
}

async function writePoint(repository: Repository, data: Buffer): Promise<RecoveryPoint> {
  await using draft = await repository.beginPoint()
  await using stream = await draft.openStream('vm/disks/vda', data.length)
  for (let number = 0; number * chunkSizeBytes < data.length; number += 1) {
    await stream.writeChunk(number, data.subarray(number * chunkSizeBytes, (number + 1) * chunkSizeBytes))
  }
  await stream.finish()
  return draft.commit({})
}

async function readPoint(repository: Repository, id: string): Promise<Buffer> {
  await using source = await (await repository.point(id)).openStream('vm/disks/vda')
  const data = Buffer.alloc(source.sizeBytes)
  await source.read(0, data)
  return data
}

async function filesIn(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => [])
  return entries.filter((entry) => entry.isFile()).map((entry) => path.join(entry.parentPath, entry.name))
}

const packFiles = (folder: string, point = '') => filesIn(path.join(folder, 'packs', point))

/** Spoils the stored bytes of the chunk `number` of the pack; answers what repairs it. */
async function spoilChunk(pack: string, number: number): Promise<() => Promise<void>> {
  const whole = await readFile(pack)
  const chunk = [...scanPack(whole)].filter(({ plainBytes }) => plainBytes === chunkSizeBytes)[number]
  assert.ok(chunk !== undefined)
  const bytes = Buffer.from(whole)
  bytes.fill(0x5a, chunk.offset + recordHeaderBytes + 100, chunk.offset + recordHeaderBytes + 200)
  await writeFile(pack, bytes)
  return () => writeFile(pack, whole)
}

const marksIn = (folder: string, kind: 'damaged' | 'verified') => filesIn(path.join(folder, kind))

test('the next backup heals what verify found', async () => {
  await using here = await place()
  const data = randomBytes(4 * chunkSizeBytes)
  const first = await writePoint(here.repository, data)
  const second = await writePoint(here.repository, data)
  const [pack = ''] = await packFiles(here.folder)
  await spoilChunk(pack, 1)

  const { damage } = await here.repository.verify()
  assert.deepEqual(
    damage.map(({ point, offset, length }) => ({ point, offset, length })),
    [first.id, second.id].map((point) => ({ point, offset: chunkSizeBytes, length: chunkSizeBytes })),
  )
  assert.equal((await marksIn(here.folder, 'damaged')).length, 1)
  {
    await using other = await openRepository(here.folder) // the marks count for everybody
    const third = await writePoint(other, data)
    assert.equal(third.streams[0]?.newChunks, 1)
  }
  await using fresh = await openRepository(here.folder)
  assert.deepEqual((await fresh.verify()).damage, [])
  for (const repository of [fresh, here.repository]) {
    assert.ok((await readPoint(repository, first.id)).equals(data))
    assert.ok((await readPoint(repository, second.id)).equals(data))
  }
  assert.equal((await marksIn(here.folder, 'damaged')).length, 1, 'the damaged copy stays marked')
})

test('a missing pack is damage of all its chunks, healed by the next backup or by its return', async () => {
  await using here = await place()
  const data = randomBytes(3 * chunkSizeBytes)
  const first = await writePoint(here.repository, data)
  const [pack = ''] = await packFiles(here.folder)
  await rename(pack, `${here.folder}/aside`)
  assert.ok((await here.repository.verify()).damage.length > 0)
  assert.ok((await here.repository.verify()).damage.length > 0, 'and again')
  await rename(`${here.folder}/aside`, pack)
  assert.deepEqual((await here.repository.verify()).damage, [])
  assert.deepEqual(await marksIn(here.folder, 'damaged'), [], 'the marks are taken off')
  await rm(pack)
  await using other = await openRepository(here.folder) // which has not opened the file
  await other.verify()
  const second = await writePoint(other, data)
  assert.equal(second.streams[0]?.newChunks, 3)
  assert.deepEqual((await other.verify()).damage, [])
  assert.ok((await readPoint(other, first.id)).equals(data))
})

test('a chunk found whole again is taken off the marks and used again', async () => {
  await using here = await place()
  const data = randomBytes(3 * chunkSizeBytes)
  await writePoint(here.repository, data)
  const [pack = ''] = await packFiles(here.folder)
  const repair = await spoilChunk(pack, 0)
  assert.equal((await here.repository.verify()).damage.length, 1)
  await repair()
  assert.deepEqual((await here.repository.verify()).damage, [])
  assert.deepEqual(await marksIn(here.folder, 'damaged'), [])
  const next = await writePoint(here.repository, data)
  assert.equal(next.streams[0]?.newChunks, 0)
})

test('a reader finds the sound one of two copies, also when nobody has verified', async () => {
  await using here = await place()
  await using other = await openRepository(here.folder)
  const data = randomBytes(3 * chunkSizeBytes)
  const drafts = [await here.repository.beginPoint(), await other.beginPoint()] // neither knows of the other's chunks
  const ids: string[] = []
  for (const draft of drafts) {
    await using stream = await draft.openStream('vm/disks/vda', data.length)
    for (let number = 0; number < 3; number += 1) {
      await stream.writeChunk(number, data.subarray(number * chunkSizeBytes, (number + 1) * chunkSizeBytes))
    }
    await stream.finish()
    ids.push((await draft.commit({})).id)
  }
  for (const id of ids) {
    const [pack = ''] = await packFiles(here.folder, id)
    const repair = await spoilChunk(pack, 2)
    await using reader = await openRepository(here.folder)
    for (const point of ids) assert.ok((await readPoint(reader, point)).equals(data))
    assert.deepEqual((await reader.verify()).damage, [])
    await repair()
  }
  const [pack = ''] = await packFiles(here.folder, ids[0])
  await rm(pack)
  await using reader = await openRepository(here.folder)
  for (const point of ids) assert.ok((await readPoint(reader, point)).equals(data))
})

/** Points of one pack each. */
async function manyPacks(repository: Repository, count: number): Promise<void> {
  for (let number = 0; number < count; number += 1) await writePoint(repository, randomBytes(2 * chunkSizeBytes))
}

test('an interrupted run is resumed where it was, and one that ended is begun anew', async () => {
  await using here = await place()
  await manyPacks(here.repository, 8)
  const stop = new AbortController()
  const interrupted = here.repository.verify({
    signal: stop.signal,
    markEveryBytes: 1,
    onProgress: (done, total) => {
      if (done > total / 2) stop.abort()
    },
  })
  await assert.rejects(interrupted, { name: 'AbortError' })
  assert.ok((await marksIn(here.folder, 'verified')).length > 0)
  await using other = await openRepository(here.folder)
  const resumed = await other.verify({ resume: true })
  assert.ok(resumed.packsSkipped > 0 && resumed.packsRead > 0)
  assert.equal(resumed.packsRead + resumed.packsSkipped, 8)
  assert.equal((await marksIn(here.folder, 'verified')).length, 1, 'merged')
  assert.equal((await other.verify({ resume: true })).packsRead, 8)
})

test('only what was not verified for a time is read, and damage found is read again', async () => {
  await using here = await place()
  await manyPacks(here.repository, 3)
  assert.equal((await here.repository.verify({ notVerifiedForMs: 3_600_000 })).packsRead, 3)
  await manyPacks(here.repository, 2)
  assert.equal((await here.repository.verify({ notVerifiedForMs: 3_600_000 })).packsRead, 2)
  assert.equal((await here.repository.verify({ notVerifiedForMs: 0 })).packsRead, 5)
  const [pack = ''] = await packFiles(here.folder)
  await spoilChunk(pack, 0)
  assert.equal((await here.repository.verify()).damage.length, 1)
  const again = await here.repository.verify({ notVerifiedForMs: 3_600_000 })
  assert.equal(again.damage.length, 1, 'what is marked is told by every run')
})

test('a sample is a part of the packs, the same for the same seed', async () => {
  await using here = await place()
  await manyPacks(here.repository, 10)
  const one = await here.repository.verify({ sample: 0.3, seed: 7 })
  assert.deepEqual({ read: one.packsRead, skipped: one.packsSkipped, seed: one.seed }, { read: 3, skipped: 7, seed: 7 })
  const [pack = ''] = await packFiles(here.folder)
  await spoilChunk(pack, 0)
  const found = await Promise.all(
    [1, 2, 3, 4, 5, 6, 7, 8].map(async (seed) => {
      await using other = await openRepository(here.folder)
      return (await other.verify({ sample: 0.2, seed })).packsRead
    }),
  )
  assert.deepEqual(new Set(found).size <= 2, true)
})

test('marks that are garbage, foreign or of packs nobody has do no harm', async () => {
  await using here = await place()
  const data = randomBytes(2 * chunkSizeBytes)
  await writePoint(here.repository, data)
  await here.repository.verify()
  const [verified = ''] = await marksIn(here.folder, 'verified')
  const text = await readFile(verified)
  const contents = [text, text.subarray(0, 100), randomBytes(1000), Buffer.alloc(0)]
  for (const kind of ['damaged', 'verified']) {
    await mkdir(path.join(here.folder, kind), { recursive: true })
    for (const [number, content] of contents.entries()) {
      await writeFile(path.join(here.folder, kind, `20200101T000000Z-aaa${number}.json`), content)
    }
    await writeFile(path.join(here.folder, kind, 'nonsense'), text)
  }
  await using other = await openRepository(here.folder)
  assert.deepEqual((await other.verify()).damage, [])
  assert.equal((await writePoint(other, data)).streams[0]?.newChunks, 0)
})

test('while others write, delete and collect, nothing sound is called damaged', async () => {
  await using here = await place()
  await manyPacks(here.repository, 4)
  await using other = await openRepository(here.folder)
  let busy = true
  const work = (async () => {
    for (let round = 0; round < 4; round += 1) {
      await manyPacks(other, 2)
      for (const { id } of (await other.listPoints()).slice(0, 2)) await other.deletePoint(id)
      await other.collect({ delayMs: 0 })
    }
  })().finally(() => {
    busy = false
  })
  let runs = 0
  while (busy || runs === 0) {
    const { damage, damagedIndexes, spareDamage } = await here.repository.verify()
    assert.deepEqual({ damage, damagedIndexes, spareDamage }, { damage: [], damagedIndexes: [], spareDamage: 0 })
    runs += 1
  }
  await work
  assert.deepEqual((await here.repository.verify()).damage, [])
  assert.deepEqual(await marksIn(here.folder, 'damaged'), [])
})

test('packs that are collected while it reads are not called missing', async () => {
  await using here = await place()
  await manyPacks(here.repository, 8)
  const local = openLocalBackend(here.folder)
  let collecting: Promise<unknown> | undefined
  let isReading = false
  const backend: Backend = Object.assign(Object.create(local), {
    location: local.location,
    list: (prefix: string) => local.list(prefix),
    get: (key: string, maxBytes: number) => local.get(key, maxBytes),
    put: (key: string, parts: Uint8Array[]) => local.put(key, parts),
    delete: (key: string) => local.delete(key),
    sweep: () => local.sweep(),
    async read(key: string, offset: number, target: Uint8Array) {
      if (isReading) collecting ??= deleteAndCollect()
      await collecting
      return local.read(key, offset, target)
    },
    [Symbol.asyncDispose]: () => local[Symbol.asyncDispose](),
  })
  const deleteAndCollect = async () => {
    for (const { id } of (await here.repository.listPoints()).slice(1)) await here.repository.deletePoint(id)
    await here.repository.collect({ delayMs: 0 })
    assert.equal((await packFiles(here.folder)).length, 1)
  }
  // The walk of the maps opens every pack: what reads them must do so anew.
  await using repository = await openRepositoryOn(backend)
  const onProgress = () => {
    if (!isReading) void local[Symbol.asyncDispose]()
    isReading = true
  }
  const report = await repository.verify({ onProgress })
  assert.ok(collecting !== undefined)
  assert.deepEqual([report.damage, report.spareDamage], [[], 0])
  assert.deepEqual(await marksIn(here.folder, 'damaged'), [])
})
