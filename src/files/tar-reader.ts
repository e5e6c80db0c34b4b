/**
 * Reads a tar archive that Umbra made, strictly: what DirectorySource does not write is refused, because a recovery point
 * may have been made by somebody else. Names never lead out of the tree. An archive of GNU tar in the POSIX format is read as
 * strictly: its names stand in extended headers, and files may be sparse. Source: as tar-header.ts; the manual of GNU tar,
 * "PAX Format, Version 1.0" of sparse files.
 */
import type { BlockSource } from '../disk/block-device.ts'
import { failure } from '../errors.ts'
import { blockBytes, checksumOf, paddedBytes, typeOfKind } from './tar-header.ts'
import type { EntryKind, TreeEntry } from './tree-listing.ts'

/** The longest name, and the longest extended header; the system itself allows 4096. */
const longestBytes = 64 * 1024
const readAheadBytes = 1024 * 1024
const readsAhead = 4

export interface ArchivedEntry {
  readonly entry: TreeEntry
  /** The content of a file, a number for a hole of so many bytes; what is not read of it is skipped. */
  content(): AsyncGenerator<Uint8Array | number>
}

export interface ArchiveOptions {
  readonly onProgress?: ((bytes: number) => void) | undefined
  /** Written by GNU tar in the POSIX format; else by Umbra. */
  readonly fromGnuTar?: boolean
  /** Gets how many bytes the archive has, with the block of zeros that ends it. */
  readonly onEnd?: ((bytes: number) => void) | undefined
}

/** The entries in their order. Each one's content is read before the next is asked for, or not at all. */
export async function* readArchive(
  source: BlockSource,
  { onProgress, onEnd, fromGnuTar = false }: ArchiveOptions = {},
) {
  const input = new SequentialReader(source, onProgress)
  for (;;) {
    const found = await readEntry(input, fromGnuTar ? gnuTarKeys : ownKeys)
    if (found === undefined) {
      onEnd?.(input.position)
      return
    }
    const { entry, storedBytes, isSparse } = found
    const end = input.position + paddedBytes(storedBytes)
    if (end > source.sizeBytes) throw refusal(`${entry.path} ends beyond the archive`)
    const content = () =>
      isSparse ? sparseContent(input, storedBytes, entry.sizeBytes) : contentOf(input, entry.sizeBytes)
    yield { entry, content } satisfies ArchivedEntry
    await input.skipTo(end)
  }
}

async function* contentOf(input: SequentialReader, sizeBytes: number): AsyncGenerator<Uint8Array | number> {
  for (let left = sizeBytes; left > 0; ) {
    const part = await input.upTo(left)
    left -= part.length
    yield part
  }
}

/** A map of what is data, in blocks of its own, and then that data. What lies between is a hole. */
async function* sparseContent(input: SequentialReader, storedBytes: number, sizeBytes: number) {
  const end = input.position + storedBytes
  const map = await readSparseMap(input, end)
  let at = 0
  for (const [offset, length] of map) {
    if (offset < at || offset + length > sizeBytes) throw refusal('the map of a sparse file is not in order')
    if (offset > at) yield offset - at
    if (input.position + length > end) throw refusal('a sparse file has less data than its map tells')
    yield* contentOf(input, length)
    at = offset + length
  }
  if (at < sizeBytes) yield sizeBytes - at
}

async function readSparseMap(input: SequentialReader, end: number): Promise<[number, number][]> {
  let text = ''
  const numbers: number[] = []
  while (numbers.length === 0 || numbers.length < 1 + 2 * (numbers[0] as number)) {
    if (input.position + blockBytes > end) throw refusal('the map of a sparse file has no end')
    const lines = (text + Buffer.from(await input.exactly(blockBytes)).toString('latin1')).split('\n')
    text = lines.pop() ?? ''
    for (const line of lines) {
      const value = /^\d{1,16}$/.test(line) ? Number(line) : Number.NaN
      if (!Number.isSafeInteger(value)) throw refusal('the map of a sparse file is not understood')
      numbers.push(value)
      if ((numbers[0] as number) > mostSparseParts) throw refusal('a sparse file has too many parts')
      if (numbers.length === 1 + 2 * (numbers[0] as number)) break
    }
  }
  return Array.from({ length: numbers[0] as number }, (_, i) => [
    numbers[1 + 2 * i] as number,
    numbers[2 + 2 * i] as number,
  ])
}

interface FoundEntry {
  readonly entry: TreeEntry
  /** What the archive holds of it: with its map, without its holes. */
  readonly storedBytes: number
  readonly isSparse: boolean
}

