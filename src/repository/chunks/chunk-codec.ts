/**
 * A chunk to its stored bytes and back: zstd unless that does not pay, then encryption if the repository has it.
 * BLAKE3 of the plain bytes, keyed where there is encryption, is its name.
 * Synchronous; codec-threads.ts runs it on threads. See docs/repository-format.md, "Records".
 */
import { check, encodings, type RecordHeader, type RecordKind, recordSealBytes } from '../format.ts'
import { closedAt, closeRecord, openRecord } from '../keys/record-seal.ts'
import type { RecordKeys } from '../keys/seal.ts'
import { blake3Digest, blake3Keyed } from './blake3.ts'
import { compress, decompress, frameBytesMax } from './zstd.ts'

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

/** A record and what it must become. */
export interface StoredRecord extends Omit<RecordHeader, 'id'> {
  readonly id: Uint8Array
  /** Where in a buffer its stored bytes stand, and then its plain ones. */
  readonly storedAt: number
}

/**
 * Replaces the plain bytes of `record` by their stored form: compressed if that is shorter, encrypted if there are keys.
 * The buffer has room for 32 bytes more than the plain ones.
 */
export function encodeInPlace(buffer: Buffer, record: PlainRecord, keys: RecordKeys | undefined): StoredForm {
  const plain = buffer.subarray(0, record.plainBytes)
  const packed = record.level === undefined ? undefined : pack(plain, record.level)
  const inner = packed ?? plain
  const encoding = packed === undefined ? encodings.raw : encodings.zstd
  if (keys === undefined) {
    // Not set or copy, which are slow into shared memory where it is not aligned.
    if (packed !== undefined) buffer.fill(packed, 0, packed.length)
    return { encoding, encrypted: false, storedAt: 0, storedBytes: inner.length }
  }
  const form = { encoding, encrypted: true, storedAt: closedAt, storedBytes: inner.length + recordSealBytes }
  closeRecord(buffer, inner, headerOf({ ...record, ...form }), keys)
  return form
}

const headerOf = (record: Omit<RecordHeader, 'id'> & { id: Uint8Array }): RecordHeader => ({
  ...record,
  id: Buffer.from(record.id),
})

/** What zstd made of it, in the work space; undefined when that is not shorter. */
function pack(plain: Buffer, level: number): Buffer | undefined {
  const target = workSpace(frameBytesMax(plain.length))
  const packedBytes = compress(plain, level, target)
  return packedBytes < plain.length ? target.subarray(0, packedBytes) : undefined
}

/** Where compressed bytes stand while they are made or read; a thread does one record at a time. It grows as needed. */
let space = Buffer.alloc(0)

function workSpace(bytes: number): Buffer {
  if (space.length < bytes) space = Buffer.allocUnsafeSlow(bytes)
  return space.subarray(0, bytes)
}

/**
 * Turns a record as it is stored, at `storedAt` of `buffer` or in `from`, into its plain bytes, at `storedAt` of `buffer`;
 * proven by its tag if it is encrypted, then by its id. FormatError when they are not what the id says.
 */
export function decodeRecord(buffer: Buffer, record: StoredRecord, keys: RecordKeys | undefined, from?: Buffer): void {
  const { storedAt, storedBytes, plainBytes } = record
  const stored = from ?? buffer.subarray(storedAt, storedAt + storedBytes)
  check(stored.length === storedBytes, 'the record is cut off')
  const plain = buffer.subarray(storedAt, storedAt + plainBytes)
  check(plain.length === plainBytes, `a record of ${plainBytes} bytes`)
  check(record.encrypted || keys === undefined, 'a record that is not encrypted')
  check(!record.encrypted || keys !== undefined, 'an encrypted record where there is no encryption')
  if (record.encoding === encodings.raw) {
    check(storedBytes - (keys === undefined ? 0 : recordSealBytes) === plainBytes, 'a raw record of the wrong length')
    if (keys !== undefined) openRecord(stored, plain, headerOf(record), keys)
    else if (from !== undefined) stored.copy(plain)
  } else {
    const packed =
      keys === undefined ? apart(stored, buffer) : openRecord(stored, workSpace(storedBytes), headerOf(record), keys)
    check(decompress(packed, plain), `the data does not decompress to ${plainBytes} bytes`)
  }
  checkId(plain, record, keys)
}

/** The same bytes, in memory that `buffer` is no part of. */
function apart(stored: Buffer, buffer: Buffer): Buffer {
  if (stored.buffer !== buffer.buffer) return stored
  const space = workSpace(stored.length)
  stored.copy(space)
  return space
}

function checkId(plain: Buffer, { id }: StoredRecord, keys: RecordKeys | undefined): void {
  const digest = keys === undefined ? blake3Digest(plain) : blake3Keyed(keys.idKey, [plain])
  check(digest.equals(id), 'the data does not match its digest')
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
