/**
 * The golden repository of format 1, made by the first program that wrote it: it still opens, verifies and restores.
 * How it was made: test/golden/repository-1.make.ts.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { goldenDisk } from '../../test/golden/repository-1.make.ts'
import { goldenKeyFile, goldenPassphrase } from '../../test/golden/repository-1-encrypted.make.ts'
import { decodePackEnd, scanPack, tocEntries } from './format.ts'
import { plainSeal } from './keys/seal.ts'
import { openRepository, type Repository } from './repository.ts'

async function goldenRepository(name = 'repository-1') {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-golden-'))
  execFileSync('tar', ['-C', folder, '-xzf', path.join(import.meta.dirname, `../../test/golden/${name}.tar.gz`)])
  return { folder, [Symbol.asyncDispose]: () => rm(folder, { recursive: true, force: true }) }
}

const disks = 'vms/7e1b0c9e-1111-4222-8333-444455556666/disks'

test('a repository of format 1 opens, verifies and restores', async () => {
  await using golden = await goldenRepository()
  await using repository = await openRepository(golden.folder)
  await holdsGoldenPoints(repository)
})

test('an encrypted repository of format 1 opens with its passphrase and with its key file, verifies and restores', async () => {
  await using golden = await goldenRepository('repository-1-encrypted')
  await assert.rejects(openRepository(golden.folder), { code: 'REPOSITORY_LOCKED' })
  const keyFile = path.join(golden.folder, 'key')
  await writeFile(keyFile, goldenKeyFile)
  const passphrase = async () => goldenPassphrase.normalize('NFD')
  for (const unlock of [{ passphrase }, { keyFile }]) {
    await using repository = await openRepository(golden.folder, { unlock })
    await holdsGoldenPoints(repository)
  }
})

async function holdsGoldenPoints(repository: Repository): Promise<void> {
  assert.equal(repository.chunkSizeBytes, 65536)
  const points = await repository.listPoints()
  assert.deepEqual(
    points.map(({ content }) => content),
    [
      { day: 1, label: 'golden ✓' },
      { day: 2, label: 'golden ✓' },
    ],
  )
  assert.deepEqual(await repository.listDamagedPoints(), [])
  for (const [index, point] of points.entries()) {
    const day = index === 0 ? 1 : 2
    await using source = await point.openStream(`${disks}/sda`)
    const read = Buffer.alloc(source.sizeBytes, 1)
    await source.read(0, read)
    assert.ok(read.equals(goldenDisk(day)))
    await using empty = await point.openStream(`${disks}/empty`)
    assert.equal(empty.sizeBytes, 1024 ** 4)
    assert.equal(Buffer.from(await point.readDocument('components.xml')).toString(), `<components day="${day}"/>`)
  }
  assert.equal(points[1]?.streams[0]?.knownChunks, 2)
  const report = await repository.verify()
  assert.deepEqual(report.damage, [])
  assert.equal(report.points.length, 2)
}

test('every pack of format 1 tells what it holds without any index', async () => {
  await using golden = await goldenRepository()
  const packs = (await readdir(path.join(golden.folder, 'packs'), { recursive: true, withFileTypes: true })).filter(
    (entry) => entry.isFile(),
  )
  assert.equal(packs.length, 2)
  for (const { parentPath, name } of packs) {
    const pack = await readFile(path.join(parentPath, name))
    const { toc, digest } = decodePackEnd(plainSeal, pack)
    assert.equal(digest.toString('hex'), name)
    assert.deepEqual([...scanPack(pack)], [...tocEntries(toc)])
  }
})
