/**
 * Records under encryption: nonce (12) | AES-256-GCM of the bytes as they would be stored without | tag (16).
 * The key is the record's own, derived from its id, so that a record may stand in any pack, and no number of records uses up
 * the random nonces. The header's fields are the associated data, so that no record can stand for another.
 * See docs/repository-format.md, "Encryption".
 */
import { type CipherGCM, createCipheriv, createDecipheriv, type DecipherGCM, randomFillSync } from 'node:crypto'
import { blake3Keyed } from '../chunks/blake3.ts'
import { freeNow } from '../chunks/free-memory.ts'
import { check, FormatError, type RecordHeader, recordAssociatedData, recordSealBytes } from '../format.ts'
import type { RecordKeys } from './seal.ts'

const algorithm = 'aes-256-gcm'
const nonceBytes = 12
const tagBytes = recordSealBytes - nonceBytes
/** By measurement: larger pieces cost fresh memory, smaller ones calls. */
const pieceBytes = 64 * 1024

const ownKey = ({ dataKey }: RecordKeys, id: Uint8Array) => blake3Keyed(dataKey, [id])

/**
 * Where the record of a chunk is made in its buffer, so that the bytes within it lie at a multiple of 8: copying them into
 * shared memory at any other place takes longer than to encrypt them.
 */
export const closedAt = 4
const innerAt = closedAt + nonceBytes

/**
 * Makes the record of `header.storedBytes` at `closedAt` of `buffer` from `inner`, the bytes to be encrypted, which stand in
 * other memory or at the beginning of `buffer`.
 */
export function closeRecord(buffer: Buffer, inner: Buffer, header: RecordHeader, keys: RecordKeys): void {
  const end = innerAt + inner.length
  const target = buffer.subarray(innerAt, end)
  // Not copyWithin, which is slow in shared memory.
  const isWithin = inner.buffer === buffer.buffer
  if (isWithin) inner.copy(target)
  const nonce = randomFillSync(Buffer.alloc(nonceBytes))
  const cipher = createCipheriv(algorithm, ownKey(keys, header.id), nonce, { authTagLength: tagBytes })
  cipher.setAAD(recordAssociatedData(header))
  transform(cipher, isWithin ? target : inner, target)
  cipher.final()
  buffer.set(nonce, closedAt)
  buffer.set(cipher.getAuthTag(), end)
}

/** Decrypts `stored` to the beginning of `target`, which may be `stored` itself; answers what was encrypted. FormatError. */
export function openRecord(stored: Buffer, target: Buffer, header: RecordHeader, keys: RecordKeys): Buffer {
  check(stored.length > recordSealBytes, 'the record is cut off')
  const end = stored.length - tagBytes
  const nonce = Buffer.from(stored.subarray(0, nonceBytes))
  const decipher = createDecipheriv(algorithm, ownKey(keys, header.id), nonce, { authTagLength: tagBytes })
  decipher.setAAD(recordAssociatedData(header))
  decipher.setAuthTag(Buffer.from(stored.subarray(end)))
  const inner = target.subarray(0, end - nonceBytes)
  transform(decipher, stored.subarray(nonceBytes, end), inner)
  try {
    decipher.final()
  } catch (error) {
    throw new FormatError('it was not encrypted with the key of this repository, or has changed since', {
      cause: error,
    })
  }
  return inner
}

/** Where the two overlap, `target` does not begin behind `source`: what is written was read. */
function transform(cipher: CipherGCM | DecipherGCM, source: Buffer, target: Buffer): void {
  for (let at = 0; at < source.length; at += pieceBytes) {
    const piece = cipher.update(source.subarray(at, at + pieceBytes))
    target.set(piece, at)
    freeNow(piece)
  }
}
