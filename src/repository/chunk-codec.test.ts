/**
 * Encoding and decoding chunks, on the spot and on threads: everything comes back, and nothing else does.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { zstdCompressSync } from 'node:zlib'
import { blake3Digest } from './blake3.ts'
import { looksIncompressible } from './chunk-codec.ts'
import { codecThreads } from './codec-threads.ts'
import { encodings, FormatError } from './format.ts'

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

for (const [name, plain] of Object.entries(samples)) {
  test(`${name} comes back, and is never stored longer than it is`, async () => {
    const threads = codecThreads(bufferBytes)
    for (const level of [-5, 1, 3]) {
      const buffer = threads.takeBuffer()
      buffer.set(plain)
      const stored = await threads.encode(buffer, plain.length, level)
      assert.ok(stored.storedBytes <= plain.length)
      const id = blake3Digest(plain)
      const plainAt = await threads.decode(buffer, { id, ...stored, storedAt: 0, plainBytes: plain.length })
      assert.ok(plain.equals(buffer.subarray(plainAt, plainAt + plain.length)))
      threads.giveBuffer(buffer)
    }
  })
}

test('many jobs at once, more than there are threads, each get their own answer', async () => {
  const threads = codecThreads(bufferBytes)
  await Promise.all(
    Array.from({ length: 20 }, async (_, index) => {
      const plain = Buffer.alloc(200_000 + index, `job ${index} `)
      const buffer = threads.takeBuffer()
      buffer.set(plain)
      const stored = await threads.encode(buffer, plain.length, 1)
      assert.ok(stored.storedBytes < 1000)
      await threads.decode(buffer, { id: blake3Digest(plain), ...stored, storedAt: 0, plainBytes: plain.length })
      assert.ok(plain.equals(buffer.subarray(0, plain.length)))
    }),
  )
})

for (const plainBytes of [10_000, 300_000]) {
  test(`a record of ${plainBytes} bytes that is not what it says is refused`, async () => {
    const threads = codecThreads(bufferBytes)
    const plain = Buffer.alloc(plainBytes, 'text ')
    const packed = zstdCompressSync(plain)
    const bomb = zstdCompressSync(Buffer.alloc(50_000_000))
    const good = {
      id: blake3Digest(plain),
      encoding: encodings.zstd,
      storedAt: 0,
      storedBytes: packed.length,
      plainBytes,
    }
    const decode = (bytes: Buffer, record: typeof good | Record<string, unknown>) => {
      const buffer = threads.takeBuffer()
      buffer.set(bytes)
      return threads.decode(buffer, { ...good, ...record })
    }
    assert.equal(await decode(packed, {}), 0)
    await assert.rejects(decode(packed, { id: randomBytes(32) }), FormatError)
    await assert.rejects(decode(packed, { plainBytes: plainBytes - 1 }), FormatError)
    await assert.rejects(decode(packed, { plainBytes: plainBytes + 1 }), FormatError)
    await assert.rejects(decode(packed, { storedBytes: packed.length - 1 }), FormatError)
    await assert.rejects(decode(packed, { encoding: encodings.raw }), FormatError)
    await assert.rejects(decode(bomb, { storedBytes: bomb.length }), FormatError)
    await assert.rejects(decode(randomBytes(1000), { storedBytes: 1000 }), FormatError)
    await assert.rejects(decode(packed, { plainBytes: bufferBytes + 1 }), FormatError)
  })
}

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
