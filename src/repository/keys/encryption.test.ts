/**
 * An encrypted repository in hostile hands: whatever is swapped, moved, forged or flipped is refused, never wrong bytes, and
 * what lies there tells nothing to who has no key.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { cp, mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { Failure } from '../../base/failure.ts'
import { blake3Digest } from '../chunks/blake3.ts'
import { decodePackEnd, tocEntries } from '../format.ts'
import { encodeManifest } from '../recovery-point.ts'
import { createRepository, openRepository, type Repository } from '../repository.ts'
import { makeKeyFile } from './key-secret.ts'
import { keyedSeal } from './keyed-seal.ts'
import { plainSeal, type Seal } from './seal.ts'

const chunkSizeBytes = 128 * 1024 // larger than what is done on the spot: the threads take part
const secretText = Buffer.from('a note that nobody may read')
const disk = Buffer.concat([
  randomBytes(chunkSizeBytes),
  Buffer.alloc(chunkSizeBytes, 'some text that nobody may read '),
  Buffer.alloc(chunkSizeBytes),
  randomBytes(1000),
])

interface Place extends AsyncDisposable {
  readonly folder: string
  readonly keyFile: string
  /** Of the two points, and what each holds. */
  readonly points: readonly { readonly id: string; readonly data: Buffer }[]
}

/** An encrypted repository with two points, closed again. */
async function encrypted(): Promise<Place> {
  const home = await mkdtemp(path.join(tmpdir(), 'umbra-encryption-'))
  const folder = path.join(home, 'repository')
  const keyFile = path.join(home, 'key')
  await makeKeyFile(keyFile)
  await using repository = await createRepository(folder, { chunkSizeBytes, encryption: { keyFile } })
  const changed = Buffer.from(disk).fill('other text ', chunkSizeBytes, 2 * chunkSizeBytes)
  const points = [await writePoint(repository, disk), await writePoint(repository, changed)]
  return { folder, keyFile, points, [Symbol.asyncDispose]: () => rm(home, { recursive: true, force: true }) }
}

async function writePoint(repository: Repository, data: Buffer) {
  await using draft = await repository.beginPoint()
  await using stream = await draft.openStream('vms/1/disks/sda', data.length)
  for (let number = 0; number * chunkSizeBytes < data.length; number += 1) {
    await stream.writeChunk(number, data.subarray(number * chunkSizeBytes, (number + 1) * chunkSizeBytes))
  }
  await stream.finish()
  await draft.putDocument('note', secretText)
  const { id } = await draft.commit({ about: 'content that nobody may read' })
  return { id, data }
}

/** Reads all that should be there; what comes must be right. Answers the codes of the refusals. */
async function refusals({ folder, keyFile, points }: Place): Promise<string[]> {
  const codes: string[] = []
  const orRefused = async (read: () => Promise<void>) => {
    try {
      await read()
    } catch (error) {
      if (!(error instanceof Failure)) throw error
      codes.push(error.code)
    }
  }
  await orRefused(async () => {
    await using repository = await openRepository(folder, { unlock: { keyFile } })
    for (const { id, data } of points) {
      await orRefused(async () => {
        const point = await repository.point(id)
        assert.deepEqual(point.content, { about: 'content that nobody may read' })
        await orRefused(async () => assert.deepEqual(Buffer.from(await point.readDocument('note')), secretText))
        await using source = await point.openStream('vms/1/disks/sda')
        const target = Buffer.alloc(data.length, 0xaa)
        await source.read(0, target)
        assert.ok(target.equals(data), 'wrong bytes')
      })
    }
  })
  return codes
}

async function files(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true })
  return entries.filter((entry) => entry.isFile()).map(({ parentPath, name }) => path.join(parentPath, name))
}

async function packsOf({ folder, points }: Place): Promise<string[]> {
  const packs = await Promise.all(points.map(({ id }) => files(path.join(folder, 'packs', id))))
  assert.deepEqual(
    packs.map(({ length }) => length),
    [1, 1],
  )
  return packs.flat()
}

const manifestOf = ({ folder, points }: Place, number: number) =>
  path.join(folder, 'points', `${points[number]?.id}.json`)

