/**
 * What opens a key slot: a passphrase, or the 32 bytes of a key file. Neither is ever told again, in no message.
 */
import { randomBytes } from 'node:crypto'
import { open } from 'node:fs/promises'
import { failure } from '../../errors.ts'

/** How a key is named by whoever gives it. */
export type KeyChoice = { readonly passphrase: string } | { readonly keyFile: string }

export type SecretKind = 'passphrase' | 'key-file'

/** The bytes from which a slot's own key is derived. */
export interface Secret {
  readonly kind: SecretKind
  readonly bytes: Uint8Array
}

/** The longest passphrase, in bytes of UTF-8. */
export const passphraseMaxBytes = 1024
const keyFileBytes = 32
/** Hexadecimal or base64 and some white space. */
const keyFileMaxBytes = 1024

/** KEY_INVALID, HOST_IO. */
export async function secretOf(choice: KeyChoice): Promise<Secret> {
  if ('passphrase' in choice) return passphraseSecret(choice.passphrase)
  return { kind: 'key-file', bytes: await readKeyFile(choice.keyFile) }
}

/**
 * Any Unicode, white space included; composed first (NFC), so that it does not matter how a keyboard makes its letters.
 * KEY_INVALID.
 */
export function passphraseSecret(text: string): Secret {
  const refuse = (reason: string) => failure('KEY_INVALID', { what: 'the passphrase', reason })
  if (text === '') throw refuse('it is empty')
  if (!text.isWellFormed()) throw refuse('it is not Unicode')
  const bytes = Buffer.from(text.normalize('NFC'))
  if (bytes.length > passphraseMaxBytes) throw refuse(`it is longer than ${passphraseMaxBytes} bytes`)
  return { kind: 'passphrase', bytes }
}

async function readKeyFile(path: string): Promise<Buffer> {
  const text = (await readSmallFile(path, keyFileMaxBytes)).toString('latin1').trim()
  if (/^[0-9a-f]{64}$/i.test(text)) return Buffer.from(text, 'hex')
  const key = Buffer.from(text, 'base64')
  if (/^[A-Za-z0-9+/]{43}=?$/.test(text) && key.length === keyFileBytes) return key
  const reason = 'it is not 32 bytes in hexadecimal or base64'
  throw failure('KEY_INVALID', { what: `the key file ${path}`, reason })
}

/** Makes a new key file, readable by its owner only; a file that is there is never touched. HOST_IO. */
export async function makeKeyFile(path: string): Promise<void> {
  try {
    await using file = await open(path, 'wx', 0o600)
    await file.writeFile(`${randomBytes(keyFileBytes).toString('hex')}\n`)
    await file.sync()
  } catch (error) {
    throw ioFailure(path, error)
  }
}

/** A file or pipe with a secret in it. KEY_INVALID when it is longer than `maxBytes`; HOST_IO. */
export async function readSmallFile(path: string, maxBytes: number): Promise<Buffer> {
  const content = Buffer.alloc(maxBytes + 1)
  let filled = 0
  try {
    await using file = await open(path, 'r')
    for (;;) {
      const { bytesRead } = await file.read(content, filled, content.length - filled)
      if (bytesRead === 0) break
      filled += bytesRead
    }
  } catch (error) {
    throw ioFailure(path, error)
  }
  if (filled <= maxBytes) return content.subarray(0, filled)
  throw failure('KEY_INVALID', { what: path, reason: `it is longer than ${maxBytes} bytes` })
}

/** The system's words name the path and nothing of the content. */
function ioFailure(path: string, error: unknown): unknown {
  const code = error instanceof Error && 'code' in error ? String(error.code) : ''
  const known: Record<string, string> = {
    ENOENT: 'there is no such file or directory',
    EEXIST: 'it is there already',
    EACCES: 'it may not be used',
    EISDIR: 'it is a directory',
  }
  return failure('HOST_IO', { reason: `${path}: ${known[code] ?? (code || 'it can not be used')}` }, error)
}
