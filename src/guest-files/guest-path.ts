/**
 * How a file of a guest is named on the command line: FILESYSTEM:/PATH, or /PATH where only one file system has it. Names are
 * bytes, kept as strings of one character a byte (latin1). Pure.
 */
import { failure } from '../errors.ts'

/** The longest path, as Linux has it. */
const mostPathBytes = 4096

/** Which file system is meant; undefined when only the path says it. */
export interface GuestPlace {
  /** A name of the list (`vda1`, `vg0/root`), `UUID=...` or `LABEL=...`. */
  readonly fileSystem: string | undefined
  /** Its names from the root on; none for the root. `..` is still in it. */
  readonly names: readonly string[]
  /** As it was given, for messages. */
  readonly text: string
}

/** `escaped`: names are written as `escapeName` prints them. USAGE. */
export function parsePlace(text: string, escaped = false): GuestPlace {
  const at = text.startsWith('/') ? -1 : placeOfColon(text)
  if (at < 0 && !text.startsWith('/')) {
    const reason = `${text} is no path in a guest: name it as vda1:/etc/fstab, or /etc/fstab; umbra files POINT lists the file systems`
    throw failure('USAGE', { reason })
  }
  const fileSystem = at < 0 ? undefined : text.slice(0, at)
  const path = toBytes(text.slice(at + 1), escaped)
  if (path.includes('\0') || path.length > mostPathBytes) {
    throw failure('USAGE', { reason: 'a path has at most 4096 bytes, and none of them is 0' })
  }
  return { fileSystem, names: namesOf(path), text }
}

/** A label may hold colons: the one before a slash counts, or the last one. */
function placeOfColon(text: string): number {
  const before = text.indexOf(':/')
  if (before > 0) return before
  return text.endsWith(':') && text.length > 1 ? text.length - 1 : -1
}

/** What a path or a pattern of the command line is in bytes. */
export function toBytes(text: string, escaped: boolean): string {
  const bytes = Buffer.from(text).toString('latin1')
  return escaped ? unescapeName(bytes) : bytes
}

export const namesOf = (path: string): string[] => path.split('/').filter((name) => name !== '' && name !== '.')

/** As helper-vm/umbra-files wants it. */
export const relativePath = (names: readonly string[]): string => (names.length === 0 ? '.' : `./${names.join('/')}`)

/** A name of bytes as text; undefined when it is no UTF-8. */
export function nameText(bytes: string): string | undefined {
  const buffer = Buffer.from(bytes, 'latin1')
  const text = buffer.toString('utf8')
  return Buffer.from(text).equals(buffer) ? text : undefined
}

const letters: Readonly<Record<string, string>> = { '\n': 'n', '\t': 't', '\r': 'r', '\\': '\\' }

/** On one line and harmless for a terminal: `\n`, `\\`, and `\ooo` for whatever else can not be printed. `unescapeName` undoes it. */
export function escapeName(bytes: string): string {
  const text = nameText(bytes)
  const octal = (char: string) =>
    [...Buffer.from(char, text === undefined ? 'latin1' : 'utf8')]
      .map((byte) => `\\${byte.toString(8).padStart(3, '0')}`)
      .join('')
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what this is about
  const odd = text === undefined ? /[\x00-\x1f\\\x7f-\xff]/g : /[\\\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu
  return (text ?? bytes).replace(odd, (char) => (letters[char] === undefined ? octal(char) : `\\${letters[char]}`))
}

function unescapeName(bytes: string): string {
  return bytes.replace(/\\([ntr\\]|[0-3][0-7]{2}|.?)/gs, (whole, code: string) => {
    const letter = Object.keys(letters).find((char) => letters[char] === code)
    if (letter !== undefined) return letter
    if (!/^[0-7]{3}$/.test(code))
      throw failure('USAGE', { reason: `${whole} is no escape: \\n, \\t, \\r, \\\\ and \\ooo are` })
    return String.fromCharCode(Number.parseInt(code, 8))
  })
}