/** One entry with the long names and extended headers before it; undefined at the end of the archive. */
async function readEntry(input: SequentialReader, keys: readonly string[]): Promise<FoundEntry | undefined> {
  let name: Buffer | undefined
  let link: Buffer | undefined
  let extended: Record<string, string> = {}
  for (;;) {
    const header = Buffer.from(await input.exactly(blockBytes))
    if (header.every((byte) => byte === 0)) {
      if (name ?? link) throw refusal('it ends within an entry')
      return undefined
    }
    if (number(header, 148, 8) !== checksumOf(header)) throw refusal(`a header before ${input.position} is damaged`)
    if (header.toString('latin1', 257, 262) !== 'ustar') throw refusal('it is not a tar archive')
    const type = header.toString('latin1', 156, 157)
    if (type === 'L') name = await readLongName(input, header)
    else if (type === 'K') link = await readLongName(input, header)
    else if (type === 'x') extended = parseExtended(await readBody(input, header), keys)
    else return toFoundEntry(header, type, { name, link }, extended)
  }
}

async function readBody(input: SequentialReader, header: Buffer): Promise<Buffer> {
  const sizeBytes = number(header, 124, 12)
  if (sizeBytes < 1 || sizeBytes > longestBytes) throw refusal(`a header of ${sizeBytes} bytes`)
  return Buffer.from(await input.exactly(paddedBytes(sizeBytes))).subarray(0, sizeBytes)
}

async function readLongName(input: SequentialReader, header: Buffer): Promise<Buffer> {
  const body = await readBody(input, header)
  return body.at(-1) === 0 ? body.subarray(0, -1) : body
}

const ownKeys = ['mtime', 'size', 'uid', 'gid']
const sparseKeys = ['major', 'minor', 'name', 'realsize'].map((key) => `GNU.sparse.${key}`)
const gnuTarKeys = [...ownKeys, 'path', 'linkpath', ...sparseKeys]
const mostSparseParts = 1_000_000

function parseExtended(body: Buffer, keys: readonly string[]): Record<string, string> {
  const text = body.toString('latin1')
  const found: Record<string, string> = {}
  for (let at = 0; at < text.length; ) {
    const [, length = '', key = ''] = /^(\d{1,6}) ([A-Za-z.]+)=/.exec(text.slice(at, at + 40)) ?? []
    const record = text.slice(at, at + Number(length))
    if (!keys.includes(key) || record.length !== Number(length) || !record.endsWith('\n')) {
      throw refusal('an extended header is not understood')
    }
    found[key] = record.slice(record.indexOf('=') + 1, -1)
    at += record.length
  }
  return found
}

const kinds = new Map<string, EntryKind>(Object.entries(typeOfKind).map(([kind, type]) => [type, kind as EntryKind]))

function toFoundEntry(
  header: Buffer,
  type: string,
  names: { readonly name: Buffer | undefined; readonly link: Buffer | undefined },
  extended: Record<string, string>,
): FoundEntry {
  const given = (key: string) => (extended[key] === undefined ? undefined : Buffer.from(extended[key], 'latin1'))
  const isSparse = extended['GNU.sparse.major'] !== undefined
  const [major, minor] = [extended['GNU.sparse.major'], extended['GNU.sparse.minor']]
  if (isSparse && (type !== typeOfKind.file || major !== '1' || minor !== '0')) throw refusal('a sparse entry')
  const name = names.name ?? (isSparse ? given('GNU.sparse.name') : given('path'))
  // What the older POSIX format cuts off a long name stands there: GNU tar does not write it.
  const isPosix = header[262] === 0
  if (isPosix && name === undefined && header[345] !== 0) throw refusal('a name in two parts')
  const entry = toEntry(header, type, name, names.link ?? given('linkpath'), extended)
  if (!isSparse) return { entry, storedBytes: entry.sizeBytes, isSparse }
  const text = extended['GNU.sparse.realsize'] ?? ''
  const realBytes = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN
  if (!Number.isSafeInteger(realBytes) || name === undefined) throw refusal('a sparse entry')
  return { entry: { ...entry, sizeBytes: realBytes }, storedBytes: entry.sizeBytes, isSparse }
}

