/**
 * The repository as its users see it: what was written comes back, what is shared is stored once, what is damaged is named.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import fc from 'fast-check'
import { Failure } from '../base/failure.ts'
import type { BlockSource } from '../disk/block-device.ts'
import { createRepository, openRepository, type RecoveryPoint, type Repository } from './repository.ts'

const chunkSizeBytes = 64 * 1024

async function temporaryFolder() {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-repository-'))
  return { folder, [Symbol.asyncDispose]: () => rm(folder, { recursive: true, force: true }) }
}

async function writeStream(repository: Repository, name: string, data: Buffer): Promise<RecoveryPoint> {
  await using draft = await repository.beginPoint()
  await using stream = await draft.openStream(name, data.length)
  for (let number = 0; number * chunkSizeBytes < data.length; number += 1) {
    await stream.writeChunk(number, data.subarray(number * chunkSizeBytes, (number + 1) * chunkSizeBytes))
  }
  await stream.finish()
  return draft.commit({ why: 'test' })
}

async function readAll(source: BlockSource): Promise<Buffer> {
  const data = Buffer.alloc(source.sizeBytes, 0xaa)
  await source.read(0, data)
  return data
}

async function readStream(point: RecoveryPoint, name: string): Promise<Buffer> {
  await using source = await point.openStream(name)
  return readAll(source)
}

const withCode = (code: string) => (error: unknown) => error instanceof Failure && error.code === code

async function filesUnder(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => [])
  return entries.filter((entry) => entry.isFile()).map((entry) => path.join(entry.parentPath, entry.name))
}

test('what was written comes back, with its documents and its content', async () => {
  await using place = await temporaryFolder()
  await using repository = await createRepository(place.folder, { chunkSizeBytes })
  const name = 'vms/7e1b0c9e-0000-4000-8000-000000000001/disks/sda'
  const data = Buffer.concat([randomBytes(150_000), Buffer.alloc(300_000), Buffer.alloc(99_999, 'text ')])
  await using draft = await repository.beginPoint()
  await using stream = await draft.openStream(name, data.length)
  for (let number = Math.ceil(data.length / chunkSizeBytes) - 1; number >= 0; number -= 1) {
    await stream.writeChunk(number, data.subarray(number * chunkSizeBytes, (number + 1) * chunkSizeBytes))
  }
  const summary = await stream.finish()
  await draft.putDocument('domain.xml', Buffer.from('<domain/>'))
  await draft.putDocument('empty', Buffer.alloc(0))
  const committed = await draft.commit({ vms: [{ name: 'web01' }] })
  assert.deepEqual(await readStream(committed, name), data)

  await using other = await openRepository(place.folder)
  const point = await other.point(committed.id.slice(0, 8))
  assert.equal(point.id, committed.id)
  assert.deepEqual(point.content, { vms: [{ name: 'web01' }] })
  assert.deepEqual(point.documents, ['domain.xml', 'empty'])
  assert.deepEqual(point.streams, [summary])
  assert.equal(summary.newChunks + summary.knownChunks + summary.zeroChunks, Math.ceil(data.length / chunkSizeBytes))
  assert.equal(summary.readBytes, data.length)
  assert.deepEqual(await readStream(point, name), data)
  assert.equal(Buffer.from(await point.readDocument('domain.xml')).toString(), '<domain/>')
  assert.equal((await point.readDocument('empty')).length, 0)
  assert.deepEqual((await repository.verify()).damage, [])
})
