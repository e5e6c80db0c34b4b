/**
 * A key slot, keys/<slot>.json: the master key of a repository, wrapped by a key that is derived from a passphrase
 * (Argon2id, made dear on purpose) or from a key file (HKDF). Readable by everybody, of use to who has the secret.
 * Everything in a slot is bound to the wrapped key, so that nothing of it can be changed or moved to another repository.
 */
import { argon2, hkdfSync, randomBytes } from 'node:crypto'
import { promisify } from 'node:util'
import * as z from 'zod'
import { check, objectKeys } from '../format.ts'
import { isPointId } from '../recovery-point.ts'
import type { Secret, SecretKind } from './key-secret.ts'
import { closeBytes, masterKeyBytes, openBytes } from './keyed-seal.ts'
import { plainSeal } from './seal.ts'
import { encryptionFeature, sealJson, unsealJson } from './sealed-json.ts'

/** RFC 9106, the second recommended choice, on one lane: Node computes the lanes one after the other. */
const passphraseCost = { memoryKiB: 64 * 1024, passes: 3, lanes: 1 }
/** What a slot may ask of us: whoever can write to the repository can write slots. */
const costLimits = { memoryKiB: 1024 * 1024, passes: 64, lanes: 16 }
const saltBytes = 32
export const labelMaxLength = 200

const salt = z.string().regex(/^[0-9a-f]{64}$/)
const argonShape = z
  .object({
    name: z.literal('argon2id'),
    memoryKiB: z.int().min(8).max(costLimits.memoryKiB),
    passes: z.int().min(1).max(costLimits.passes),
    lanes: z.int().min(1).max(costLimits.lanes),
    salt,
  })
  .refine(({ memoryKiB, lanes }) => memoryKiB >= 8 * lanes, 'too little memory for its lanes')
const hkdfShape = z.object({ name: z.literal('hkdf-sha-256'), salt })
const common = {
  id: z.string().refine(isPointId, 'no id'),
  repositoryId: z.uuid(),
  label: z.string().max(labelMaxLength),
  createdAt: z.iso.datetime(),
  /** Nonce, ciphertext and tag of the master key, base64. */
  wrapped: z.base64().max(100),
}
const slotShape = z.discriminatedUnion('kind', [
  z.object({ ...common, kind: z.literal('passphrase'), kdf: argonShape }),
  z.object({ ...common, kind: z.literal('key-file'), kdf: hkdfShape }),
])

/** What a slot says to everybody. */
export type KeySlot = z.infer<typeof slotShape>

const kind = 'key slot'

export function encodeKeySlot(slot: KeySlot): Buffer {
  return sealJson(plainSeal, kind, objectKeys.keySlot(slot.id), slot, [encryptionFeature])
}

/** FormatError when it is no slot, or not the one of this name. */
export function decodeKeySlot(id: string, bytes: Buffer): KeySlot {
  const slot = unsealJson(plainSeal, kind, objectKeys.keySlot(id), bytes, slotShape)
  check(slot.id === id, `it is the slot ${slot.id}`)
  return slot
}

/** How dear it is to try a slot: cheap ones are tried first, so that a hostile one delays nobody who has a key. */
export function costOf({ kdf }: KeySlot): number {
  return kdf.name === 'argon2id' ? kdf.memoryKiB * kdf.passes : 0
}

export interface NewSlot {
  readonly id: string
  readonly repositoryId: string
  readonly label: string
  readonly createdAt: string
}

export async function makeKeySlot(about: NewSlot, secret: Secret, masterKey: Uint8Array): Promise<KeySlot> {
  const fresh = { ...about, wrapped: '' }
  const newSalt = randomBytes(saltBytes).toString('hex')
  const slot: KeySlot =
    secret.kind === 'passphrase'
      ? { ...fresh, kind: 'passphrase', kdf: { name: 'argon2id', ...passphraseCost, salt: newSalt } }
      : { ...fresh, kind: 'key-file', kdf: { name: 'hkdf-sha-256', salt: newSalt } }
  const wrapped = closeBytes(await wrappingKey(slot, secret), boundTo(slot), masterKey)
  return { ...slot, wrapped: wrapped.toString('base64') }
}

/** The master key; FormatError when the secret is not this slot's, or the slot has been changed. */
export async function openKeySlot(slot: KeySlot, secret: Secret): Promise<Buffer> {
  const masterKey = openBytes(await wrappingKey(slot, secret), boundTo(slot), Buffer.from(slot.wrapped, 'base64'))
  check(masterKey.length === masterKeyBytes, `a master key of ${masterKey.length} bytes`)
  return masterKey
}

/** All of the slot but the wrapped key. */
function boundTo({ id, repositoryId, label, createdAt, kind: secretKind, kdf }: KeySlot): string {
  const parameters = kdf.name === 'argon2id' ? [kdf.memoryKiB, kdf.passes, kdf.lanes] : []
  return JSON.stringify([kind, repositoryId, id, secretKind, label, createdAt, kdf.name, kdf.salt, ...parameters])
}

const argon2id = promisify(argon2)

async function wrappingKey({ kdf, id, repositoryId }: KeySlot, secret: Secret): Promise<Uint8Array> {
  const nonce = Buffer.from(kdf.salt, 'hex')
  if (kdf.name === 'hkdf-sha-256') {
    const info = `umbra key slot ${id} of repository ${repositoryId}`
    return new Uint8Array(hkdfSync('sha256', secret.bytes, nonce, info, 32))
  }
  return await argon2id('argon2id', {
    message: secret.bytes,
    nonce,
    memory: kdf.memoryKiB,
    passes: kdf.passes,
    parallelism: kdf.lanes,
    tagLength: 32,
  })
}

/** What an operator calls a kind of secret. */
export const secretWord: Readonly<Record<SecretKind, string>> = { passphrase: 'passphrase', 'key-file': 'key file' }
