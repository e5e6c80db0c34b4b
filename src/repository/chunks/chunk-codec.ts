/**
 * A chunk to its stored bytes and back, in place: zstd unless that does not pay, then encryption if the repository has it.
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
  const plain = buffer.subarray(0, record.plainBytes)
  const packed = record.level === undefined ? undefined : pack(plain, record.level)
  const inner = packed ?? plain
  const encoding = packed === undefined ? encodings.raw : encodings.zstd
  if (keys === undefined) {
    if (packed !== undefined) packed.copy(buffer)
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
 * Turns the stored bytes of a record within `buffer` into its plain bytes, which begin where those did; proven by its tag
 * if it is encrypted, then by its id. FormatError when they are not what the id says.
 */
export function decodeInPlace(buffer: Buffer, record: StoredRecord, keys: RecordKeys | undefined): void {
  const stored = buffer.subarray(record.storedAt, record.storedAt + record.storedBytes)
  check(stored.length === record.storedBytes, 'the record is cut off')
  check(record.storedAt + record.plainBytes <= buffer.length, `a record of ${record.plainBytes} bytes`)
  check(record.encrypted || keys === undefined, 'a record that is not encrypted')
  check(!record.encrypted || keys !== undefined, 'an encrypted record where there is no encryption')
  if (record.encoding === encodings.raw) {
    const inner = keys === undefined ? stored : openRecord(stored, stored, headerOf(record), keys)
    check(inner.length === record.plainBytes, 'a raw record of the wrong length')
    checkId(inner, record, keys)
    return
  }
  const space = workSpace(stored.length)
  const packed = keys === undefined ? copyOf(stored, space) : openRecord(stored, space, headerOf(record), keys)
  const plain = buffer.subarray(record.storedAt, record.storedAt + record.plainBytes)
  check(decompress(packed, plain), `the data does not decompress to ${record.plainBytes} bytes`)
  checkId(plain, record, keys)
}

function copyOf(stored: Buffer, space: Buffer): Buffer {
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
