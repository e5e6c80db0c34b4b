/**
 * Keys come and go, one that works is always left, and slots that somebody hostile wrote are refused before they cost much.
 */
import assert from 'node:assert/strict'
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { FormatError } from '../format.ts'
import { createRepository, type KeyChoice, listKeySlots, openRepository, openRepositoryOn } from '../repository.ts'
import type { Backend } from '../storage/backend.ts'
import { openLocalBackend } from '../storage/local-backend.ts'
import { makeKeyFile, passphraseSecret, secretOf } from './key-secret.ts'
import { decodeKeySlot, encodeKeySlot, type KeySlot, makeKeySlot, openKeySlot } from './key-slots.ts'
import { plainSeal } from './seal.ts'
import { sealJson } from './sealed-json.ts'

async function temporary() {
  const home = await mkdtemp(path.join(tmpdir(), 'umbra-keys-'))
  const inside = (name: string) => path.join(home, name)
  const keyFile = async (name: string) => {
    await makeKeyFile(inside(name))
    return inside(name)
  }
  return { folder: inside('repository'), inside, keyFile, [Symbol.asyncDispose]: () => rm(home, { recursive: true }) }
}

async function make(folder: string, encryption: KeyChoice): Promise<void> {
  await using _ = await createRepository(folder, { encryption })
}

async function opens(folder: string, choice: KeyChoice): Promise<boolean> {
  const unlock = 'keyFile' in choice ? choice : { passphrase: async () => choice.passphrase }
  try {
    await using _ = await openRepository(folder, { unlock })
    return true
  } catch (error) {
    assert.equal((error as { code?: string }).code, 'REPOSITORY_WRONG_KEY')
    return false
  }
}

test('a passphrase opens in any spelling of its letters, and no other one does', async () => {
  await using place = await temporary()
  await make(place.folder, { passphrase: 'Zw\u00f6lf Gr\u00fc\u00dfe \u{1F5DD} \u05e9\u05dc\u05d5\u05dd' })
  assert.ok(
    await opens(place.folder, { passphrase: 'Zwo\u0308lf Gru\u0308\u00dfe \u{1F5DD} \u05e9\u05dc\u05d5\u05dd' }),
  )
  assert.ok(!(await opens(place.folder, { passphrase: 'Zwolf Gr\u00fc\u00dfe \u{1F5DD} \u05e9\u05dc\u05d5\u05dd' })))
  assert.ok(!(await opens(place.folder, { passphrase: ' ' })))
})

test('an empty passphrase, one that is no Unicode and one that is too long are refused', async () => {
  await using place = await temporary()
  for (const passphrase of ['', 'half a pair \ud800', 'x'.repeat(1025)]) {
    await assert.rejects(make(place.folder, { passphrase }), (error) => {
      assert.equal((error as { code?: string }).code, 'KEY_INVALID')
      assert.ok(passphrase.length < 10 || !String(error).includes(passphrase.slice(0, 10)))
      return true
    })
  }
  await make(place.folder, { passphrase: 'x'.repeat(1024) })
})

test('a key file is 32 bytes of text that only its owner reads, and is never overwritten', async () => {
  await using place = await temporary()
  const file = await place.keyFile('key')
  assert.equal((await stat(file)).mode & 0o777, 0o600)
  const text = await readFile(file, 'utf8')
  assert.match(text, /^[0-9a-f]{64}\n$/)
  await assert.rejects(makeKeyFile(file), { code: 'HOST_IO' })
  assert.equal(await readFile(file, 'utf8'), text)
  await make(place.folder, { keyFile: file })
  await writeFile(place.inside('base64'), ` ${Buffer.from(text.trim(), 'hex').toString('base64')}\r\n`)
  assert.ok(await opens(place.folder, { keyFile: place.inside('base64') }))
  for (const wrong of ['', 'too short', text.slice(2), `${text}${text}`, 'x'.repeat(2000)]) {
    await writeFile(place.inside('wrong'), wrong)
    await assert.rejects(secretOf({ keyFile: place.inside('wrong') }), (error) => {
      assert.equal((error as { code?: string }).code, 'KEY_INVALID')
      assert.ok(wrong === '' || !String(error).includes(wrong.slice(0, 8)))
      return true
    })
  }
})