async function swap(one: string, other: string): Promise<void> {
  await rename(one, `${one}.aside`)
  await rename(other, one)
  await rename(`${one}.aside`, other)
}

test('what was written is read again with the key, by threads and on the spot', async () => {
  await using place = await encrypted()
  assert.deepEqual(await refusals(place), [])
  await using repository = await openRepository(place.folder, { unlock: { keyFile: place.keyFile } })
  const report = await repository.verify()
  assert.deepEqual([report.damage, report.damagedPoints], [[], []])
  assert.equal((await repository.listPoints())[1]?.streams[0]?.newChunks, 1)
})

test('without the key, with another one, and with one where none is needed nothing opens', async () => {
  await using place = await encrypted()
  await using other = await encrypted()
  const open = (unlock: object) => openRepository(place.folder, { unlock })
  await assert.rejects(openRepository(place.folder), { code: 'REPOSITORY_LOCKED' })
  await assert.rejects(open({ keyFile: other.keyFile }), { code: 'REPOSITORY_WRONG_KEY' })
  await assert.rejects(open({ passphrase: async () => 'a passphrase' }), { code: 'REPOSITORY_WRONG_KEY' })
  const plain = path.join(place.folder, '..', 'plain')
  await (await createRepository(plain, { chunkSizeBytes, encryption: 'none' }))[Symbol.asyncDispose]()
  const unlock = { keyFile: place.keyFile }
  await assert.rejects(openRepository(plain, { unlock }), { code: 'REPOSITORY_NOT_ENCRYPTED' })
  await using _ = await openRepository(plain, { unlock: { ...unlock, onlyIfNeeded: true } })
})

test('an open repository put in the place of the encrypted one is not given the next backup', async () => {
  await using place = await encrypted()
  const config = path.join(place.folder, 'umbra-repository.json')
  const [, content = ''] = (await readFile(config, 'utf8')).split('\n')
  const { encryption: _, ...open } = JSON.parse(content) as Record<string, unknown>
  const line = `${JSON.stringify(open)}\n`
  const header = {
    umbra: 'repository',
    format: 1,
    features: [],
    blake3: blake3Digest(Buffer.from(line)).toString('hex'),
  }
  await writeFile(config, `${JSON.stringify(header)}\n${line}`)
  assert.deepEqual(await refusals(place), ['REPOSITORY_NOT_ENCRYPTED'])
})

test('a configuration that somebody without the key has changed is refused once it is unlocked', async () => {
  await using place = await encrypted()
  const config = path.join(place.folder, 'umbra-repository.json')
  const [header = '', content = ''] = (await readFile(config, 'utf8')).split('\n')
  const line = `${content.replace('"compressionLevel":1', '"compressionLevel":2')}\n`
  assert.notEqual(line, `${content}\n`)
  const digest = blake3Digest(Buffer.from(line)).toString('hex')
  await writeFile(config, `${header.replace(/"blake3":"[^"]*"/, `"blake3":"${digest}"`)}\n${line}`)
  assert.deepEqual(await refusals(place), ['REPOSITORY_DAMAGED'])
})

test('a configuration whose header and content disagree about encryption is refused', async () => {
  await using place = await encrypted()
  const config = path.join(place.folder, 'umbra-repository.json')
  const text = await readFile(config, 'utf8')
  await writeFile(config, text.replace('"features":["encryption"]', '"features":[]'))
  assert.deepEqual(await refusals(place), ['REPOSITORY_DAMAGED'])
})

test('swapped manifests, and one copied to another id, are refused', async () => {
  await using place = await encrypted()
  await swap(manifestOf(place, 0), manifestOf(place, 1))
  assert.deepEqual(await refusals(place), ['RECOVERY_POINT_DAMAGED', 'RECOVERY_POINT_DAMAGED'])
  await swap(manifestOf(place, 0), manifestOf(place, 1))
  const copy = '20261122T010203Z-ab2c'
  await cp(manifestOf(place, 0), path.join(place.folder, 'points', `${copy}.json`))
  await using repository = await openRepository(place.folder, { unlock: { keyFile: place.keyFile } })
  assert.deepEqual(
    (await repository.listDamagedPoints()).map(({ id }) => id),
    [copy],
  )
})

