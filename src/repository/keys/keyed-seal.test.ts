/**
 * The keyed seal: each purpose, repository and place has what is its own, and nothing stands for anything else.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import * as z from 'zod'
import { blake3Digest } from '../chunks/blake3.ts'
import { FormatError } from '../format.ts'
import { keyedSeal, subKey } from './keyed-seal.ts'
import { type Digested, plainSeal } from './seal.ts'
import { sealJson, unsealJson } from './sealed-json.ts'

const id = '7e1b0c9e-1111-4222-8333-444455556666'
const otherId = '7e1b0c9e-1111-4222-8333-444455556667'
const master = Buffer.alloc(32, 7)
const body = Buffer.from('the body of a document')

test('names and digests differ with purpose, repository and master key, and are the same each time', () => {
  const seals = [keyedSeal(master, id), keyedSeal(master, otherId), keyedSeal(randomBytes(32), id), plainSeal]
  const kinds: Digested[] = ['table of contents', 'index', 'document', 'configuration']
  const all = seals.flatMap((seal) => [
    seal.idOf(body).toString('hex'),
    ...(seal.encrypted ? kinds.map((kind) => seal.digest(kind, [body]).toString('hex')) : []),
  ])
  assert.equal(new Set(all).size, all.length)
  assert.deepEqual(keyedSeal(master, id).idOf(body), seals[0]?.idOf(body))
  assert.deepEqual(plainSeal.idOf(body), blake3Digest(body))
  const [seal] = seals
  assert.deepEqual(seal?.digest('index', [body.subarray(0, 3), body.subarray(3)]), seal?.digest('index', [body]))
})

test('the keys are those that the format says', () => {
  // HKDF-SHA-256 (RFC 5869) without salt, computed by another program.
  assert.equal(
    Buffer.from(subKey(master, id, 'documents')).toString('hex'),
    '49892407039ee67d9860cf1a780e3135997823a4dcf3c99f0d0d13ef085f8719',
  )
})

test('a document opens at its place, with its outline, in its repository, and nowhere else', () => {
  const seal = keyedSeal(master, id)
  const closed = seal.close('points/a.json', 'outline', body)
  assert.deepEqual(seal.open('points/a.json', 'outline', closed), body)
  assert.ok(!closed.includes('body'))
  assert.notDeepEqual(seal.close('points/a.json', 'outline', body), closed)
  assert.throws(() => seal.open('points/b.json', 'outline', closed), FormatError)
  assert.throws(() => seal.open('points/a.json', 'another', closed), FormatError)
  assert.throws(() => keyedSeal(master, otherId).open('points/a.json', 'outline', closed), FormatError)
  assert.throws(() => keyedSeal(randomBytes(32), id).open('points/a.json', 'outline', closed), FormatError)
  for (let at = 0; at < closed.length; at += 1) {
    const spoiled = Buffer.from(closed)
    spoiled[at] = (spoiled[at] ?? 0) ^ 1
    assert.throws(() => seal.open('points/a.json', 'outline', spoiled), FormatError)
  }
  for (let length = 0; length < closed.length; length += 1) {
    assert.throws(() => seal.open('points/a.json', 'outline', closed.subarray(0, length)), FormatError)
  }
})

test('sealed JSON says that it is encrypted, and keeps the features it was given', () => {
  const seal = keyedSeal(master, id)
  const shape = z.object({ name: z.string() })
  const sealed = sealJson(seal, 'thing', 'things/a.json', { name: 'secret' })
  assert.match(sealed.subarray(0, sealed.indexOf('\n')).toString(), /"features":\["encryption"\]/)
  assert.ok(!sealed.includes('secret'))
  assert.deepEqual(unsealJson(seal, 'thing', 'things/a.json', sealed, shape), { name: 'secret' })
  assert.throws(() => unsealJson(seal, 'other thing', 'things/a.json', sealed, shape), FormatError)
  assert.throws(() => unsealJson(seal, 'thing', 'things/b.json', sealed, shape), FormatError)
  assert.throws(() => unsealJson(plainSeal, 'thing', 'things/a.json', sealed, shape), FormatError)
  const newer = sealJson(seal, 'thing', 'things/a.json', { name: 'x' }, ['what comes later'])
  assert.throws(() => unsealJson(seal, 'thing', 'things/a.json', newer, shape), /it needs what comes later/)
  const stripped = Buffer.from(newer.toString('latin1').replace(',"what comes later"', ''), 'latin1')
  assert.throws(() => unsealJson(seal, 'thing', 'things/a.json', stripped, shape), FormatError)
})
