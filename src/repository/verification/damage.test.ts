/**
 * Damage: a flipped bit, a cut file, a missing file. Nothing damaged is ever returned, and verify names all of it.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtemp, readdir, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { openMemoryRepository } from '../../../test/sim/memory-repository.ts'
import { Failure } from '../../base/failure.ts'
import { recordHeaderBytes, scanPack } from '../format.ts'
import { createRepository, openRepository, type RecoveryPoint, type Repository } from '../repository.ts'

const chunkSizeBytes = 128 * 1024 // larger than what is done on the spot: the threads take part
const streamBytes = 3 * chunkSizeBytes + 1000

/** A repository with two points that share all but one chunk, closed again. */
async function twoPoints() {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-damage-'))
  await using repository = await createRepository(folder, { chunkSizeBytes, encryption: 'none' })
  const data = Buffer.concat([
    randomBytes(chunkSizeBytes),
    Buffer.alloc(2 * chunkSizeBytes, 'some text '),
    randomBytes(1000),
  ])
  const first = await writePoint(repository, data)
  const changed = Buffer.from(data)
  changed.fill('other text', 2 * chunkSizeBytes, 3 * chunkSizeBytes)
  const second = await writePoint(repository, changed)
  return {
    folder,
    first,
    second,
    data,
    changed,
    [Symbol.asyncDispose]: () => rm(folder, { recursive: true, force: true }),
  }
}

async function writePoint(repository: Repository, data: Buffer): Promise<RecoveryPoint> {
  await using draft = await repository.beginPoint()
  await using stream = await draft.openStream('vms/1/disks/sda', streamBytes)
  for (let number = 0; number * chunkSizeBytes < data.length; number += 1) {
    await stream.writeChunk(number, data.subarray(number * chunkSizeBytes, (number + 1) * chunkSizeBytes))
  }
  await stream.finish()
  await draft.putDocument('note', Buffer.from('a note'))
  return draft.commit({})
}

async function onlyFile(folder: string): Promise<string> {
  const [name, ...others] = await readdir(folder)
  assert.ok(name !== undefined && others.length === 0)
  return path.join(folder, name)
}

const firstPack = (place: { folder: string; first: RecoveryPoint }) =>
  onlyFile(path.join(place.folder, 'packs', place.first.id))

async function flipBit(file: string, offset: number): Promise<void> {
  const bytes = await readFile(file)
  bytes[offset] = (bytes[offset] ?? 0) ^ 0x10
  await writeFile(file, bytes)
}

test('a flipped bit in a pack: reading refuses, and verify names every point, stream and offset behind it', async () => {
  await using place = await twoPoints()
  const pack = await firstPack(place)
  const records = [...scanPack(await readFile(pack))]
  const raw = records.find((record) => record.plainBytes === chunkSizeBytes && record.storedBytes === chunkSizeBytes)
  assert.ok(raw !== undefined)
  await flipBit(pack, raw.offset + recordHeaderBytes + 5000)

  await using repository = await openRepository(place.folder)
  const progress: number[] = []
  const report = await repository.verify({ onProgress: (done, total) => progress.push(done / total) })
  const reason = 'the data does not match its digest'
  const damage = { kind: 'stream', name: 'vms/1/disks/sda', offset: 0, length: chunkSizeBytes, reason }
  assert.deepEqual(report.damage, [
    { point: place.first.id, ...damage },
    { point: place.second.id, ...damage },
  ])
  assert.equal(progress.at(-1), 1)
  await using source = await (await repository.point(place.second.id)).openStream('vms/1/disks/sda')
  await assert.rejects(source.read(10, Buffer.alloc(10)), (error) => {
    assert.ok(error instanceof Failure)
    assert.equal(error.code, 'REPOSITORY_CHUNK_CORRUPT')
    assert.equal(error.context.offset, 0)
    assert.equal(error.context.stream, 'vms/1/disks/sda')
    return true
  })
  const rest = Buffer.alloc(streamBytes - chunkSizeBytes)
  await source.read(chunkSizeBytes, rest)
  assert.ok(rest.equals(place.changed.subarray(chunkSizeBytes)))
})

test('a bit flipped anywhere in a pack is never returned as data', async () => {
  await using place = await twoPoints()
  const pack = await firstPack(place)
  const whole = await readFile(pack)
  for (let trial = 0; trial < 25; trial += 1) {
    const offset = Math.floor(Math.random() * whole.length)
    await flipBit(pack, offset)
    await using repository = await openRepository(place.folder)
    for (const { id, data } of [
      { id: place.first.id, data: place.data },
      { id: place.second.id, data: place.changed },
    ]) {
      try {
        await using source = await (await repository.point(id)).openStream('vms/1/disks/sda')
        const target = Buffer.alloc(streamBytes)
        await source.read(0, target)
        assert.ok(target.equals(data), `bit at ${offset}`)
      } catch (error) {
        assert.ok(error instanceof Failure && error.code === 'REPOSITORY_CHUNK_CORRUPT', String(error))
      }
    }
    await writeFile(pack, whole)
  }
})