test('a manifest by somebody without the key is refused', async () => {
  await using place = await encrypted()
  await using repository = await openRepository(place.folder, { unlock: { keyFile: place.keyFile } })
  const forged = (seal: Seal) =>
    encodeManifest(seal, {
      id: place.points[0]?.id ?? '',
      repositoryId: repository.id,
      createdAt: new Date().toISOString(),
      content: {},
      streams: [],
      documents: [],
    })
  for (const seal of [plainSeal, keyedSeal(randomBytes(32), repository.id)]) {
    await writeFile(manifestOf(place, 0), forged(seal))
    await assert.rejects(repository.point(place.points[0]?.id ?? ''), { code: 'RECOVERY_POINT_DAMAGED' })
  }
})

test('a feature can not be taken from the header of a manifest', async () => {
  await using place = await encrypted()
  const manifest = await readFile(manifestOf(place, 0))
  const header = manifest.subarray(0, manifest.indexOf('\n')).toString()
  assert.match(header, /"encryption"/)
  const features = /"features":\[[^\]]*\]/
  for (const changed of ['"features":[]', '"features":["encryption","encryption"]']) {
    const body = manifest.subarray(manifest.indexOf('\n'))
    await writeFile(manifestOf(place, 0), Buffer.concat([Buffer.from(header.replace(features, changed)), body]))
    assert.deepEqual(await refusals(place), ['RECOVERY_POINT_DAMAGED'])
  }
})

test('swapped packs are refused', async () => {
  await using place = await encrypted()
  const [one = '', other = ''] = await packsOf(place)
  await swap(one, other)
  const codes = await refusals(place)
  assert.ok(codes.length >= 2 && codes.every((code) => code === 'REPOSITORY_CHUNK_CORRUPT'), codes.join())
})

test('swapped records of one pack are refused, whatever their headers say', async () => {
  await using place = await encrypted()
  const [file = ''] = await packsOf(place)
  const whole = await readFile(file)
  const toc = whole.subarray(whole.readUInt32LE(whole.length - 64 + 8), whole.length - 64)
  const [first, second] = [...tocEntries(toc)].sort((one, other) => other.storedBytes - one.storedBytes)
  assert.ok(first !== undefined && second !== undefined)
  const payload = (of: typeof first) => Buffer.from(whole.subarray(of.offset + 56, of.offset + 56 + second.storedBytes))
  const swapped = Buffer.from(whole)
  swapped.set(payload(second), first.offset + 56)
  swapped.set(payload(first), second.offset + 56)
  await writeFile(file, swapped)
  assert.ok((await refusals(place)).every((code) => code === 'REPOSITORY_CHUNK_CORRUPT'))
  assert.ok((await refusals(place)).length >= 2)
})

test('an object moved from one repository to another is refused', async () => {
  await using place = await encrypted()
  await using other = await encrypted()
  const backup = path.join(place.folder, '..', 'backup')
  await cp(place.folder, backup, { recursive: true })
  const strange = manifestOf(other, 0)
  await cp(strange, manifestOf(place, 0))
  assert.deepEqual(await refusals(place), ['RECOVERY_POINT_DAMAGED'])
  for (const folder of ['packs', 'indexes', 'keys', 'points']) {
    await rm(path.join(place.folder, folder), { recursive: true })
    await cp(path.join(other.folder, folder), path.join(place.folder, folder), { recursive: true })
    assert.notDeepEqual(await refusals(place), [], folder)
    await rm(place.folder, { recursive: true })
    await cp(backup, place.folder, { recursive: true })
  }
  // The same key file for two repositories: the slots are still not each other's.
  const twin = path.join(place.folder, '..', 'twin')
  const made = await createRepository(twin, { chunkSizeBytes, encryption: { keyFile: place.keyFile } })
  await made[Symbol.asyncDispose]()
  await rm(path.join(place.folder, 'keys'), { recursive: true })
  await cp(path.join(twin, 'keys'), path.join(place.folder, 'keys'), { recursive: true })
  assert.deepEqual(await refusals(place), ['REPOSITORY_WRONG_KEY'])
  await rename(path.join(twin, 'umbra-repository.json'), path.join(place.folder, 'umbra-repository.json'))
  assert.notDeepEqual(await refusals(place), [])
})

