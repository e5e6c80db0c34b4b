/**
 * The seal of an encrypted repository. Everything comes from its master key by HKDF-SHA-256, a key for each purpose:
 * names and digests are keyed BLAKE3, documents AES-256-GCM; records are record-seal.ts.
 */
import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from 'node:crypto'
import { asBuffer, blake3Keyed } from '../chunks/blake3.ts'
import { check, FormatError } from '../format.ts'
import type { Digested, Seal } from './seal.ts'

export const masterKeyBytes = 32

const algorithm = 'aes-256-gcm'
const nonceBytes = 12
const tagBytes = 16

/** The key for one purpose in one repository, 32 bytes in an array of its own. */
export function subKey(masterKey: Uint8Array, repositoryId: string, purpose: string): Uint8Array {
  return new Uint8Array(hkdfSync('sha256', masterKey, '', `umbra ${purpose} of repository ${repositoryId}`, 32))
}

export function keyedSeal(masterKey: Uint8Array, repositoryId: string): Seal {
  check(masterKey.length === masterKeyBytes, `a master key of ${masterKey.length} bytes`)
  const keyFor = (purpose: string) => subKey(masterKey, repositoryId, purpose)
  const idKey = keyFor('names of records')
  const documentKey = keyFor('documents')
  const digestKeys: Readonly<Record<Digested, Uint8Array>> = {
    'table of contents': keyFor('digest of a table of contents'),
    index: keyFor('digest of an index'),
    document: keyFor('digest of a document'),
    configuration: keyFor('digest of the configuration'),
  }
  return {
    encrypted: true,
    idOf: (plain) => blake3Keyed(idKey, [plain]),
    digest: (what, parts) => blake3Keyed(digestKeys[what], parts),
    close: (key, outline, body) => closeBytes(documentKey, placeOf(repositoryId, key, outline), body),
    open: (key, outline, stored) => openBytes(documentKey, placeOf(repositoryId, key, outline), stored),
    recordKeys: { idKey, dataKey: keyFor('records') },
  }
}

/** What a document is bound to; two places never have the same text. */
const placeOf = (repositoryId: string, key: string, outline: string) => JSON.stringify([repositoryId, key, outline])

/** Nonce, ciphertext, tag of `plain`, bound to `associated`. */
export function closeBytes(key: Uint8Array, associated: string, plain: Uint8Array): Buffer {
  const nonce = randomBytes(nonceBytes)
  const cipher = createCipheriv(algorithm, key, nonce, { authTagLength: tagBytes })
  cipher.setAAD(Buffer.from(associated))
  return Buffer.concat([nonce, cipher.update(plain), cipher.final(), cipher.getAuthTag()])
}

/** What `closeBytes` was given; FormatError when key or `associated` are others, or a bit has changed. */
export function openBytes(key: Uint8Array, associated: string, stored: Uint8Array): Buffer {
  check(stored.length >= nonceBytes + tagBytes, 'it is cut off')
  const bytes = asBuffer(stored)
  const end = bytes.length - tagBytes
  const decipher = createDecipheriv(algorithm, key, bytes.subarray(0, nonceBytes), { authTagLength: tagBytes })
  decipher.setAAD(Buffer.from(associated))
  decipher.setAuthTag(bytes.subarray(end))
  try {
    return Buffer.concat([decipher.update(bytes.subarray(nonceBytes, end)), decipher.final()])
  } catch (error) {
    throw new FormatError('it was not encrypted for this place with this key, or has changed since', { cause: error })
  }
}