test('a pack that is cut off or gone is named by verify and refused by reading', async () => {
  await using place = await twoPoints()
  const pack = await firstPack(place)
  await truncate(pack, Math.floor((await stat(pack)).size / 2))
  {
    await using repository = await openRepository(place.folder)
    const report = await repository.verify({ points: [place.first.id] })
    assert.ok(report.damage.length > 0)
    assert.deepEqual(report.points, [place.first.id])
  }
  await rm(pack)
  await using repository = await openRepository(place.folder)
  const report = await repository.verify()
  const total = report.damage.filter(({ kind }) => kind === 'stream').reduce((sum, { length }) => sum + length, 0)
  assert.equal(total, streamBytes + streamBytes - chunkSizeBytes) // one chunk of the second point stands in its own pack
  assert.ok(report.damage.some(({ kind, name }) => kind === 'document' && name === 'note'))
  const point = await repository.point(place.first.id)
  await assert.rejects(
    point.readDocument('note'),
    (error) => error instanceof Failure && error.code === 'REPOSITORY_CHUNK_CORRUPT',
  )
})

test('a damaged index stops nobody: it is named, and backups, reads and verify of what others name go on', async () => {
  await using place = await twoPoints()
  const index = await onlyFile(path.join(place.folder, 'indexes', place.first.id))
  for (const spoil of [() => flipBit(index, 30), () => truncate(index, 100), () => truncate(index, 0)]) {
    await spoil()
    await using repository = await openRepository(place.folder)
    const damaged = await repository.listDamagedIndexes()
    assert.deepEqual(
      damaged.map(({ key }) => path.join(place.folder, key)),
      [index],
    )
    assert.ok((await repository.listPoints()).length >= 2)
    assert.ok((await repository.verify()).damage.some(({ reason }) => reason === 'no index names this chunk'))
    const third = await writePoint(repository, place.data)
    await using source = await third.openStream('vms/1/disks/sda')
    const target = Buffer.alloc(streamBytes)
    await source.read(0, target)
    assert.ok(target.equals(place.data))
    await repository.deletePoint(third.id)
    await rm(path.join(place.folder, 'indexes', third.id), { recursive: true, force: true })
  }
})

test('a damaged manifest is in the second list, never silently gone', async () => {
  await using place = await twoPoints()
  const manifest = path.join(place.folder, 'points', `${place.first.id}.json`)
  const whole = await readFile(manifest)
  const spoils = [
    () => flipBit(manifest, whole.length - 20),
    () => truncate(manifest, whole.length - 1),
    () => truncate(manifest, 0),
  ]
  for (const spoil of spoils) {
    await spoil()
    await using repository = await openRepository(place.folder)
    assert.deepEqual(
      (await repository.listPoints()).map(({ id }) => id),
      [place.second.id],
    )
    assert.deepEqual(
      (await repository.listDamagedPoints()).map(({ id }) => id),
      [place.first.id],
    )
    assert.deepEqual(
      (await repository.verify()).damagedPoints.map(({ id }) => id),
      [place.first.id],
    )
    await assert.rejects(
      repository.point(place.first.id),
      (error) => error instanceof Failure && error.code === 'RECOVERY_POINT_DAMAGED',
    )
    await writeFile(manifest, whole)
  }
})

test('verify stops when it is told to', async () => {
  await using place = await twoPoints()
  await using repository = await openRepository(place.folder)
  await assert.rejects(repository.verify({ signal: AbortSignal.abort() }), { name: 'AbortError' })
})

test('damage that was read ahead and is mended meanwhile is damage no longer; a verify reads what there is now', async () => {
  await using place = await openMemoryRepository(chunkSizeBytes)
  const data = randomBytes(6 * chunkSizeBytes)
  await using draft = await place.repository.beginPoint()
  {
    await using stream = await draft.openStream('disk', data.length)
    for (let number = 0; number < 6; number += 1) {
      await stream.writeChunk(number, data.subarray(number * chunkSizeBytes, (number + 1) * chunkSizeBytes))
    }
    await stream.finish()
  }
  const point = await draft.commit({})
  const pack = [...place.backend.objects].find(([key]) => key.startsWith('packs/'))?.[1] ?? assert.fail()
  const flip = () => {
    const at = pack.indexOf(data.subarray(3 * chunkSizeBytes, 3 * chunkSizeBytes + 32)) + 1000
    pack[at] = (pack[at] ?? 0) ^ 1
  }
  await using again = await place.openAgain()
  await using source = await (await again.point(point.id)).openStream('disk')
  const read = async (chunk: number, from = source) => {
    const target = Buffer.alloc(chunkSizeBytes)
    await from.read(chunk * chunkSizeBytes, target)
    assert.ok(target.equals(data.subarray(chunk * chunkSizeBytes, (chunk + 1) * chunkSizeBytes)))
  }
  flip()
  for (const chunk of [0, 1, 2]) await read(chunk)
  await assert.rejects(read(3), (error) => error instanceof Failure && error.code === 'REPOSITORY_CHUNK_CORRUPT')
  await read(4)
  flip()
  await read(3)
  // What was read ahead while it was damaged, and never asked for until it was whole again.
  await using other = await place.openAgain()
  await using ahead = await (await other.point(point.id)).openStream('disk')
  flip()
  for (const chunk of [0, 1]) await read(chunk, ahead)
  flip()
  await read(3, ahead)
  // A verify reads what there is now.
  flip()
  assert.equal((await other.verify()).damage.length, 1)
})
