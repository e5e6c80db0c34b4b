/**
 * The key of a repository as the user named it, for opening one and for making one. A passphrase comes from a file, from
 * UMBRA_PASSPHRASE or from a terminal, never from the command line, which everybody on the host can read.
 */
import type { Configuration, NamedKey } from '../config.ts'
import { failure } from '../errors.ts'
import { passphraseMaxBytes, readSmallFile } from '../repository/keys/key-secret.ts'
import type { Encryption, KeyChoice, Unlock } from '../repository/repository.ts'
import { askNewPassphrase, askPassphrase, canAsk, processTerminal, type Terminal } from './passphrase-prompt.ts'

export interface UnlockOptions {
  /** The user said that no encryption is meant: a named key is used where it is needed and otherwise not missed. */
  readonly onlyIfNeeded?: boolean
  readonly terminal?: Terminal
}

/**
 * What opens the repository: the named key, else whoever sits at the terminal, else nothing. It remembers the passphrase, and
 * opens the repository again, or hands it on, without asking once more.
 */
export function unlockOf(
  { key }: Configuration,
  { onlyIfNeeded = false, terminal = processTerminal }: UnlockOptions = {},
): Unlock {
  if (key === undefined) {
    if (!canAsk(terminal)) return {}
    return { passphrase: once(() => askPassphrase('passphrase of the repository', terminal)), onlyIfNeeded: true }
  }
  if ('keyFile' in key) return { keyFile: key.keyFile, onlyIfNeeded }
  return { passphrase: once(() => passphraseOf(key)), onlyIfNeeded }
}

function once(ask: () => Promise<string>): () => Promise<string> {
  let told: Promise<string> | undefined
  return () => {
    told ??= ask()
    return told
  }
}

/** The same for checks that must not wait for anybody. */
export function namedUnlock(settings: Configuration): Unlock {
  return settings.key === undefined ? {} : unlockOf(settings)
}

/** KEY_INVALID, HOST_IO. */
export async function keyChoiceOf(key: NamedKey): Promise<KeyChoice> {
  return 'keyFile' in key ? { keyFile: key.keyFile } : { passphrase: await passphraseOf(key) }
}

async function passphraseOf(key: Exclude<NamedKey, { keyFile: string }>): Promise<string> {
  return 'passphrase' in key ? key.passphrase() : readPassphraseFile(key.passphraseFile)
}

/** The text of the file, UTF-8, without the end of its line. */
export async function readPassphraseFile(path: string): Promise<string> {
  const bytes = await readSmallFile(path, passphraseMaxBytes + 2)
  const refuse = (reason: string) => failure('KEY_INVALID', { what: `the passphrase in ${path}`, reason })
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes).replace(/\r?\n$/, '')
  } catch {
    throw refuse('it is not UTF-8')
  }
  if (/[\r\n]/.test(text)) throw refuse('it has more than one line')
  if (text === '') throw refuse('it is empty')
  return text
}

const bothWays = 'name a key (--passphrase-file FILE or --key-file FILE), or say --no-encryption'

/** How a new repository is to be protected: said by name, or at the terminal if `ask`. USAGE tells the ways. */
export async function encryptionOf(
  { key }: Configuration,
  isEncrypted: boolean,
  what: string,
  ask: boolean,
): Promise<Encryption> {
  if (!isEncrypted) return 'none'
  if (key !== undefined) return keyChoiceOf(key)
  if (ask && canAsk()) return { passphrase: await askNewPassphrase() }
  throw failure('USAGE', { reason: `${what}: ${bothWays}` })
}

export interface NewKeyOptions {
  readonly newPassphraseFile?: string
  readonly newKeyFile?: string
}

/** The key to add: named by its own options, or asked for. USAGE. */
export async function newKeyOf({ newPassphraseFile, newKeyFile }: NewKeyOptions): Promise<KeyChoice> {
  if (newPassphraseFile !== undefined && newKeyFile !== undefined) {
    throw failure('USAGE', { reason: '--new-passphrase-file and --new-key-file do not go together' })
  }
  if (newKeyFile !== undefined) return { keyFile: newKeyFile }
  if (newPassphraseFile !== undefined) return { passphrase: await readPassphraseFile(newPassphraseFile) }
  if (canAsk()) return { passphrase: await askNewPassphrase() }
  throw failure('USAGE', { reason: 'name the new key: --new-passphrase-file FILE or --new-key-file FILE' })
}
