/**
 * Everything that works on packs and indexes works on encrypted ones: incremental points, pins, collection that copies
 * records from pack to pack, and indexes made again from packs alone.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtemp, readdir, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { createRepository, openRepository, type RecoveryPoint, type Repository } from '../repository.ts'
import { makeKeyFile } from './key-secret.ts'

const blockBytes = 64 * 1024
const chunkSizeBytes = 2 * blockBytes
const chunks = 40

async function temporary() {
  const home = await mkdtemp(path.join(tmpdir(), 'umbra-encrypted-'))
  const keyFile = path.join(home, 'key')
  await makeKeyFile(keyFile)
  const folder = path.join(home, 'repository')
  return { folder, keyFile, [Symbol.asyncDispose]: () => rm(home, { recursive: true, force: true }) }
}

async function writeWhole(repository: Repository, data: Buffer): Promise<RecoveryPoint> {
  await using draft = await repository.beginPoint()
  await using stream = await draft.openStream('disk', data.length)
  for (let number = 0; number * chunkSizeBytes < data.length; number += 1) {
    await stream.writeChunk(number, data.subarray(number * chunkSizeBytes, (number + 1) * chunkSizeBytes))
  }
  await stream.finish()
  return draft.commit({})
}

async function holds(point: RecoveryPoint, data: Buffer): Promise<void> {
  await using source = await point.openStream('disk')
  const target = Buffer.alloc(data.length)
  await source.read(0, target)
  assert.ok(target.equals(data))
}

async function bytesIn(folder: string): Promise<number> {
  let bytes = 0
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    if (entry.isFile()) bytes += (await stat(path.join(entry.parentPath, entry.name))).size
  }
  return bytes
}

test('an incremental point stores the changed blocks, encrypted, and reads as a whole', async () => {
  await using place = await temporary()
  const encryption = { keyFile: place.keyFile }
  await using repository = await createRepository(place.folder, { chunkSizeBytes, encryption })
  const first = randomBytes(chunks * chunkSizeBytes)
  const full = await writeWhole(repository, first)
  const second = Buffer.from(first)
  const changed = Buffer.alloc(blockBytes, 'changed text ')
  second.set(changed, 3 * chunkSizeBytes + blockBytes)
  second.fill(0, 5 * chunkSizeBytes, 5 * chunkSizeBytes + blockBytes)
  await using draft = await repository.beginPoint()
  await using stream = await draft.openStream('disk', first.length, { point: full, stream: 'disk' })
  for await (const unusable of stream.unusableChunks()) assert.fail(`chunk ${unusable}`)
  await stream.writeBlocks(3, [1], changed)
  await stream.zeroBlocks(5, [0])
  await stream.finish()
  const point = await draft.commit({})
  await repository.pin(point.id, 'a reason that nobody may read')
  await using other = await openRepository(place.folder, { unlock: encryption })
  await holds(await other.point(point.id), second)
  await holds(await other.point(full.id), first)
  assert.equal((await other.pins()).get(point.id)?.note, 'a reason that nobody may read')
  assert.deepEqual((await other.verify()).damage, [])
})

test('collection copies encrypted records into other packs, where they are read again', async () => {
  await using place = await temporary()
  const encryption = { keyFile: place.keyFile }
  await using repository = await createRepository(place.folder, { chunkSizeBytes, encryption })
  const first = randomBytes(chunks * chunkSizeBytes)
  const whole = await writeWhole(repository, first)
  const second = randomBytes(chunks * chunkSizeBytes)
  second.set(first.subarray(0, 2 * chunkSizeBytes)) // keeps two chunks of a pack that is garbage else
  const kept = await writeWhole(repository, second)
  await repository.deletePoint(whole.id)
  const before = await bytesIn(path.join(place.folder, 'packs'))
  await repository.collect({ delayMs: 0 })
  await repository.collect({ delayMs: 0 })
  assert.ok((await bytesIn(path.join(place.folder, 'packs'))) < before * 0.6)
  assert.deepEqual((await readdir(path.join(place.folder, 'packs'))).includes(whole.id), false)
  await using other = await openRepository(place.folder, { unlock: encryption })
  await holds(await other.point(kept.id), second)
  assert.deepEqual((await other.verify()).damage, [])
})

test('indexes are made again from encrypted packs alone', async () => {
  await using place = await temporary()
  const encryption = { keyFile: place.keyFile }
  const data = randomBytes(chunks * chunkSizeBytes)
  {
    await using repository = await createRepository(place.folder, { chunkSizeBytes, encryption })
    await writeWhole(repository, data)
  }
  await rm(path.join(place.folder, 'indexes'), { recursive: true })
  await using repository = await openRepository(place.folder, { unlock: encryption })
  await repository.repairIndex()
  const [point] = await repository.listPoints()
  assert.ok(point !== undefined)
  await holds(point, data)
})
