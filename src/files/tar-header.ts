/**
 * The headers of one entry of a tar archive, as bytes: the GNU form, whose long names ('L', 'K') may hold any bytes, with
 * POSIX extended headers ('x') for what does not fit its fields: nanoseconds, large sizes and numbers.
 * Source: the manual of GNU tar, "Basic Tar Format"; POSIX, "pax Interchange Format".
 */
import type { EntryKind, TreeEntry } from './tree-listing.ts'

export const blockBytes = 512
const nameBytes = 100
/** GNU: the file system's own magic with its version, eight bytes. */
const magic = 'ustar  \0'

export const typeOfKind = {
  file: '0',
  'hard-link': '1',
  symlink: '2',
  'character-device': '3',
  'block-device': '4',
  directory: '5',
  fifo: '6',
} as const satisfies Record<EntryKind, string>

/** All headers of an entry, in order. The same entry always gives the same bytes. */
export function encodeHeaders(entry: TreeEntry): Buffer {
  const name = nameOf(entry)
  const link = linkOf(entry)
  const parts: Buffer[] = []
  if (link.length > nameBytes) parts.push(longName('K', link))
  if (name.length > nameBytes) parts.push(longName('L', name))
  const extended = Buffer.concat(extendedFields(entry).map(paxRecord))
  if (extended.length > 0) {
    parts.push(block({ name: Buffer.from('././@PaxHeader'), type: 'x', sizeBytes: extended.length }), padded(extended))
  }
  const { mode, uid, gid, mtimeNs, sizeBytes, device } = entry
  const seconds = Number(mtimeNs / 1_000_000_000n)
  const fields = { mode, uid, gid, seconds, sizeBytes, link, ...(device === undefined ? {} : { device }) }
  parts.push(block({ name, type: typeOfKind[entry.kind], ...fields }))
  return Buffer.concat(parts)
}

export const paddedBytes = (sizeBytes: number): number => Math.ceil(sizeBytes / blockBytes) * blockBytes

/** Names begin with `./`; that of a directory ends with a slash. */
function nameOf({ path, kind }: TreeEntry): Buffer {
  const end = kind === 'directory' && path.length > 0 ? '/' : ''
  return Buffer.concat([Buffer.from('./'), path, Buffer.from(end)])
}

function linkOf({ kind, link = Buffer.alloc(0) }: TreeEntry): Buffer {
  return kind === 'hard-link' ? Buffer.concat([Buffer.from('./'), link]) : link
}

function longName(type: 'K' | 'L', name: Buffer): Buffer {
  const body = Buffer.concat([name, Buffer.alloc(1)])
  return Buffer.concat([block({ name: Buffer.from('././@LongLink'), type, sizeBytes: body.length }), padded(body)])
}

function extendedFields({ mtimeNs, sizeBytes, uid, gid }: TreeEntry): [string, string][] {
  const fields: [string, string][] = []
  if (mtimeNs < 0n || mtimeNs % 1_000_000_000n !== 0n || !fits(Number(mtimeNs / 1_000_000_000n), 12)) {
    fields.push(['mtime', decimalSeconds(mtimeNs)])
  }
  if (!fits(sizeBytes, 12)) fields.push(['size', String(sizeBytes)])
  if (!fits(uid, 8)) fields.push(['uid', String(uid)])
  if (!fits(gid, 8)) fields.push(['gid', String(gid)])
  return fields
}

function decimalSeconds(ns: bigint): string {
  const size = ns < 0n ? -ns : ns
  const fraction = String(size % 1_000_000_000n).padStart(9, '0')
  return `${ns < 0n ? '-' : ''}${size / 1_000_000_000n}.${fraction}`
}

/** A record tells its own length, which counts the digits of that length too. */
function paxRecord([key, value]: readonly [string, string]): Buffer {
  const rest = ` ${key}=${value}\n`
  let length = rest.length
  while (length !== rest.length + String(length).length) length = rest.length + String(length).length
  return Buffer.from(`${length}${rest}`)
}

interface HeaderFields {
  readonly name: Buffer
  readonly type: string
  readonly sizeBytes: number
  readonly mode?: number
  readonly uid?: number
  readonly gid?: number
  readonly seconds?: number
  readonly link?: Buffer
  readonly device?: { readonly major: number; readonly minor: number }
}

/** One block of 512 bytes. What does not fit its field stands in an extended header, and as 0 here. */
function block(fields: HeaderFields): Buffer {
  const { name, type, sizeBytes, mode = 0o644, uid = 0, gid = 0, seconds = 0, link, device } = fields
  const header = Buffer.alloc(blockBytes)
  name.copy(header, 0, 0, Math.min(name.length, nameBytes))
  octal(header, mode, 100, 8)
  octal(header, uid, 108, 8)
  octal(header, gid, 116, 8)
  octal(header, sizeBytes, 124, 12)
  octal(header, seconds, 136, 12)
  header.write(type, 156, 'latin1')
  link?.copy(header, 157, 0, Math.min(link.length, nameBytes))
  header.write(magic, 257, 'latin1')
  if (device !== undefined) {
    octal(header, device.major, 329, 8)
    octal(header, device.minor, 337, 8)
  }
  header.write(`${checksumOf(header).toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
  return header
}

/** The sum of all bytes, the checksum's own eight taken for spaces. */
export function checksumOf(header: Uint8Array): number {
  let sum = 8 * 0x20
  for (const [index, byte] of header.entries()) if (index < 148 || index >= 156) sum += byte
  return sum
}

const fits = (value: number, fieldBytes: number): boolean => value >= 0 && value < 8 ** (fieldBytes - 1)

function octal(header: Buffer, value: number, at: number, fieldBytes: number): void {
  const text = (fits(value, fieldBytes) ? value : 0).toString(8).padStart(fieldBytes - 1, '0')
  header.write(text, at, 'latin1')
}

function padded(body: Buffer): Buffer {
  return Buffer.concat([body, Buffer.alloc(paddedBytes(body.length) - body.length)])
}
