/**
 * What is known of the stored chunks, and what of it may be relied upon, as indexes, condemnations and damage come and go.
 */
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { putCondemnation, removeCondemnation } from '../collection/condemned.ts'
import { encodeIndex, encodeTocEntry, objectKeys, type PackListing, recordKinds } from '../format.ts'
import { plainSeal } from '../keys/seal.ts'
import type { Backend } from '../storage/backend.ts'
import { openLocalBackend } from '../storage/local-backend.ts'
import { DamageMarks, putDamageMarks } from '../verification/damage-marks.ts'
import { blake3Digest } from './blake3.ts'
import { KnownChunks } from './known-chunks.ts'

const point = '20240101T000000Z-aaaa'
const idOf = (name: string) => blake3Digest(Buffer.from(name))

function packOf(name: string, chunks: readonly string[]): PackListing {
  const lines = chunks.map((chunk, number) =>
    encodeTocEntry({
      id: idOf(chunk),
      kind: recordKinds.chunk,
      encoding: 0,
      encrypted: false,
      storedBytes: 1000,
      plainBytes: 1000,
      offset: 40 + number * 1056,
    }),
  )
  return { pointId: point, digest: idOf(name), sizeBytes: 100_000, toc: Buffer.concat(lines) }
}

const keyOf = (pack: PackListing) => objectKeys.pack(pack.pointId, pack.digest)

async function putIndex(backend: Backend, packs: readonly PackListing[]): Promise<string> {
  const { parts, digest } = encodeIndex(plainSeal, packs)
  const key = objectKeys.index(point, digest)
  await backend.put(key, parts)
  return key
}

async function place() {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-known-'))
  const backend = openLocalBackend(folder)
  return {
    backend,
    known: new KnownChunks(backend, plainSeal, 65_536),
    async [Symbol.asyncDispose]() {
      await backend[Symbol.asyncDispose]()
      await rm(folder, { recursive: true, force: true })
    },
  }
}

const one = packOf('one', ['a', 'b', 'c'])
const two = packOf('two', ['b', 'c', 'd'])

test('what a new index names is known after a refresh, and unknown when the index is gone', async () => {
  await using here = await place()
  const { backend, known } = here
  const first = await putIndex(backend, [one])
  await known.refresh()
  assert.ok(known.usable(idOf('a')) && !known.has(idOf('d')))
  await putIndex(backend, [two])
  assert.ok(!known.has(idOf('d')))
  await known.refresh()
  assert.ok(known.usable(idOf('d')))
  assert.equal(known.place(idOf('b'))?.pack, keyOf(one), 'the first place stays')
  await backend.delete(first)
  await known.refresh()
  assert.ok(!known.has(idOf('a')) && !known.usable(idOf('a')))
  assert.equal(known.place(idOf('a')), undefined)
  assert.equal(known.place(idOf('b'))?.pack, keyOf(two))
  assert.equal(known.table.size, 3, 'what was forgotten takes no memory')
})

test('chunks keep their numbers while somebody counts on it', async () => {
  await using here = await place()
  const first = await putIndex(here.backend, [one])
  await putIndex(here.backend, [two])
  await here.known.refresh()
  const number = here.known.table.find(idOf('d'))
  {
    using _held = here.known.holdNumbers()
    await here.backend.delete(first)
    await here.known.refresh()
    assert.equal(here.known.table.find(idOf('d')), number)
  }
  assert.ok(!here.known.has(idOf('a')))
})

test('a condemned pack is read and not relied upon, and a copy elsewhere is preferred', async () => {
  await using here = await place()
  const { backend, known } = here
  await putIndex(backend, [one])
  await putIndex(backend, [two])
  await known.refresh()
  const pack = known.place(idOf('b'))?.pack ?? ''
  await putCondemnation(backend, plainSeal, point, new Date(), [pack])
  assert.ok(known.usable(idOf('b')), 'not before it is looked at')
  await known.refresh()
  assert.ok(known.usable(idOf('b')) && known.usable(idOf('c')))
  assert.notEqual(known.place(idOf('b'))?.pack, pack)
  const alone = pack === keyOf(one) ? 'a' : 'd'
  assert.ok(known.has(idOf(alone)) && !known.usable(idOf(alone)))
  assert.equal(known.place(idOf(alone))?.pack, pack)
  const late = new KnownChunks(backend, plainSeal, 65_536)
  await late.refresh()
  assert.ok(late.has(idOf(alone)) && !late.usable(idOf(alone)) && late.usable(idOf('b')))
  await removeCondemnation(backend, point)
  await known.refresh()
  assert.ok(known.usable(idOf(alone)), 'pardoned')
})

test('a damaged copy is not relied upon, and another one replaces it, whichever is known first', async () => {
  await using here = await place()
  const { backend, known } = here
  await putIndex(backend, [one])
  await known.refresh()
  const marks = new DamageMarks()
  marks.addRecord(keyOf(one), idOf('b').toString('hex', 0, 16), 'spoiled')
  const keys = await putDamageMarks(backend, plainSeal, new Date(), marks)
  await known.refresh()
  assert.ok(known.has(idOf('b')) && !known.usable(idOf('b')) && known.usable(idOf('c')))
  await putIndex(backend, [two])
  await known.refresh()
  assert.ok(known.usable(idOf('b')))
  assert.equal(known.place(idOf('b'))?.pack, keyOf(two))
  const late = new KnownChunks(backend, plainSeal, 65_536)
  await late.refresh()
  assert.equal(late.place(idOf('b'))?.pack, keyOf(two))
  marks.addPack(keyOf(two), 'missing')
  keys.push(...(await putDamageMarks(backend, plainSeal, new Date(), marks)))
  await known.refresh()
  assert.ok(!known.usable(idOf('b')) && !known.usable(idOf('d')) && known.usable(idOf('c')))
  for (const key of keys) await backend.delete(key)
  await known.refresh()
  for (const chunk of ['a', 'b', 'c', 'd']) assert.ok(known.usable(idOf(chunk)), chunk)
})

test('an index that is replaced while it is read is read again, and one that is garbage is named', async () => {
  await using here = await place()
  const first = await putIndex(here.backend, [one])
  let replaced = false
  const backend: Backend = Object.assign(Object.create(here.backend), {
    location: here.backend.location,
    list: (prefix: string) => here.backend.list(prefix),
    read: (key: string, offset: number, target: Uint8Array) => here.backend.read(key, offset, target),
    async get(key: string, maxBytes: number) {
      if (key === first && !replaced) {
        replaced = true
        await putIndex(here.backend, [one, two])
        await here.backend.delete(first)
      }
      return here.backend.get(key, maxBytes)
    },
  })
  const known = new KnownChunks(backend, plainSeal, 65_536)
  await known.refresh()
  assert.ok(known.usable(idOf('a')) && known.usable(idOf('d')))
  const garbage = objectKeys.index(point, idOf('garbage'))
  await here.backend.put(garbage, [Buffer.from('garbage')])
  await here.backend.put('indexes/nonsense', [Buffer.from('garbage')])
  await known.refresh()
  assert.deepEqual(
    known.damagedIndexes.map(({ key }) => key),
    [garbage],
  )
  assert.ok(known.usable(idOf('a')))
})

test('a refresh that begins later sees what came later, also while another one is under way', async () => {
  await using here = await place()
  await putIndex(here.backend, [one])
  const early = here.known.refresh()
  await putIndex(here.backend, [two])
  await Promise.all([early, here.known.refresh()])
  assert.ok(here.known.usable(idOf('d')))
})
