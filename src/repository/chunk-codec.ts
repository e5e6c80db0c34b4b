/**
 * A chunk to its stored bytes and back, in place: zstd unless that does not pay, and BLAKE3 of the plain bytes as its name.
 * Synchronous; codec-threads.ts runs it on threads. See docs/repository-format.md, "Records".
 */
import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib'
import { blake3Digest } from './blake3.ts'
import { check, type Encoding, encodings, FormatError } from './format.ts'

/** zstd levels a repository may be made with: -50 (fast) to 19; -1 is not one, because Node takes it as "not set". */
export const compressionLevels = { min: -50, default: 1, max: 19 }

/** The stored bytes stand at the beginning of the buffer. */
export interface StoredForm {
  readonly encoding: Encoding
  readonly storedBytes: number
}

/** Where in a buffer the stored bytes of a record stand, and what they must become. */
export interface StoredRecord {
  readonly id: Uint8Array
  readonly encoding: Encoding
  readonly storedAt: number
  readonly storedBytes: number
  readonly plainBytes: number
}

/** Replaces the first `plainBytes` of `buffer` by their compressed form, if that is shorter. */
export function encodeInPlace(buffer: Buffer, plainBytes: number, level: number): StoredForm {
  const packed = zstdCompressSync(buffer.subarray(0, plainBytes), {
    // One output buffer for all there can be: with Node's 16 KiB pieces this takes two to three times as long.
    chunkSize: plainBytes + Math.ceil(plainBytes / 128) + 512,
    pledgedSrcSize: plainBytes,
    params: { [constants.ZSTD_c_compressionLevel]: level },
  })
  const storedBytes = packed.length
  const pays = storedBytes < plainBytes
  if (pays) buffer.set(packed)
  freeNow(packed)
  return pays ? { encoding: encodings.zstd, storedBytes } : { encoding: encodings.raw, storedBytes: plainBytes }
}

/**
 * Turns a record within `buffer` into its plain bytes, proven by its id, and answers where in `buffer` they begin.
 * FormatError when they are not what the id says.
 */
export function decodeInPlace(buffer: Buffer, record: StoredRecord): number {
  const stored = buffer.subarray(record.storedAt, record.storedAt + record.storedBytes)
  check(stored.length === record.storedBytes, 'the record is cut off')
  check(record.plainBytes <= buffer.length, `a record of ${record.plainBytes} bytes`)
  if (record.encoding === encodings.raw) {
    check(record.storedBytes === record.plainBytes, 'a raw record of the wrong length')
    check(blake3Digest(stored).equals(record.id), 'the data does not match its digest')
    return record.storedAt
  }
  const plain = expand(stored, record.plainBytes)
  try {
    check(plain.length === record.plainBytes, `${plain.length} bytes instead of ${record.plainBytes}`)
    check(blake3Digest(plain).equals(record.id), 'the data does not match its digest')
    buffer.set(plain)
  } finally {
    freeNow(plain)
  }
  return 0
}

function expand(stored: Buffer, plainBytes: number): Buffer {
  try {
    return zstdDecompressSync(stored, { chunkSize: plainBytes + 64, maxOutputLength: plainBytes })
  } catch (error) {
    throw new FormatError('the data does not decompress', { cause: error })
  }
}

/**
 * Gives the memory of a buffer nobody else has back at once. Left to the collector, buffers outside of its heap drive it to
 * collect all of the heap every hundred chunks, which takes a third of the processor time of a restore.
 */
function freeNow(buffer: Buffer): void {
  const memory = buffer.buffer
  // Small buffers share Node's pool.
  if (memory instanceof ArrayBuffer && memory.byteLength > 2 * Buffer.poolSize) memory.transfer(0)
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
