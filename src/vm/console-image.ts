/**
 * The picture of a VM's screen as a file that is worth keeping: a PNG, as QEMU writes since 7.1, or made of the PPM that it
 * wrote before (Netpbm, "P6"; PNG specification, third edition: IHDR, IDAT, IEND, colour type 2).
 */
import { promisify } from 'node:util'
import { crc32, deflate } from 'node:zlib'

const compress = promisify(deflate)
/** Wider or higher is no screen. */
const mostPixelsOnASide = 16_384
const bytesPerPixel = 3
const signature = Buffer.from('\x89PNG\r\n\x1a\n', 'latin1')

/** The picture as a PNG; undefined when it is none, or would be longer than `maxBytes`. */
export async function pngOf(picture: Uint8Array, maxBytes: number): Promise<Uint8Array | undefined> {
  const isPng = signature.equals(picture.subarray(0, signature.length))
  const png = isPng ? picture : await ppmToPng(picture)
  return png !== undefined && png.length <= maxBytes ? png : undefined
}

/** Undefined when it is no PPM of three times eight bits. */
async function ppmToPng(ppm: Uint8Array): Promise<Uint8Array | undefined> {
  const head = Buffer.from(ppm.buffer, ppm.byteOffset, Math.min(ppm.length, 256)).toString('latin1')
  const found = /^P6\s(?:#[^\n]*\n)?\s*(\d{1,5})\s+(\d{1,5})\s+255\s/.exec(head)
  if (found === null) return undefined
  const [width, height] = [Number(found[1]), Number(found[2])]
  const inRange = (side: number) => side > 0 && side <= mostPixelsOnASide
  const pixels = ppm.subarray(found[0].length)
  const lineBytes = width * bytesPerPixel
  if (!inRange(width) || !inRange(height) || pixels.length < lineBytes * height) return undefined
  const lines = Buffer.alloc((lineBytes + 1) * height) // each line begins with its filter: 0, none
  for (let y = 0; y < height; y++)
    lines.set(pixels.subarray(y * lineBytes, (y + 1) * lineBytes), y * (lineBytes + 1) + 1)
  const header = Buffer.alloc(13)
  header.writeUInt32BE(width, 0)
  header.writeUInt32BE(height, 4)
  header.set([8, 2, 0, 0, 0], 8)
  return Buffer.concat([
    signature,
    chunk('IHDR', header),
    chunk('IDAT', await compress(lines, { level: 9 })),
    chunk('IEND', Buffer.alloc(0)),
  ])
}

function chunk(type: string, data: Buffer): Buffer {
  const framed = Buffer.alloc(12 + data.length)
  framed.writeUInt32BE(data.length, 0)
  framed.write(type, 4, 'latin1')
  framed.set(data, 8)
  framed.writeUInt32BE(crc32(framed.subarray(4, 8 + data.length)), 8 + data.length)
  return framed
}
