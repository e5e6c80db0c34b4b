/**
 * Pictures of screens: what QEMU writes becomes a PNG that others can read; what is none, or too large, is left out.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { crc32, inflateSync } from 'node:zlib'
import { pngOf } from './console-image.ts'

const ppm = (width: number, height: number, pixels: Uint8Array) =>
  Buffer.concat([Buffer.from(`P6\n${width} ${height}\n255\n`), pixels])

function chunksOf(png: Buffer): Map<string, Buffer> {
  const chunks = new Map<string, Buffer>()
  for (let at = 8; at < png.length; ) {
    const length = png.readUInt32BE(at)
    const [type, data] = [png.toString('latin1', at + 4, at + 8), png.subarray(at + 8, at + 8 + length)]
    assert.equal(png.readUInt32BE(at + 8 + length), crc32(png.subarray(at + 4, at + 8 + length)), type)
    chunks.set(type, data)
    at += 12 + length
  }
  return chunks
}

test('a PPM becomes a PNG with the same pixels', async () => {
  const pixels = Buffer.from([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18])
  const png = await pngOf(ppm(3, 2, pixels), 1000)
  assert.ok(png !== undefined)
  const chunks = chunksOf(Buffer.from(png))
  const header = chunks.get('IHDR')
  assert.deepEqual([header?.readUInt32BE(0), header?.readUInt32BE(4), header?.[8], header?.[9]], [3, 2, 8, 2])
  const lines = inflateSync(chunks.get('IDAT') ?? Buffer.alloc(0))
  assert.deepEqual(lines, Buffer.concat([Buffer.of(0), pixels.subarray(0, 9), Buffer.of(0), pixels.subarray(9)]))
})

test('a PNG stays as it is', async () => {
  const png = Buffer.from('\x89PNG\r\n\x1a\nand so on', 'latin1')
  assert.deepEqual(await pngOf(png, 100), png)
})

test('what is no picture, cut short, beyond measure or too large is left out', async () => {
  const bad = [
    Buffer.alloc(0),
    Buffer.from('P5\n1 1\n255\n...'),
    ppm(2, 2, Buffer.alloc(11)),
    ppm(0, 2, Buffer.alloc(12)),
    ppm(99_999, 1, Buffer.alloc(12)),
    Buffer.from('P6\n2 2\n65535\n'),
  ]
  for (const picture of bad) assert.equal(await pngOf(picture, 1000), undefined, picture.toString('latin1', 0, 12))
  assert.equal(await pngOf(ppm(2, 2, Buffer.alloc(12)), 20), undefined)
})