test('a bit flipped in any kind of object never gives wrong bytes, and is refused where anything depends on it', async () => {
  await using place = await encrypted()
  await mkdir(path.join(place.folder, 'unknown'))
  for (const file of await files(place.folder)) {
    const whole = await readFile(file)
    const mustBeRefused = !/\/(packs|indexes)\//.test(file) // which have padding, and copies of each other
    const trials = mustBeRefused ? 60 : 25
    for (let trial = 0; trial < trials; trial += 1) {
      const spoiled = Buffer.from(whole)
      const at = Math.floor((trial / trials) * whole.length)
      spoiled[at] = (spoiled[at] ?? 0) ^ (1 << (trial % 8))
      await writeFile(file, spoiled)
      const codes = await refusals(place)
      if (mustBeRefused) assert.notDeepEqual(codes, [], `${file} at ${at}`)
    }
    await writeFile(file, whole)
  }
  assert.deepEqual(await refusals(place), [])
})

test('ids and digests tell nothing: not what is stored, nor that two repositories hold the same', async () => {
  await using place = await encrypted()
  await using other = await encrypted()
  const ids = async (one: Place) => {
    const tocs = await Promise.all((await packsOf(one)).map(async (file) => readFile(file)))
    return tocs.flatMap((pack) => {
      const toc = pack.subarray(pack.readUInt32LE(pack.length - 64 + 8), pack.length - 64)
      assert.throws(() => decodePackEnd(plainSeal, pack), /damaged/)
      return [...tocEntries(toc)].map(({ id }) => id.toString('hex'))
    })
  }
  const own = new Set(await ids(place))
  assert.ok(own.size >= 6)
  for (const id of await ids(other)) assert.ok(!own.has(id))
  const plain = [secretText, disk.subarray(0, chunkSizeBytes), disk.subarray(chunkSizeBytes, 2 * chunkSizeBytes)]
  for (const file of await files(place.folder)) {
    const bytes = await readFile(file)
    for (const chunk of plain) {
      const digest = blake3Digest(chunk)
      assert.ok(!bytes.includes(digest) && !bytes.includes(digest.toString('hex')), file)
      assert.ok(!bytes.includes(chunk.subarray(0, 20)), file)
    }
    assert.ok(!bytes.includes('vms/1') && !bytes.includes('may read'), file)
  }
})

test('what a killed draft left is discarded without a key', async () => {
  await using place = await encrypted()
  const { discardUnfinished } = await import('../repository.ts')
  const id = '20261122T010203Z-ab2c'
  await mkdir(path.join(place.folder, 'packs', id))
  await writeFile(path.join(place.folder, 'packs', id, '0'.repeat(64)), 'half a pack')
  const mark = { purpose: 'backup', host: 'x', boot: 'x', pid: 1, startTicks: 1 }
  await mkdir(path.join(place.folder, 'drafts'), { recursive: true })
  const line = `${JSON.stringify(mark)}\n`
  const header = { umbra: 'draft', format: 1, features: [], blake3: blake3Digest(Buffer.from(line)).toString('hex') }
  await writeFile(path.join(place.folder, 'drafts', `${id}.json`), `${JSON.stringify(header)}\n${line}`)
  await assert.rejects(discardUnfinished(place.folder, id), { code: 'REPOSITORY_DRAFT_IN_USE' }) // another host's
  const { ownProcessMark } = await import('../../base/process-mark.ts')
  const dead = `${JSON.stringify({ purpose: 'backup', ...(await ownProcessMark()), startTicks: 1 })}\n`
  const sealed = { ...header, blake3: blake3Digest(Buffer.from(dead)).toString('hex') }
  await writeFile(path.join(place.folder, 'drafts', `${id}.json`), `${JSON.stringify(sealed)}\n${dead}`)
  await discardUnfinished(place.folder, id)
  assert.ok((await files(place.folder)).every((file) => !file.includes(id)))
  assert.deepEqual(await refusals(place), [])
})
