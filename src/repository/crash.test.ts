/**
 * Crashes: a backup that is killed with -9 at any moment, and a backend that fails or dies at every single put.
 * Afterwards only whole recovery points are listed, each restores byte for byte, and the next backup works.
 * Run with the arguments `write <folder>`, this file is the process that is killed.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createCipheriv } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { Failure, primaryError } from '../base/failure.ts'
import { createRepository, openRepository, openRepositoryOn, type Repository } from './repository.ts'
import type { Backend } from './storage/backend.ts'
import { openLocalBackend } from './storage/local-backend.ts'

const chunkSizeBytes = 128 * 1024

/** The same bytes for the same seed, random to whoever compresses them. */
function seededBytes(seed: number, length: number): Buffer {
  const key = Buffer.alloc(16)
  key.writeUInt32LE(seed)
  return createCipheriv('aes-128-ctr', key, Buffer.alloc(16)).update(Buffer.alloc(length))
}

async function writePoint(repository: Repository, seed: number, chunkCount: number): Promise<void> {
  const data = seededBytes(seed, chunkCount * chunkSizeBytes)
  await using draft = await repository.beginPoint()
  await using stream = await draft.openStream('disk', data.length)
  for (let number = 0; number < chunkCount; number += 1) {
    await stream.writeChunk(number, data.subarray(number * chunkSizeBytes, (number + 1) * chunkSizeBytes))
  }
  await stream.finish()
  await draft.putDocument('seed', Buffer.from(String(seed)))
  await draft.commit({ seed, chunkCount })
}

/** Every point listed is whole; answers how many there are. */
async function checkPoints(repository: Repository): Promise<number> {
  const points = await repository.listPoints()
  for (const point of points) {
    const { seed, chunkCount } = point.content
    const data = seededBytes(Number(seed), Number(chunkCount) * chunkSizeBytes)
    await using source = await point.openStream('disk')
    const read = Buffer.alloc(source.sizeBytes)
    await source.read(0, read)
    assert.ok(read.equals(data))
    assert.equal(Buffer.from(await point.readDocument('seed')).toString(), String(seed))
  }
  assert.deepEqual(await repository.listDamagedPoints(), [])
  return points.length
}

async function draftIds(folder: string): Promise<string[]> {
  const names = await readdir(path.join(folder, 'drafts')).catch(() => [])
  return names.map((name) => path.basename(name, '.json'))
}

/** Clears away what the dead left, and finds nothing of them afterwards. */
async function recover(folder: string): Promise<void> {
  await using repository = await openRepository(folder)
  for (const id of await draftIds(folder)) {
    await repository.discardUnfinished(id)
    await repository.discardUnfinished(id)
  }
  assert.deepEqual(await draftIds(folder), [])
  const owners = new Set(await readdir(path.join(folder, 'indexes')).catch(() => []))
  for (const owner of await readdir(path.join(folder, 'packs')).catch(() => [])) {
    const packs = await readdir(path.join(folder, 'packs', owner))
    assert.ok(packs.length === 0 || owners.has(owner), owner) // a folder without packs is nothing
  }
}

async function temporaryRepository() {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-crash-'))
  await (await createRepository(folder, { chunkSizeBytes, encryption: 'none' }))[Symbol.asyncDispose]()
  return { folder, [Symbol.asyncDispose]: () => rm(folder, { recursive: true, force: true }) }
}

type Fault = 'fails' | 'fails after the deed' | 'dies' | 'dies after the deed'

/** A backend that is well until its put number `faultAt`; one that dies does nothing ever after. */
function faultyBackend(backend: Backend, faultAt: number, fault: Fault): Backend & { putCount(): number } {
  let puts = 0
  let dead = false
  const refuse = () => {
    throw new Failure('REPOSITORY_IO', 'the storage is gone')
  }
  return {
    location: backend.location,
    putCount: () => puts,
    async put(key, parts) {
      if (dead) refuse()
      puts += 1
      const isNow = puts === faultAt
      if (isNow && fault.startsWith('dies')) dead = true
      if (isNow && !fault.endsWith('deed')) refuse()
      const outcome = await backend.put(key, parts)
      return isNow ? refuse() : outcome
    },
    get: (key, maxBytes) => backend.get(key, maxBytes),
    read: (key, offset, target) => backend.read(key, offset, target),
    list: (prefix) => backend.list(prefix),
    async delete(key) {
      if (dead) refuse()
      await backend.delete(key)
    },
    sweep: async () => (dead ? refuse() : backend.sweep()),
    [Symbol.asyncDispose]: () => backend[Symbol.asyncDispose](),
  }
}

function defineTests(): void {
  for (const fault of ['fails', 'fails after the deed', 'dies', 'dies after the deed'] as const) {
    test(`a backend that ${fault} at any put: only whole points, and the next backup works`, async () => {
      await using place = await temporaryRepository()
      let expected = 0
      for (let faultAt = 1, done = false; !done; faultAt += 1) {
        const backend = faultyBackend(openLocalBackend(place.folder), faultAt, fault)
        await using repository = await openRepositoryOn(backend)
        try {
          await writePoint(repository, faultAt, 140) // more than one pack
          done = backend.putCount() < faultAt
          expected += 1
        } catch (error) {
          const first = primaryError(error)
          assert.ok(first instanceof Failure && first.code === 'REPOSITORY_IO', String(first))
        }
        await recover(place.folder)
        await using recovered = await openRepository(place.folder)
        const found = await checkPoints(recovered)
        // A manifest that was stored while its writer died is a recovery point: all of it was durable before.
        const mayBeMore = fault === 'dies after the deed' && found === expected + 1
        assert.ok(found === expected || mayBeMore, `${found} points after put ${faultAt}, ${expected} expected`)
        expected = found
      }
      assert.ok(expected >= 1)
      await using repository = await openRepository(place.folder)
      assert.deepEqual((await repository.verify()).damage, [])
    })
  }

  test('kill -9 at random moments: only whole points, and the next backup works', async () => {
    await using place = await temporaryRepository()
    for (let round = 1; round <= 6; round += 1) {
      const child = spawn(process.execPath, [import.meta.filename, 'write', place.folder, String(round * 1000)], {
        stdio: ['ignore', 'pipe', 'inherit'],
      })
      await once(child.stdout, 'data') // it has begun
      await delay(Math.random() * 300)
      const isWriting = (await draftIds(place.folder)).at(-1)
      await using repository = await openRepository(place.folder)
      if (isWriting !== undefined && child.exitCode === null) {
        const inUse = (error: unknown) => error instanceof Failure && error.code === 'REPOSITORY_DRAFT_IN_USE'
        await repository.discardUnfinished(isWriting).catch((error: unknown) => assert.ok(inUse(error), String(error)))
      }
      child.kill('SIGKILL')
      await once(child, 'exit')
      await recover(place.folder)
      const before = await checkPoints(repository)
      await writePoint(repository, round, 20)
      assert.equal(await checkPoints(repository), before + 1)
      assert.deepEqual(await readdir(path.join(place.folder, 'tmp')), [])
    }
    await using repository = await openRepository(place.folder)
    assert.deepEqual((await repository.verify()).damage, [])
  })
}

const [, , role, folder = '', firstSeed] = process.argv
if (role === 'write') {
  await using repository = await openRepository(folder)
  process.stdout.write('begun\n')
  for (let seed = Number(firstSeed); ; seed += 1) await writePoint(repository, seed, 150)
} else {
  defineTests()
}