function toEntry(
  header: Buffer,
  type: string,
  longName: Buffer | undefined,
  longLink: Buffer | undefined,
  extended: Record<string, string>,
): TreeEntry {
  const kind = kinds.get(type)
  if (kind === undefined) throw refusal(`an entry of the type ${JSON.stringify(type)}`)
  const path = pathBelow(longName ?? fieldText(header, 0), kind)
  const given = longLink ?? fieldText(header, 157)
  const link = kind === 'hard-link' ? pathBelow(given, kind) : kind === 'symlink' ? given : undefined
  if (link !== undefined && (link.length === 0 || link.includes(0))) throw refusal('a link that leads nowhere')
  const isDevice = kind === 'character-device' || kind === 'block-device'
  const whole = (key: string, fallback: number) => {
    const text = extended[key]
    if (text === undefined) return fallback
    const value = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN
    if (!Number.isSafeInteger(value)) throw refusal(`the number ${text}`)
    return value
  }
  const sizeBytes = whole('size', number(header, 124, 12))
  if (kind !== 'file' && sizeBytes !== 0) throw refusal('content of something that is no file')
  return {
    path,
    kind,
    mode: number(header, 100, 8) & 0o7777,
    uid: whole('uid', number(header, 108, 8)),
    gid: whole('gid', number(header, 116, 8)),
    mtimeNs: nanoseconds(extended.mtime ?? String(number(header, 136, 12))),
    sizeBytes,
    ...(link === undefined ? {} : { link }),
    ...(isDevice ? { device: { major: number(header, 329, 8), minor: number(header, 337, 8) } } : {}),
  }
}

/** Takes `./` away. Neither an absolute name nor one with `..` nor an empty part gets through. */
function pathBelow(name: Buffer, kind: EntryKind): Buffer {
  const text = name.toString('latin1')
  const told = JSON.stringify(name.toString())
  if (!text.startsWith('./') || text.includes('\0')) throw refusal(`the name ${told}`)
  const path = text.slice(2).replace(kind === 'directory' ? /\/$/ : /(?!)/, '')
  if (path === '') {
    if (kind === 'directory') return Buffer.alloc(0)
    throw refusal(`the name ${told}`)
  }
  if (path.split('/').some((part) => part === '' || part === '.' || part === '..')) throw refusal(`the name ${told}`)
  return Buffer.from(path, 'latin1')
}

function fieldText(header: Buffer, at: number): Buffer {
  const field = header.subarray(at, at + 100)
  const end = field.indexOf(0)
  return Buffer.from(end < 0 ? field : field.subarray(0, end))
}

function number(header: Buffer, at: number, fieldBytes: number): number {
  const text = header.toString('latin1', at, at + fieldBytes).replace(/[\0 ]+$/, '')
  if (!/^[0-7]*$/.test(text)) throw refusal(`the number ${JSON.stringify(text)}`)
  return text === '' ? 0 : Number.parseInt(text, 8)
}

function nanoseconds(text: string): bigint {
  const [, sign, seconds = '', fraction = ''] = /^(-?)(\d{1,12})(?:\.(\d{1,9}))?$/.exec(text) ?? []
  if (sign === undefined) throw refusal(`the time ${text}`)
  const ns = BigInt(seconds) * 1_000_000_000n + BigInt(fraction.padEnd(9, '0'))
  return sign === '-' ? -ns : ns
}

const refusal = (reason: string): Error => failure('FILES_ARCHIVE_INVALID', { reason })

/** From the beginning to the end, a few reads ahead. */
class SequentialReader {
  position = 0
  readonly #source: BlockSource
  readonly #onProgress: ((bytes: number) => void) | undefined
  readonly #ahead: Promise<Uint8Array>[] = []
  #asked = 0
  #part: Uint8Array = new Uint8Array()

  constructor(source: BlockSource, onProgress?: (bytes: number) => void) {
    this.#source = source
    this.#onProgress = onProgress
  }

  /** At least one byte, at most `length`; valid until the next call. */
  async upTo(length: number): Promise<Uint8Array> {
    if (this.#part.length === 0) this.#part = await this.#next()
    const taken = this.#part.subarray(0, length)
    this.#part = this.#part.subarray(taken.length)
    this.position += taken.length
    return taken
  }

  async exactly(length: number): Promise<Uint8Array> {
    const first = await this.upTo(length)
    if (first.length === length) return first
    const whole = new Uint8Array(length)
    whole.set(first)
    for (let done = first.length; done < length; ) {
      const part = await this.upTo(length - done)
      whole.set(part, done)
      done += part.length
    }
    return whole
  }

  async skipTo(position: number): Promise<void> {
    while (this.position < position) await this.upTo(position - this.position)
  }

  async #next(): Promise<Uint8Array> {
    while (this.#ahead.length < readsAhead && this.#asked < this.#source.sizeBytes) {
      const buffer = new Uint8Array(Math.min(readAheadBytes, this.#source.sizeBytes - this.#asked))
      const reading = this.#source.read(this.#asked, buffer).then(() => buffer)
      reading.catch(() => undefined) // told when its turn comes
      this.#ahead.push(reading)
      this.#asked += buffer.length
    }
    const part = await this.#ahead.shift()
    if (part === undefined) throw refusal('it has no end')
    this.#onProgress?.(part.length)
    return part
  }
}