test('keys are added, listed, removed and changed without touching any data', async () => {
  await using place = await temporary()
  const first = { keyFile: await place.keyFile('first') }
  const second = { keyFile: await place.keyFile('second') }
  await make(place.folder, first)
  {
    await using repository = await openRepository(place.folder, { unlock: first })
    const added = await repository.keys?.add(second, 'for the robot')
    assert.equal(added?.label, 'for the robot')
    await assert.rejects(repository.keys?.remove(repository.keys.openedWith) ?? Promise.resolve(), {
      code: 'KEY_SLOT_IN_USE',
    })
    await assert.rejects(repository.keys?.remove('zzzz') ?? Promise.resolve(), { code: 'KEY_SLOT_NOT_FOUND' })
    await assert.rejects(repository.keys?.remove('20') ?? Promise.resolve(), { code: 'KEY_SLOT_NOT_FOUND' })
  }
  assert.deepEqual([await opens(place.folder, first), await opens(place.folder, second)], [true, true])
  const { slots } = await listKeySlots(place.folder)
  assert.deepEqual(slots.map(({ label }) => label).sort(), ['for the robot', 'the first key'])
  {
    await using repository = await openRepository(place.folder, { unlock: second })
    const other = slots.find(({ label }) => label === 'the first key')?.id ?? ''
    assert.equal(await repository.keys?.remove(other.slice(-4)), other)
    await repository.keys?.change({ passphrase: 'from now on' })
  }
  assert.deepEqual([await opens(place.folder, first), await opens(place.folder, second)], [false, false])
  assert.ok(await opens(place.folder, { passphrase: 'from now on' }))
})

/** Fails at the change number `at` to the place: before it happens, or after. */
function failing(backend: Backend, at: number, when: 'before' | 'after'): Backend {
  let count = 0
  const change = async <T>(work: () => Promise<T>): Promise<T> => {
    count += 1
    if (count > at || (count === at && when === 'before')) throw new Error('killed')
    const done = await work()
    if (count === at) throw new Error('killed')
    return done
  }
  return {
    location: backend.location,
    put: (key, parts) => change(() => backend.put(key, parts)),
    delete: (key) => change(() => backend.delete(key)),
    get: (key, maxBytes) => backend.get(key, maxBytes),
    read: (key, offset, target) => backend.read(key, offset, target),
    list: (prefix) => backend.list(prefix),
    sweep: () => backend.sweep(),
    [Symbol.asyncDispose]: () => backend[Symbol.asyncDispose](),
  }
}

test('killed at any step of a change, a key that works is left', async () => {
  await using place = await temporary()
  const before = { keyFile: await place.keyFile('before') }
  const after = { keyFile: await place.keyFile('after') }
  for (const when of ['before', 'after'] as const) {
    for (const at of [1, 2, 3]) {
      await rm(place.folder, { recursive: true, force: true })
      await make(place.folder, before)
      {
        const backend = failing(openLocalBackend(place.folder), at, when)
        await using repository = await openRepositoryOn(backend, { unlock: before })
        const changed = repository.keys?.change(after).then(
          () => true,
          () => false,
        )
        assert.equal(await changed, at === 3)
      }
      const left = [await opens(place.folder, before), await opens(place.folder, after)]
      assert.ok(left.includes(true), `killed ${when} step ${at}`)
    }
  }
})

test('two who remove each other’s key at once leave one that works', async () => {
  await using place = await temporary()
  const one = { keyFile: await place.keyFile('one') }
  const other = { keyFile: await place.keyFile('other') }
  await make(place.folder, one)
  await using first = await openRepository(place.folder, { unlock: one })
  const added = await first.keys?.add(other, '')
  await using second = await openRepository(place.folder, { unlock: other })
  assert.equal(second.keys?.openedWith, added?.id)
  await Promise.allSettled([first.keys?.remove(added?.id ?? ''), second.keys?.remove(first.keys?.openedWith ?? '')])
  assert.ok([await opens(place.folder, one), await opens(place.folder, other)].includes(true))
})

