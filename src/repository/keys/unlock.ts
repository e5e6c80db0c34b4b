/**
 * From a configuration and whatever key was given to the seal of the repository.
 */
import { randomBytes } from 'node:crypto'
import { failure } from '../../errors.ts'
import { objectKeys } from '../format.ts'
import { checkProof, putConfig, type RepositoryConfig } from '../repository-config.ts'
import type { Backend } from '../storage/backend.ts'
import { KeyRing, putKeySlot, type Unlocked, unlockSlot } from './key-ring.ts'
import { type KeyChoice, secretOf } from './key-secret.ts'
import { keyedSeal, masterKeyBytes } from './keyed-seal.ts'
import { plainSeal, type Seal } from './seal.ts'

/** The key of a repository, for who opens it. The key file goes first when both are there. */
export interface Unlock {
  /** Called once, when it is needed. */
  readonly passphrase?: () => Promise<string>
  /** Path of a key file. */
  readonly keyFile?: string
  /**
   * Without it a repository that is not encrypted is refused, because somebody expects it to be: who can write to the place
   * could otherwise put an open repository there and be given the next backup in clear.
   */
  readonly onlyIfNeeded?: boolean
}

/** How a new repository is protected; the choice is the user's, by name. */
export type Encryption = 'none' | KeyChoice

export interface SealedBy {
  readonly seal: Seal
  /** Undefined without encryption. */
  readonly keys: KeyRing | undefined
}

/** REPOSITORY_LOCKED, REPOSITORY_WRONG_KEY, REPOSITORY_NOT_ENCRYPTED, REPOSITORY_DAMAGED, KEY_INVALID. */
export async function unlockRepository(
  backend: Backend,
  config: RepositoryConfig,
  { passphrase, keyFile, onlyIfNeeded = false }: Unlock,
  now: () => Date,
): Promise<SealedBy> {
  const path = backend.location
  const named = passphrase !== undefined || keyFile !== undefined
  if (config.encryption === undefined) {
    if (named && !onlyIfNeeded) throw failure('REPOSITORY_NOT_ENCRYPTED', { path })
    return { seal: plainSeal, keys: undefined }
  }
  if (keyFile === undefined && passphrase === undefined) throw failure('REPOSITORY_LOCKED', { path })
  const choice = keyFile === undefined ? { passphrase: (await passphrase?.()) ?? '' } : { keyFile }
  const unlocked = await unlockSlot(backend, config.id, choice)
  const sealedBy = sealOf(backend, config, unlocked, now)
  checkProof(backend, config, sealedBy.seal)
  return sealedBy
}

function sealOf(backend: Backend, { id }: RepositoryConfig, unlocked: Unlocked, now: () => Date): SealedBy {
  return { seal: keyedSeal(unlocked.masterKey, id), keys: new KeyRing(backend, id, unlocked, now) }
}

/**
 * Writes what makes `backend`'s place a repository: the first key slot, then the configuration. Killed in between it leaves
 * a slot of a repository that never was. REPOSITORY_NOT_EMPTY, KEY_INVALID.
 */
export async function initRepository(
  backend: Backend,
  config: RepositoryConfig,
  encryption: Encryption,
  now: () => Date,
): Promise<SealedBy> {
  const sealedBy = encryption === 'none' ? undefined : await firstKey(backend, config, encryption, now)
  const outcome = await putConfig(backend, config, sealedBy?.seal ?? plainSeal)
  if (outcome === 'stored') return sealedBy ?? { seal: plainSeal, keys: undefined }
  if (sealedBy?.keys !== undefined) await backend.delete(objectKeys.keySlot(sealedBy.keys.openedWith))
  throw failure('REPOSITORY_NOT_EMPTY', { path: backend.location, found: 'a repository' })
}

async function firstKey(
  backend: Backend,
  config: RepositoryConfig,
  choice: KeyChoice,
  now: () => Date,
): Promise<SealedBy> {
  const masterKey = randomBytes(masterKeyBytes)
  const secret = await secretOf(choice)
  const slot = await putKeySlot(backend, config.id, secret, 'the first key', masterKey, now())
  return sealOf(backend, config, { masterKey, slot }, now)
}
