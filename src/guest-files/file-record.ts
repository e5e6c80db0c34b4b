/**
 * The records of files that helper-vm/umbra-files answers: `TYPE MODE UID GID LINKS SIZE BLOCKS TIME`, the path, and where a
 * symbolic link leads, each ended by a zero byte; fields of dots only show that a search goes on. Everything is bounded.
 */
import { failure } from '../errors.ts'
import type { Answer, AnswerEnd } from './guest-reader.ts'

const kinds = {
  f: 'file',
  d: 'directory',
  l: 'symlink',
  p: 'fifo',
  s: 'socket',
  c: 'character-device',
  b: 'block-device',
} as const

export type GuestFileKind = (typeof kinds)[keyof typeof kinds]

export interface GuestFile {
  /** From the file system's root, without a slash at its beginning; bytes (latin1). Empty for the root. */
  readonly path: string
  readonly kind: GuestFileKind
  /** Permission bits, setuid, setgid and sticky among them. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly links: number
  readonly sizeBytes: number
  /** What it takes on the guest's disk. */
  readonly allocatedBytes: number
  readonly mtimeMs: number
  /** Where a symbolic link leads; bytes. */
  readonly link?: string
}

const longestFieldBytes = 64 * 1024
/** Of one answer; a directory has never so many. */
const mostRecords = 50_000_000

/** A file, or undefined as a sign of life. Returns how the answer ended. */
export async function* readRecords(answer: Answer): AsyncGenerator<GuestFile | undefined, AnswerEnd, void> {
  let rest = ''
  let fields: string[] = []
  let records = 0
  for (;;) {
    const { done, value } = await answer.next()
    if (done) {
      if (rest !== '' || fields.length > 0) throw refused('the last record is cut off')
      return value
    }
    const parts = (rest + value.toString('latin1')).split('\0')
    rest = parts.pop() ?? ''
    for (const field of parts.length === 0 ? [rest] : parts) {
      if (field.length > longestFieldBytes) throw refused('a field is too long')
    }
    for (const field of parts) {
      if (fields.length === 0 && /^\.+$/.test(field)) {
        yield undefined
        continue
      }
      fields.push(field)
      if (fields.length < 3) continue
      if (++records > mostRecords) throw refused('it has no end')
      yield parseRecord(fields as [string, string, string])
      fields = []
    }
  }
}

function parseRecord([facts, path, link]: readonly [string, string, string]): GuestFile {
  const form =
    /^([a-zA-Z]) ([0-7]{1,4}) (\d{1,10}) (\d{1,10}) (\d{1,10}) (\d{1,19}) (\d{1,19}) (-?\d{1,15})(?:\.(\d{1,12}))?$/
  const found = form.exec(facts)
  if (found === null) throw refused(`a record says ${JSON.stringify(facts.slice(0, 80))}`)
  const [, letter = '', mode = '', uid, gid, links, size, blocks, seconds, fraction = '0'] = found
  const kind = Object.hasOwn(kinds, letter) ? kinds[letter as keyof typeof kinds] : undefined
  if (kind === undefined) throw refused(`a file of the kind ${letter}`)
  return {
    path: pathBelow(path),
    kind,
    mode: Number.parseInt(mode, 8),
    uid: Number(uid),
    gid: Number(gid),
    links: Number(links),
    sizeBytes: whole(size),
    allocatedBytes: whole(blocks) * 512,
    mtimeMs: Number(seconds) * 1000 + Math.floor(Number(`0.${fraction}`) * 1000),
    ...(kind === 'symlink' ? { link } : {}),
  }
}

function whole(text: string | undefined): number {
  const value = Number(text)
  if (!Number.isSafeInteger(value)) throw refused(`a size of ${text}`)
  return value
}

/** `.`, or `./` and names that lead nowhere else. */
function pathBelow(path: string): string {
  if (path === '.') return ''
  const names = path.split('/')
  const isFine = names.shift() === '.' && names.every((name) => name !== '' && name !== '.' && name !== '..')
  if (!isFine) throw refused(`a path ${JSON.stringify(path.slice(0, 80))}`)
  return names.join('/')
}

const refused = (reason: string): Error => failure('GUEST_FILES_REFUSED', { reason })
