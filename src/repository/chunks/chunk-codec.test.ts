/**
 * Encoding and decoding chunks, on the spot and on threads: everything comes back, and nothing else does.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { zstdCompressSync } from 'node:zlib'
import { encodings, FormatError, recordKinds, recordSealBytes } from '../format.ts'
import { keyedSeal } from '../keys/keyed-seal.ts'
import { plainSeal } from '../keys/seal.ts'
import { looksIncompressible, type StoredRecord } from './chunk-codec.ts'
import { codecThreads } from './codec-threads.ts'

const bufferBytes = 600 * 1024

const samples: Record<string, Buffer> = {
  'one byte': Buffer.from('x'),
  'a short text': Buffer.from('short text, short text'),
  noise: randomBytes(512 * 1024),
  'short noise': randomBytes(1000),
  'a text': Buffer.alloc(512 * 1024, 'some words of a text; '),
  'text and noise': Buffer.concat([Buffer.alloc(100_000, 'text '), randomBytes(100_000), Buffer.alloc(100_000)]),
  'noise that comes twice': Buffer.alloc(300_000, randomBytes(5_000)),
}

const kind = recordKinds.chunk
const seals = {
  plain: plainSeal,
  encrypted: keyedSeal(randomBytes(32), '7e1b0c9e-1111-4222-8333-444455556666'),
}

for (const [how, seal] of Object.entries(seals)) {
  const addedBytes = seal.encrypted ? recordSealBytes : 0
  for (const [name, plain] of Object.entries(samples)) {
    test(`${how}: ${name} comes back, and is never stored longer than it is`, async () => {
      const threads = codecThreads(bufferBytes, seal.recordKeys)
      const record = { id: seal.idOf(plain), kind, plainBytes: plain.length }
      for (const level of [-5, 1, 3]) {
        const buffer = threads.takeBuffer()
        buffer.set(plain)
        const stored = await threads.encode(buffer, { ...record, level })
        assert.ok(stored.storedBytes <= plain.length + addedBytes)
        assert.equal(stored.encrypted, seal.encrypted)
        const isReadable = buffer
          .subarray(stored.storedAt, stored.storedAt + stored.storedBytes)
          .includes(plain.subarray(0, 16))
        if (seal.encrypted && plain.length >= 16) assert.equal(isReadable, false)
        await threads.decode(buffer, { ...record, ...stored })
        assert.ok(plain.equals(buffer.subarray(stored.storedAt, stored.storedAt + plain.length)))
        threads.giveBuffer(buffer)
      }
    })
  }

  test(`${how}: many jobs at once, more than there are threads, each get their own answer`, async () => {
    const threads = codecThreads(bufferBytes, seal.recordKeys)
    await Promise.all(
      Array.from({ length: 20 }, async (_, index) => {
        const plain = Buffer.alloc(200_000 + index, `job ${index} `)
        const record = { id: seal.idOf(plain), kind, plainBytes: plain.length }
        const buffer = threads.takeBuffer()
        buffer.set(plain)
        const stored = await threads.encode(buffer, { ...record, level: 1 })
        assert.ok(stored.storedBytes < 1000)
        await threads.decode(buffer, { ...record, ...stored })
        assert.ok(plain.equals(buffer.subarray(stored.storedAt, stored.storedAt + plain.length)))
      }),
    )
  })
}

for (const plainBytes of [10_000, 300_000]) {
  test(`a record of ${plainBytes} bytes that is not what it says is refused`, async () => {
    const threads = codecThreads(bufferBytes, undefined)
    const plain = Buffer.alloc(plainBytes, 'text ')
    const packed = zstdCompressSync(plain)
    const bomb = zstdCompressSync(Buffer.alloc(50_000_000))
    const good = {
      id: plainSeal.idOf(plain),
      kind,
      encoding: encodings.zstd,
      encrypted: false,
      storedAt: 0,
      storedBytes: packed.length,
      plainBytes,
    }
    const decode = (bytes: Buffer, record: Partial<StoredRecord>) => {
      const buffer = threads.takeBuffer()
      buffer.set(bytes)
      return threads.decode(buffer, { ...good, ...record })
    }
    await decode(packed, {})
    await assert.rejects(decode(packed, { id: randomBytes(32) }), FormatError)
    await assert.rejects(decode(packed, { plainBytes: plainBytes - 1 }), FormatError)
    await assert.rejects(decode(packed, { plainBytes: plainBytes + 1 }), FormatError)
    await assert.rejects(decode(packed, { storedBytes: packed.length - 1 }), FormatError)
    await assert.rejects(decode(packed, { encoding: encodings.raw }), FormatError)
    await assert.rejects(decode(packed, { encrypted: true }), FormatError)
    await assert.rejects(decode(bomb, { storedBytes: bomb.length }), FormatError)
    await assert.rejects(decode(randomBytes(1000), { storedBytes: 1000 }), FormatError)
    await assert.rejects(decode(packed, { plainBytes: bufferBytes + 1 }), FormatError)
  })

  test(`an encrypted record of ${plainBytes} bytes stands for nothing but itself`, async () => {
    const seal = seals.encrypted
    const threads = codecThreads(bufferBytes, seal.recordKeys)
    const plain = Buffer.concat([Buffer.alloc(plainBytes - 1000, 'text '), randomBytes(1000)])
    const record = { id: seal.idOf(plain), kind, plainBytes, level: 1 }
    const buffer = threads.takeBuffer()
    buffer.set(plain)
    const form = await threads.encode(buffer, record)
    const good = { ...record, ...form, storedAt: 0 }
    const stored = Buffer.from(buffer.subarray(form.storedAt, form.storedAt + form.storedBytes))
    const decode = (bytes: Buffer, changed: Partial<StoredRecord>, keys = seal.recordKeys) => {
      const own = codecThreads(bufferBytes, keys)
      const target = own.takeBuffer()
      target.set(bytes)
      return own.decode(target, { ...good, ...changed })
    }
    await decode(stored, {})
    const noKey = { id: plainSeal.idOf(plain) }
    const other = keyedSeal(randomBytes(32), '7e1b0c9e-1111-4222-8333-444455556666')
    await assert.rejects(decode(stored, { kind: recordKinds.blob }), FormatError)
    await assert.rejects(decode(stored, { encoding: encodings.raw }), FormatError)
    await assert.rejects(decode(stored, { plainBytes: plainBytes + 1 }), FormatError)
    await assert.rejects(decode(stored, { storedBytes: form.storedBytes - 1 }), FormatError)
    await assert.rejects(decode(stored, { id: randomBytes(32) }), FormatError)
    await assert.rejects(decode(stored, {}, other.recordKeys), FormatError)
    await assert.rejects(
      decode(plain, { ...noKey, encrypted: false, encoding: encodings.raw, storedBytes: plainBytes }),
      FormatError,
    )
    for (const at of [0, 11, 12, 500, form.storedBytes - 17, form.storedBytes - 16, form.storedBytes - 1]) {
      const spoiled = Buffer.from(stored)
      spoiled[at] = (spoiled[at] ?? 0) ^ 0x10
      await assert.rejects(decode(spoiled, {}), FormatError)
    }
  })
}

test('the same record encrypted twice looks different, and has one id', async () => {
  const seal = seals.encrypted
  const threads = codecThreads(bufferBytes, seal.recordKeys)
  const plain = Buffer.alloc(5000, 'text ')
  const twice = await Promise.all(
    [1, 2].map(async () => {
      const buffer = threads.takeBuffer()
      buffer.set(plain)
      const { storedAt, storedBytes } = await threads.encode(buffer, {
        id: seal.idOf(plain),
        kind,
        plainBytes: 5000,
        level: 1,
      })
      return buffer.subarray(storedAt, storedAt + storedBytes).toString('hex')
    }),
  )
  assert.notEqual(twice[0], twice[1])
})

test('noise is known as noise without compressing it, and nothing that compresses well is taken for it', () => {
  for (let round = 0; round < 200; round += 1) assert.ok(looksIncompressible(randomBytes(65536)))
  const counters = Buffer.alloc(65536)
  for (let at = 0; at < counters.length; at += 4) counters.writeUInt32BE(at, at)
  const halfText = Buffer.concat([randomBytes(32768), Buffer.alloc(32768, 'text ')])
  const base64 = Buffer.from(randomBytes(49152).toString('base64'))
  for (const data of [Buffer.alloc(65536), Buffer.alloc(65536, 'text '), counters, halfText, base64]) {
    assert.equal(looksIncompressible(data), false)
  }
})

for (const [how, seal] of Object.entries(seals)) {
  test(`${how}: a record is decoded where it stands, and out of other memory, which stays as it is`, async () => {
    const threads = codecThreads(bufferBytes, seal.recordKeys)
    const mixed = Array.from({ length: 300 }, (_, n) => Buffer.concat([randomBytes(900), Buffer.alloc(99, `${n} `)]))
    for (const plain of [randomBytes(300_000), Buffer.concat(mixed), Buffer.alloc(200_000, 'text ')]) {
      const record = { id: seal.idOf(plain), kind, plainBytes: plain.length }
      const made = threads.takeBuffer()
      made.set(plain)
      const form = await threads.encode(made, { ...record, level: 1 })
      const from = made.subarray(form.storedAt, form.storedAt + form.storedBytes)
      const before = Buffer.from(from)
      const target = threads.takeBuffer()
      const other = codecThreads(bufferBytes + 4096, seal.recordKeys)
        .takeBuffer()
        .fill(0)
      await threads.decode(other, { ...record, ...form, storedAt: 64 }, from)
      assert.ok(plain.equals(other.subarray(64, 64 + plain.length)))
      assert.ok(from.equals(before))
      before.copy(target, 64)
      await threads.decode(target, { ...record, ...form, storedAt: 64 })
      assert.ok(plain.equals(target.subarray(64, 64 + plain.length)))
    }
  })
}
