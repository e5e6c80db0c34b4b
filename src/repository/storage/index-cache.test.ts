/**
 * Copies of indexes and manifests: what saves a request, what is fetched again, and that nothing depends on them.
 */
import assert from 'node:assert/strict'
import { randomBytes, randomUUID } from 'node:crypto'
import { mkdir, mkdtemp, readdir, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { backendContract } from '../../../test/contract/backend.contract.ts'
import { Failure } from '../../base/failure.ts'
import { FormatError } from '../format.ts'
import type { Backend } from './backend.ts'
import { getDecoded, indexCacheDirectory, withIndexCache } from './index-cache.ts'
import { openLocalBackend } from './local-backend.ts'

const repositoryId = '0a0b0c0d-0000-4000-8000-000000000001'
const maxBytes = 1 << 20

async function scene() {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-index-cache-'))
  const asked: string[] = []
  const storeFolder = path.join(folder, 'store')
  await mkdir(storeFolder)
  const open = (): Backend => {
    const store = openLocalBackend(storeFolder)
    const watched: Backend = {
      location: store.location,
      put: (key, parts) => store.put(key, parts),
      get(key, most) {
        asked.push(key)
        return store.get(key, most)
      },
      read(key, offset, target) {
        asked.push(key)
        return store.read(key, offset, target)
      },
      list: (prefix) => store.list(prefix),
      delete: (key) => store.delete(key),
      sweep: () => store.sweep(),
      [Symbol.asyncDispose]: () => store[Symbol.asyncDispose](),
    }
    return withIndexCache(watched, path.join(folder, 'cache'), repositoryId)
  }
  return {
    asked,
    open,
    cache: path.join(folder, 'cache'),
    copies: path.join(folder, 'cache', repositoryId),
    store: openLocalBackend(storeFolder),
    [Symbol.asyncDispose]: () => rm(folder, { recursive: true, force: true }),
  }
}

backendContract('index cache', async () => {
  const place = await scene()
  return { open: async () => place.open(), [Symbol.asyncDispose]: () => place[Symbol.asyncDispose]() }
})

const isMissing = (error: unknown) => error instanceof Failure && error.code === 'REPOSITORY_OBJECT_MISSING'

async function listAll(backend: Backend, prefix: string): Promise<string[]> {
  return (await Array.fromAsync(backend.list(prefix))).map(({ key }) => key).sort()
}

test('manifests and indexes are asked for once, by all who come; packs and the configuration always', async () => {
  await using place = await scene()
  const kept = ['points/a.json', 'indexes/a/1']
  const others = ['packs/a/1', 'umbra-repository.json']
  for (const key of [...kept, ...others]) await place.store.put(key, [Buffer.from(key)])
  for (let time = 0; time < 3; time++) {
    await using backend = place.open()
    for (const key of [...kept, ...others]) assert.equal((await backend.get(key, maxBytes)).toString(), key)
  }
  assert.deepEqual(place.asked.sort(), [...kept, ...others, ...others, ...others].sort())
})

test('a copy that can not be decoded is fetched again, once', async () => {
  await using place = await scene()
  await place.store.put('points/a.json', [Buffer.from('good')])
  await using backend = place.open()
  const decode = (object: Buffer) => {
    if (object.toString() !== 'good') throw new FormatError('damaged')
    return 'decoded'
  }
  assert.equal(await getDecoded(backend, 'points/a.json', maxBytes, decode), 'decoded')
  await writeFile(path.join(place.copies, 'points/a.json'), 'bad!')
  assert.equal(await getDecoded(backend, 'points/a.json', maxBytes, decode), 'decoded')
  assert.equal(await getDecoded(backend, 'points/a.json', maxBytes, decode), 'decoded')
  assert.equal(place.asked.length, 2)
  await assert.rejects(
    getDecoded(backend, 'points/a.json', maxBytes, () => {
      throw new FormatError('always')
    }),
    FormatError,
  )
})

test('a copy that can not be removed is not believed again', async () => {
  await using place = await scene()
  await place.store.put('points/a.json', [Buffer.from('good')])
  await using backend = place.open()
  await backend.get('points/a.json', maxBytes)
  await backend.forget?.('points/a.json')
  await writeFile(path.join(place.copies, 'points/a.json'), 'bad!')
  assert.equal((await backend.get('points/a.json', maxBytes)).toString(), 'good')
})

test('a copy longer than may be, or no file, is not used', async () => {
  await using place = await scene()
  const content = randomBytes(100)
  await place.store.put('indexes/a/1', [content])
  await using backend = place.open()
  await backend.get('indexes/a/1', maxBytes)
  await writeFile(path.join(place.copies, 'indexes/a/1'), Buffer.alloc(maxBytes + 1))
  assert.deepEqual(await backend.get('indexes/a/1', maxBytes), content)
  await rm(path.join(place.copies, 'indexes/a/1'))
  await mkdir(path.join(place.copies, 'indexes/a/1'))
  assert.deepEqual(await backend.get('indexes/a/1', maxBytes), content)
})

test('what is listed no more is removed, and what somebody deleted is missing once it is asked for', async () => {
  await using place = await scene()
  for (const key of ['points/a.json', 'points/b.json', 'indexes/a/1']) await place.store.put(key, [Buffer.from(key)])
  await using backend = place.open()
  for (const key of ['points/a.json', 'points/b.json', 'indexes/a/1']) await backend.get(key, maxBytes)
  await place.store.delete('points/a.json')
  await place.store.delete('indexes/a/1')
  assert.deepEqual(await listAll(backend, 'points/'), ['points/b.json'])
  await assert.rejects(backend.get('points/a.json', maxBytes), isMissing)
  assert.equal((await backend.get('indexes/a/1', maxBytes)).toString(), 'indexes/a/1') // not listed yet
  await backend.forget?.('indexes/a/1')
  await assert.rejects(backend.get('indexes/a/1', maxBytes), isMissing)
  await backend.delete('points/b.json')
  await assert.rejects(backend.get('points/b.json', maxBytes), isMissing)
})

test('a list that is not read to its end removes nothing', async () => {
  await using place = await scene()
  for (const key of ['points/a.json', 'points/b.json']) await place.store.put(key, [Buffer.from(key)])
  await using backend = place.open()
  for (const key of ['points/a.json', 'points/b.json']) await backend.get(key, maxBytes)
  for await (const _ of backend.list('points/')) break
  assert.equal((await readdir(path.join(place.copies, 'points'))).length, 2)
})

test('the copies may be deleted at any time, also while they are made', async () => {
  await using place = await scene()
  const keys = Array.from({ length: 40 }, (_, index) => `indexes/p${index % 4}/${index}`)
  for (const key of keys) await place.store.put(key, [randomBytes(2000)])
  await using backend = place.open()
  const reading = Promise.all(
    keys.map(async (key) => assert.deepEqual(await backend.get(key, maxBytes), await place.store.get(key, maxBytes))),
  )
  const deleting = rm(place.copies, { recursive: true, force: true, maxRetries: 20 }).catch(() => undefined)
  await Promise.all([reading, deleting, listAll(backend, 'indexes/')])
  for (const key of keys) assert.equal((await backend.get(key, maxBytes)).length, 2000)
})

test('where nothing can be kept everything is read from the store', async () => {
  await using place = await scene()
  await place.store.put('points/a.json', [Buffer.from('x')])
  await writeFile(place.cache, 'a file in its place')
  await using backend = place.open()
  for (let time = 0; time < 2; time++) assert.equal((await backend.get('points/a.json', maxBytes)).toString(), 'x')
  assert.deepEqual(await listAll(backend, 'points/'), ['points/a.json'])
  assert.equal(place.asked.length, 2)
})

test('what a killed process was writing aside is removed later, and copies are for their owner only', async () => {
  await using place = await scene()
  await place.store.put('points/a.json', [Buffer.from('x')])
  await using backend = place.open()
  await backend.get('points/a.json', maxBytes)
  const [old, young] = [randomUUID(), randomUUID()].map((name) => path.join(place.copies, '.aside', name))
  assert.ok(old !== undefined && young !== undefined)
  for (const file of [old, young]) await writeFile(file, 'half')
  await utimes(old, 0, 0)
  await listAll(backend, 'points/')
  assert.deepEqual(await readdir(path.join(place.copies, '.aside')), [path.basename(young)])
  assert.equal((await stat(place.copies)).mode & 0o077, 0)
  assert.equal((await stat(path.join(place.copies, 'points/a.json'))).mode & 0o077, 0)
})

test('the directory is the cache of the user', () => {
  assert.equal(indexCacheDirectory({ XDG_CACHE_HOME: '/x' }, 0), '/x/umbra')
  assert.equal(indexCacheDirectory({}, 0), '/var/cache/umbra')
  assert.match(indexCacheDirectory({ XDG_CACHE_HOME: 'not/absolute' }, 1000), /^\/.*\/\.cache\/umbra$/)
})
