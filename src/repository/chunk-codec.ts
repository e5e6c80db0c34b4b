/**
 * A chunk to its stored bytes and back: zstd unless that does not pay, and BLAKE3 of the plain bytes as its name.
 * The work runs on the threads of libuv's pool. See docs/repository-format.md, "Records".
 */
import { promisify } from 'node:util'
import { constants, zstdCompress, zstdDecompress } from 'node:zlib'
import { blake3Digest } from './blake3.ts'
import { check, type Encoding, encodings, FormatError, type RecordHeader } from './format.ts'

const compress = promisify(zstdCompress)
const decompress = promisify(zstdDecompress)

/** zstd levels a repository may be made with: -50 (fast) to 19; -1 is not one, because Node takes it as "not set". */
export const compressionLevels = { min: -50, default: 1, max: 19 }

export interface StoredForm {
  readonly encoding: Encoding
  readonly bytes: Uint8Array
}

/** The shorter of the compressed and the plain bytes. `plain` must not change until it resolves, and may be the answer. */
export async function encodeChunk(plain: Buffer, level: number): Promise<StoredForm> {
  if (looksIncompressible(plain)) return { encoding: encodings.raw, bytes: plain }
  // One output buffer as large as the result can be: with Node's 16 KiB pieces this takes two to three times as long.
  const chunkSize = plain.length + Math.ceil(plain.length / 128) + 512
  const packed = await compress(plain, { chunkSize, params: { [constants.ZSTD_c_compressionLevel]: level } })
  return packed.length < plain.length
    ? { encoding: encodings.zstd, bytes: packed }
    : { encoding: encodings.raw, bytes: plain }
}

/** The plain bytes of a record, proven by its id. FormatError when they are not what the id says. */
export async function decodeChunk(header: RecordHeader, stored: Buffer): Promise<Buffer> {
  check(stored.length === header.storedBytes, 'the record is cut off')
  const plain = header.encoding === encodings.raw ? stored : await expand(header, stored)
  check(plain.length === header.plainBytes, `${plain.length} bytes instead of ${header.plainBytes}`)
  check(blake3Digest(plain).equals(header.id), 'the data does not match its digest')
  return plain
}

async function expand(header: RecordHeader, stored: Buffer): Promise<Buffer> {
  try {
    return await decompress(stored, { chunkSize: header.plainBytes + 64, maxOutputLength: header.plainBytes })
  } catch (error) {
    throw new FormatError('the data does not decompress', { cause: error })
  }
}

const sampleCount = 16
const sampleBytes = 256
/** Chi-square of 255 degrees of freedom: random bytes stay below this but once in 10^7 times. */
const randomLimit = 390

/**
 * Whether samples of the data look like random bytes (encrypted, or compressed already), in a few microseconds. What it
 * takes for random and is not, is stored larger than it need be, nothing else.
 */
export function looksIncompressible(plain: Uint8Array): boolean {
  if (plain.length < sampleCount * sampleBytes * 2) return false
  const counts = new Uint32Array(256)
  const stride = Math.floor((plain.length - sampleBytes) / (sampleCount - 1))
  for (let sample = 0; sample < sampleCount; sample += 1) {
    const start = sample * stride
    for (let at = start; at < start + sampleBytes; at += 1) {
      const value = plain[at] ?? 0
      counts[value] = (counts[value] ?? 0) + 1
    }
  }
  const expected = (sampleCount * sampleBytes) / 256
  let chiSquare = 0
  for (const count of counts) chiSquare += (count - expected) ** 2 / expected
  return chiSquare < randomLimit
}
