/**
 * The repository as its users see it: what was written comes back, what is shared is stored once, what is damaged is named.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import fc from 'fast-check'
import { blockDeviceContract } from '../../test/contract/block-device.contract.ts'
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
  await using repository = await createRepository(place.folder, { chunkSizeBytes, encryption: 'none' })
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

test('extents tell data from zeros without reading, merged', async () => {
  await using place = await temporaryFolder()
  await using repository = await createRepository(place.folder, { chunkSizeBytes, encryption: 'none' })
  await using draft = await repository.beginPoint()
  const chunkCount = 5 * 4096 + 3 // six segments of the map, most of them zeros
  await using stream = await draft.openStream('disk', chunkCount * chunkSizeBytes - 7)
  for (const number of [1, 2, 4095, 4096, 3 * 4096]) await stream.writeChunk(number, randomBytes(chunkSizeBytes))
  await stream.writeChunk(chunkCount - 1, randomBytes(chunkSizeBytes - 7))
  await stream.writeChunk(0, Buffer.alloc(chunkSizeBytes))
  await stream.finish()
  await using source = await (await draft.commit({})).openStream('disk')
  const runs: string[] = []
  for await (const extent of source.extents(0, source.sizeBytes)) {
    const first = extent.offset / chunkSizeBytes
    const length = Math.ceil(extent.length / chunkSizeBytes)
    runs.push(`${extent.data ? 'data' : 'zero'} ${first}+${length}`)
  }
  const expected =
    'zero 0+1, data 1+2, zero 3+4092, data 4095+2, zero 4097+8191, data 12288+1, zero 12289+8193, data 20482+1'
  assert.equal(runs.join(', '), expected)
})

test('any read of any stream answers what was written', async () => {
  await using place = await temporaryFolder()
  await using repository = await createRepository(place.folder, { chunkSizeBytes, encryption: 'none' })
  const data = randomBytes(6 * chunkSizeBytes + 4321)
  data.fill(0, chunkSizeBytes, 2 * chunkSizeBytes)
  data.fill('a', 3 * chunkSizeBytes, 4 * chunkSizeBytes)
  await using source = await (await writeStream(repository, 'disk', data)).openStream('disk')
  const range = fc
    .tuple(fc.nat(data.length), fc.nat(data.length))
    .map(([one, other]) => [Math.min(one, other), Math.max(one, other)] as const)
  await fc.assert(
    fc.asyncProperty(fc.array(range, { minLength: 1, maxLength: 8 }), async (ranges) => {
      const reads = ranges.map(async ([start, end]) => {
        const target = Buffer.alloc(end - start)
        await source.read(start, target)
        assert.ok(target.equals(data.subarray(start, end)))
      })
      await Promise.all(reads)
    }),
    { numRuns: 30 },
  )
})

test('chunks that are there are not stored again, by the same repository or another process', async () => {
  await using place = await temporaryFolder()
  await using repository = await createRepository(place.folder, { chunkSizeBytes, encryption: 'none' })
  const data = randomBytes(4 * chunkSizeBytes)
  await writeStream(repository, 'disk', data)
  const changed = Buffer.from(data)
  changed.fill('new', 0, 100)
  const second = await writeStream(repository, 'disk', changed)
  assert.equal(second.streams[0]?.newChunks, 1)
  assert.equal(second.streams[0]?.knownChunks, 3)
  await using other = await openRepository(place.folder)
  const third = await writeStream(other, 'disk', changed)
  assert.equal(third.streams[0]?.newChunks, 0)
  assert.equal(third.streams[0]?.storedBytes, 0)
  assert.deepEqual(await readStream(await repository.point(third.id), 'disk'), changed)
})

test('two drafts at once do not rely on each other: one is discarded, the other restores', async () => {
  await using place = await temporaryFolder()
  await using repository = await createRepository(place.folder, { chunkSizeBytes, encryption: 'none' })
  const data = randomBytes(3 * chunkSizeBytes)
  let kept: RecoveryPoint
  {
    await using discarded = await repository.beginPoint()
    await using first = await discarded.openStream('disk', data.length)
    for (const number of [0, 1, 2])
      await first.writeChunk(number, data.subarray(number * chunkSizeBytes, (number + 1) * chunkSizeBytes))
    await first.finish()
    kept = await writeStream(repository, 'disk', data)
  }
  assert.deepEqual(
    (await repository.listPoints()).map(({ id }) => id),
    [kept.id],
  )
  assert.deepEqual(await readStream(kept, 'disk'), data)
  assert.deepEqual((await repository.verify()).damage, [])
})

test('a draft that is disposed leaves nothing but its repository', async () => {
  await using place = await temporaryFolder()
  await using repository = await createRepository(place.folder, { chunkSizeBytes, encryption: 'none' })
  {
    await using draft = await repository.beginPoint()
    await using stream = await draft.openStream('disk', 400 * chunkSizeBytes)
    for (let number = 0; number < 400; number += 1) await stream.writeChunk(number, randomBytes(chunkSizeBytes))
    await draft.putDocument('note', Buffer.from('note'))
  }
  const files = (await filesUnder(place.folder)).map((file) => path.relative(place.folder, file))
  assert.deepEqual(files, ['umbra-repository.json'])
})

test('a point is found by the beginning of its id and by its last letters, and only if that is clear', async () => {
  await using place = await temporaryFolder()
  await using repository = await createRepository(place.folder, { chunkSizeBytes, encryption: 'none' })
  const one = await writeStream(repository, 'disk', Buffer.alloc(10, 1))
  const other = await writeStream(repository, 'disk', Buffer.alloc(10, 2))
  assert.match(one.id, /^\d{8}T\d{6}Z-[a-z0-9]{4}$/)
  assert.equal((await repository.point(one.id.slice(-4))).id, one.id)
  assert.equal((await repository.point(other.id)).id, other.id)
  await assert.rejects(repository.point(one.id.slice(0, 6)), withCode('RECOVERY_POINT_AMBIGUOUS'))
  await assert.rejects(repository.point('1999'), withCode('RECOVERY_POINT_NOT_FOUND'))
  await assert.rejects(one.openStream('other'), withCode('RECOVERY_POINT_PART_NOT_FOUND'))
  await assert.rejects(one.readDocument('other'), withCode('RECOVERY_POINT_PART_NOT_FOUND'))
  await repository.deletePoint(one.id)
  await repository.deletePoint(one.id)
  await assert.rejects(repository.point(one.id), withCode('RECOVERY_POINT_NOT_FOUND'))
  assert.deepEqual(await readStream(other, 'disk'), Buffer.alloc(10, 2))
})

test('what is no repository is refused, each in its own words', async () => {
  await using place = await temporaryFolder()
  const file = path.join(place.folder, 'file')
  await writeFile(file, 'x')
  await assert.rejects(openRepository(path.join(place.folder, 'nothing')), withCode('REPOSITORY_NOT_FOUND'))
  await assert.rejects(openRepository(file), withCode('REPOSITORY_NOT_ONE'))
  await assert.rejects(openRepository(place.folder), withCode('REPOSITORY_NOT_ONE'))
  await assert.rejects(createRepository(file, { encryption: 'none' }), withCode('REPOSITORY_NOT_ONE'))
  await assert.rejects(createRepository(place.folder, { encryption: 'none' }), withCode('REPOSITORY_NOT_EMPTY'))
  const folder = path.join(place.folder, 'made')
  await using repository = await createRepository(folder, { chunkSizeBytes, encryption: 'none' })
  await assert.rejects(createRepository(folder, { encryption: 'none' }), withCode('REPOSITORY_NOT_EMPTY'))
  assert.equal(repository.chunkSizeBytes, chunkSizeBytes)
  await assert.rejects(
    createRepository(path.join(place.folder, 'bad'), { chunkSizeBytes: 100_000, encryption: 'none' }),
    withCode('USAGE'),
  )
})

test('a repository of a newer format is refused, and a spoiled configuration is damage', async () => {
  await using place = await temporaryFolder()
  await (await createRepository(place.folder, { chunkSizeBytes, encryption: 'none' }))[Symbol.asyncDispose]()
  const config = path.join(place.folder, 'umbra-repository.json')
  const text = await readFile(config, 'utf8')
  await writeFile(config, text.replace('"format":1', '"format":2'))
  await assert.rejects(openRepository(place.folder), withCode('REPOSITORY_NEWER_FORMAT'))
  await writeFile(config, text.replace('"features":[]', '"features":["something newer"]'))
  await assert.rejects(openRepository(place.folder), withCode('REPOSITORY_NEWER_FORMAT'))
  await writeFile(config, text.replace('65536', '131072'))
  await assert.rejects(openRepository(place.folder), withCode('REPOSITORY_DAMAGED'))
})

test('the repository of a whole disk of zeros is small, and so is its map', async () => {
  await using place = await temporaryFolder()
  await using repository = await createRepository(place.folder, { encryption: 'none' })
  await using draft = await repository.beginPoint()
  const sizeBytes = 10 * 1024 ** 4
  await using stream = await draft.openStream('disk', sizeBytes)
  await stream.writeChunk(12_345_678, randomBytes(repository.chunkSizeBytes))
  const summary = await stream.finish()
  assert.equal(summary.zeroChunks, sizeBytes / repository.chunkSizeBytes - 1)
  await using source = await (await draft.commit({})).openStream('disk')
  const start = Buffer.alloc(8192, 1)
  await source.read(0, start)
  assert.ok(start.equals(Buffer.alloc(8192)))
  let stored = 0
  for (const file of await filesUnder(path.join(place.folder, 'packs'))) stored += (await readFile(file)).length
  assert.ok(stored < repository.chunkSizeBytes + 16_384, `${stored} bytes`)
})

blockDeviceContract('a stream of a recovery point', async (content) => {
  const place = await temporaryFolder()
  const repository = await createRepository(place.folder, { encryption: 'none' }) // chunks of the usual size
  await using draft = await repository.beginPoint()
  await using stream = await draft.openStream('disk', content.length)
  const size = repository.chunkSizeBytes
  for (let number = 0; number * size < content.length; number += 1) {
    await stream.writeChunk(number, content.subarray(number * size, (number + 1) * size))
  }
  await stream.finish()
  const source = await (await draft.commit({})).openStream('disk')
  let closed = false
  return {
    sizeBytes: source.sizeBytes,
    read: (offset, target) => source.read(offset, target),
    extents: (offset, length) => source.extents(offset, length),
    async [Symbol.asyncDispose]() {
      await source[Symbol.asyncDispose]()
      if (closed) return
      closed = true
      await repository[Symbol.asyncDispose]()
      await place[Symbol.asyncDispose]()
    },
  }
})
