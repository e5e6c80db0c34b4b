/**
 * Files of guests as they are printed: like `ls -l` for people, as plain values for programs.
 */
import type { GuestFile, GuestFileKind } from '../guest-files/file-record.ts'
import type { GuestFileSystem } from '../guest-files/file-systems.ts'
import { escapeName, nameText } from '../guest-files/guest-path.ts'
import { bytesText, type Column, tableText, timeText } from './output.ts'

const columns: readonly Column[] = [
  { head: 'FILE SYSTEM' },
  { head: 'TYPE' },
  { head: 'SIZE', align: 'right' },
  { head: 'LABEL' },
  { head: 'UUID' },
]

export function fileSystemsText(all: readonly GuestFileSystem[], width: number | undefined): string {
  const rows = all.map(({ name, type = '-', sizeBytes, label = '', uuid = '', isReadable }) => [
    name,
    isReadable ? type : `${type} (not readable)`,
    bytesText(sizeBytes),
    label,
    uuid,
  ])
  return rows.length === 0 ? 'no file system was found' : tableText(columns, rows, width)
}

const letters: Readonly<Record<GuestFileKind, string>> = {
  file: '-',
  directory: 'd',
  symlink: 'l',
  fifo: 'p',
  socket: 's',
  'character-device': 'c',
  'block-device': 'b',
}

/** drwxr-xr-x, as ls prints it. */
export function modeText(kind: GuestFileKind, mode: number): string {
  const triple = (bits: number, special: boolean, letter: string) => {
    const execute = special ? (bits & 1 ? letter : letter.toUpperCase()) : bits & 1 ? 'x' : '-'
    return `${bits & 4 ? 'r' : '-'}${bits & 2 ? 'w' : '-'}${execute}`
  }
  const user = triple((mode >> 6) & 7, (mode & 0o4000) !== 0, 's')
  const group = triple((mode >> 3) & 7, (mode & 0o2000) !== 0, 's')
  return `${letters[kind]}${user}${group}${triple(mode & 7, (mode & 0o1000) !== 0, 't')}`
}

export interface ShownFile {
  readonly file: GuestFile
  /** As it is to be printed; bytes. */
  readonly name: string
}

/** One line a file, columns aligned. */
export function filesText(shown: readonly ShownFile[]): string {
  const rows = shown.map(({ file, name }) => [...factsOf(file), nameOf(file, name)])
  const widths = [0, 1, 2, 3, 4, 5].map((column) =>
    rows.reduce((most, row) => Math.max(most, row[column]?.length ?? 0), 0),
  )
  return rows
    .map((row) =>
      row
        .map((cell, i) => (i > 5 ? cell : i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0)))
        .join(' '),
    )
    .join('\n')
}

/** One file by itself, as a search finds it. */
export const fileLine = ({ file, name }: ShownFile): string => [...factsOf(file), nameOf(file, name)].join(' ')

function factsOf({ kind, mode, links, uid, gid, sizeBytes, mtimeMs }: GuestFile): string[] {
  const time = Number.isFinite(new Date(mtimeMs).getTime()) ? timeText(new Date(mtimeMs)) : '-'
  return [modeText(kind, mode), String(links), String(uid), String(gid), String(sizeBytes), time]
}

const nameOf = ({ link }: GuestFile, name: string): string =>
  link === undefined ? escapeName(name) : `${escapeName(name)} -> ${escapeName(link)}`

/** `path` as text; `pathBase64` is there when its bytes are no UTF-8, and `path` then has them escaped. */
export function fileDocument(fileSystem: string, file: GuestFile): Record<string, unknown> {
  const { kind, mode, uid, gid, links, sizeBytes, allocatedBytes, mtimeMs, link } = file
  const time = new Date(mtimeMs)
  return {
    fileSystem,
    ...named('path', `/${file.path}`),
    kind,
    mode: mode.toString(8).padStart(4, '0'),
    uid,
    gid,
    links,
    sizeBytes,
    allocatedBytes,
    modifiedAt: Number.isFinite(time.getTime()) ? time.toISOString() : null,
    ...(link === undefined ? {} : named('link', link)),
  }
}

function named(key: string, bytes: string): Record<string, string> {
  const text = nameText(bytes)
  if (text !== undefined) return { [key]: text }
  return { [key]: escapeName(bytes), [`${key}Base64`]: Buffer.from(bytes, 'latin1').toString('base64') }
}