const repositoryId = '7e1b0c9e-1111-4222-8333-444455556666'
const about = { id: '20261122T010203Z-ab2c', repositoryId, label: '', createdAt: '2026-11-22T01:02:03.000Z' }

test('a slot that asks for more memory or time than is allowed is refused before it is tried', async () => {
  const slot = await makeKeySlot(about, passphraseSecret('open'), Buffer.alloc(32, 1))
  const written = (kdf: object) => encodeKeySlot({ ...slot, kdf: { ...slot.kdf, ...kdf } } as KeySlot)
  assert.deepEqual(decodeKeySlot(slot.id, written({})), slot)
  const hostile = [
    { memoryKiB: 1024 * 1024 + 1 },
    { memoryKiB: -1 },
    { memoryKiB: 1e300 },
    { passes: 65 },
    { passes: 0 },
    { lanes: 17 },
    { lanes: 16, memoryKiB: 64 },
    { salt: '' },
    { salt: 'f'.repeat(1_000) },
    { name: 'argon2d' },
    { name: 'hkdf-sha-256' },
  ]
  for (const kdf of hostile) assert.throws(() => decodeKeySlot(slot.id, written(kdf)), FormatError, JSON.stringify(kdf))
  for (const field of [
    { wrapped: 'A'.repeat(4000) },
    { kind: 'other' },
    { id: '../../etc' },
    { label: 'x'.repeat(201) },
  ]) {
    assert.throws(() => decodeKeySlot(slot.id, encodeKeySlot({ ...slot, ...field } as KeySlot)), FormatError)
  }
  assert.throws(() => decodeKeySlot('20261122T010203Z-zzzz', written({})), FormatError)
})

test('nothing of a slot can be changed, not even its label', async () => {
  const secret = { kind: 'key-file' as const, bytes: Buffer.alloc(32, 2) }
  const slot = await makeKeySlot(about, secret, Buffer.alloc(32, 1))
  assert.deepEqual(await openKeySlot(slot, secret), Buffer.alloc(32, 1))
  const changes = [
    { label: 'of the boss' },
    { createdAt: '2020-11-22T01:02:03.000Z' },
    { repositoryId: '7e1b0c9e-1111-4222-8333-444455556667' },
    { id: '20261122T010203Z-ab2d' },
    { kdf: { ...slot.kdf, salt: '0'.repeat(64) } },
    { wrapped: Buffer.alloc(60).toString('base64') },
    { wrapped: '' },
  ]
  for (const change of changes)
    await assert.rejects(openKeySlot({ ...slot, ...change } as KeySlot, secret), FormatError)
})

test('slots that can not be read, and those of others, keep nobody out who has a key', async () => {
  await using place = await temporary()
  const mine = { keyFile: await place.keyFile('mine') }
  await make(place.folder, mine)
  const keys = path.join(place.folder, 'keys')
  const put = (id: string, bytes: Uint8Array) => writeFile(path.join(keys, `${id}.json`), bytes)
  const [own = ''] = await readdir(keys)
  await put('20200101T000000Z-aaaa', Buffer.from('{}'))
  await put('20200101T000000Z-aaab', Buffer.alloc(100_000))
  await put('20200101T000000Z-aaac', await readFile(path.join(keys, own)))
  const strange = await makeKeySlot(about, await secretOf(mine), Buffer.alloc(32, 1))
  await put(about.id, encodeKeySlot(strange))
  await put('20200101T000000Z-aaad', sealJson(plainSeal, 'key slot', 'keys/20200101T000000Z-aaad.json', {}))
  assert.ok(await opens(place.folder, mine))
  const { slots, unreadable } = await listKeySlots(place.folder)
  assert.equal(slots.length, 1)
  assert.equal(unreadable.length, 5)
  await rm(path.join(keys, own))
  await assert.rejects(
    openRepository(place.folder, { unlock: mine }),
    /no slot for a key file; 5 of its key slots can not/,
  )
})
