/**
 * A chunk to its stored bytes and back, in place: zstd unless that does not pay, then encryption if the repository has it.
 * BLAKE3 of the plain bytes, keyed where there is encryption, is its name.
 * Synchronous; codec-threads.ts runs it on threads. See docs/repository-format.md, "Records".
 */
import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib'
import { check, encodings, FormatError, type RecordHeader, type RecordKind, recordSealBytes } from '../format.ts'
import { closedAt, closeRecord, innerAt, openRecord } from '../keys/record-seal.ts'
import type { RecordKeys } from '../keys/seal.ts'
import { blake3Digest, blake3Keyed } from './blake3.ts'
import { freeNow } from './free-memory.ts'

/** zstd levels a repository may be made with: -50 (fast) to 19; -1 is not one, because Node takes it as "not set". */
export const compressionLevels = { min: -50, default: 1, max: 19 }

/** A record to be: its plain bytes stand at the beginning of a buffer. */
export interface PlainRecord {
  readonly id: Uint8Array
  readonly kind: RecordKind
  readonly plainBytes: number
  /** Of zstd; undefined: not to be compressed. */
  readonly level: number | undefined
}

/** What became of a plain record, and where in the buffer its stored bytes stand. */
export interface StoredForm extends Pick<RecordHeader, 'encoding' | 'encrypted' | 'storedBytes'> {
  readonly storedAt: number
}

/** Where in a buffer the stored bytes of a record stand, and what they must become. */
export interface StoredRecord extends Omit<RecordHeader, 'id'> {
  readonly id: Uint8Array
  readonly storedAt: number
}

/**
 * Replaces the plain bytes of `record` by their stored form: compressed if that is shorter, encrypted if there are keys.
 * The buffer has room for 32 bytes more than the plain ones.
 */
export function encodeInPlace(buffer: Buffer, record: PlainRecord, keys: RecordKeys | undefined): StoredForm {
  const at = keys === undefined ? 0 : innerAt
  const packedBytes = compressInPlace(buffer, record, at)
  // Not copyWithin, which is slow in shared memory.
  if (packedBytes === undefined && at > 0) buffer.copy(buffer, at, 0, record.plainBytes)
  const form = {
    encoding: packedBytes === undefined ? encodings.raw : encodings.zstd,
    encrypted: keys !== undefined,
    storedAt: keys === undefined ? 0 : closedAt,
    storedBytes: (packedBytes ?? record.plainBytes) + (keys === undefined ? 0 : recordSealBytes),
  }
  if (keys !== undefined) closeRecord(buffer, headerOf({ ...record, ...form }), keys)
  return form
}

const headerOf = (record: Omit<RecordHeader, 'id'> & { id: Uint8Array }): RecordHeader => ({
  ...record,
  id: Buffer.from(record.id),
})

/** Writes what zstd made of the plain bytes to `at` and answers its length; undefined when it is not shorter. */
function compressInPlace(buffer: Buffer, { plainBytes, level }: PlainRecord, at: number): number | undefined {
  if (level === undefined) return undefined
  const packed = zstdCompressSync(buffer.subarray(0, plainBytes), {
    // One output buffer for all there can be: with Node's 16 KiB pieces this takes two to three times as long.
    chunkSize: plainBytes + Math.ceil(plainBytes / 128) + 512,
    pledgedSrcSize: plainBytes,
    params: { [constants.ZSTD_c_compressionLevel]: level },
  })
  const packedBytes = packed.length
  const pays = packedBytes < plainBytes
  if (pays) buffer.set(packed, at)
  freeNow(packed)
  return pays ? packedBytes : undefined
}

/**
 * Turns the stored bytes of a record within `buffer` into its plain bytes, which begin where those did; proven by its tag
 * if it is encrypted, then by its id. FormatError when they are not what the id says.
 */
export function decodeInPlace(buffer: Buffer, record: StoredRecord, keys: RecordKeys | undefined): void {
  const stored = buffer.subarray(record.storedAt, record.storedAt + record.storedBytes)
  check(stored.length === record.storedBytes, 'the record is cut off')
  check(record.storedAt + record.plainBytes <= buffer.length, `a record of ${record.plainBytes} bytes`)
  check(record.encrypted || keys === undefined, 'a record that is not encrypted')
  check(!record.encrypted || keys !== undefined, 'an encrypted record where there is no encryption')
  const inner = keys === undefined ? stored : openRecord(stored, headerOf(record), keys)
  if (record.encoding === encodings.raw) {
    check(inner.length === record.plainBytes, 'a raw record of the wrong length')
    checkId(inner, record, keys)
    return
  }
  const plain = expand(inner, record.plainBytes)
  try {
    check(plain.length === record.plainBytes, `${plain.length} bytes instead of ${record.plainBytes}`)
    checkId(plain, record, keys)
    plain.copy(buffer, record.storedAt)
  } finally {
    freeNow(plain)
  }
}

function checkId(plain: Buffer, { id }: StoredRecord, keys: RecordKeys | undefined): void {
  const digest = keys === undefined ? blake3Digest(plain) : blake3Keyed(keys.idKey, [plain])
  check(digest.equals(id), 'the data does not match its digest')
}

function expand(stored: Buffer, plainBytes: number): Buffer {
  try {
    return zstdDecompressSync(stored, { chunkSize: plainBytes + 64, maxOutputLength: plainBytes })
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
