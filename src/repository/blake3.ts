/**
 * BLAKE3-256: the name of every chunk and the seal of every structure of the repository.
 */
import { Blake3Hasher, blake3 } from '@napi-rs/blake-hash'

export const digestBytes = 32

/** The 32-byte digest of `data`. */
export function blake3Digest(data: Uint8Array): Buffer {
  return blake3(asBuffer(data))
}

/** The digest of `parts` as if they were one. */
export function blake3DigestOf(parts: Iterable<Uint8Array>): Buffer {
  const hasher = new Blake3Hasher()
  for (const part of parts) hasher.update(asBuffer(part))
  return hasher.digestBuffer()
}

/** The same bytes as a Buffer, not copied. */
export function asBuffer(data: Uint8Array): Buffer {
  return Buffer.isBuffer(data) ? data : Buffer.from(data.buffer, data.byteOffset, data.byteLength)
}
