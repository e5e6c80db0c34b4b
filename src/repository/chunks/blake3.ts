/**
 * BLAKE3-256: the name of every chunk and the seal of every structure of the repository; with a key in one that is encrypted.
 */
import { Blake3Hasher, blake3 } from '@napi-rs/blake-hash'

export const digestBytes = 32

/** The 32-byte digest of `data`. */
export function blake3Digest(data: Uint8Array): Buffer {
  return blake3(asBuffer(data))
}

/** The digest of `parts` as if they were one. */
export function blake3DigestOf(parts: Iterable<Uint8Array>): Buffer {
  return digestWith(new Blake3Hasher(), parts)
}

/** The keyed digest of `parts` as if they were one; `key` has 32 bytes. Nobody without the key can make or check it. */
export function blake3Keyed(key: Uint8Array, parts: Iterable<Uint8Array>): Buffer {
  return digestWith(Blake3Hasher.newKeyed(asBuffer(key)), parts)
}

function digestWith(hasher: Blake3Hasher, parts: Iterable<Uint8Array>): Buffer {
  for (const part of parts) hasher.update(asBuffer(part))
  return hasher.digestBuffer()
}

/** The same bytes as a Buffer, not copied. */
export function asBuffer(data: Uint8Array): Buffer {
  return Buffer.isBuffer(data) ? data : Buffer.from(data.buffer, data.byteOffset, data.byteLength)
}
