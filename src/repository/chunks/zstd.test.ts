/**
 * zstd from buffer to buffer: in contexts that are kept it does as the public functions of Node.js do, whatever came before.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { zstdCompressSync } from 'node:zlib'
import { compress, compressAnew, decompress, decompressAnew, frameBytesMax, keepsContexts } from './zstd.ts'

const samples = [
  Buffer.from('x'),
  Buffer.alloc(512 * 1024),
  Buffer.alloc(300_000, 'some words of a text; '),
  randomBytes(512 * 1024),
  randomBytes(999),
  Buffer.concat([Buffer.alloc(100_000, 'text '), randomBytes(100_000), Buffer.alloc(100_000)]),
]

const packed = (plain: Buffer, level: number, how = compress) => {
  const target = Buffer.alloc(frameBytesMax(plain.length))
  return target.subarray(0, how(plain, level, target))
}

test('this Node.js has what contexts are kept with', () => {
  assert.ok(keepsContexts())
})

test('a kept context writes the bytes the public function writes, at every level, one after the other', () => {
  for (const level of [1, -5, 19, 1]) {
    for (const plain of [...samples, ...samples]) {
      assert.ok(packed(plain, level).equals(packed(plain, level, compressAnew)))
    }
  }
})

for (const [how, expand] of Object.entries({ 'in a kept context': decompress, 'the public way': decompressAnew })) {
  const expands = (source: Buffer, bytes: number) => expand(source, Buffer.alloc(bytes))

  test(`${how}, everything comes back`, () => {
    for (const plain of samples) {
      const target = Buffer.alloc(plain.length)
      assert.ok(expand(packed(plain, 1), target))
      assert.ok(target.equals(plain))
    }
  })

  test(`${how}, what is no frame of just that length is refused, and the next one comes back`, () => {
    const plain = Buffer.concat([Buffer.alloc(200_000, 'text '), randomBytes(200_000)])
    const good = packed(plain, 1)
    const target = Buffer.alloc(plain.length)
    const spoiled = Buffer.from(good)
    spoiled[spoiled.length >> 1] = (spoiled[spoiled.length >> 1] ?? 0) ^ 0x55
    const refused: [string, Buffer, number][] = [
      ['cut off', good.subarray(0, -1), plain.length],
      ['cut off early', good.subarray(0, 100), plain.length],
      ['nothing but a header', good.subarray(0, 6), plain.length],
      ['nothing', Buffer.alloc(0), plain.length],
      ['noise', randomBytes(5000), plain.length],
      ['shorter than said', good, plain.length + 1],
      ['longer than said', good, plain.length - 1],
      ['much longer than said', zstdCompressSync(Buffer.alloc(50_000_000)), plain.length],
    ]
    for (const [what, source, bytes] of refused) {
      assert.equal(expands(source, bytes), false, what)
      assert.ok(expand(good, target), `after ${what}`)
      assert.ok(target.equals(plain), `after ${what}`)
    }
    // Without a checksum in the frame, spoiled data may well expand to something: the chunk's id tells.
    expand(spoiled, Buffer.alloc(plain.length))
    assert.ok(expand(good, target))
    assert.ok(target.equals(plain))
  })
}
