/**
 * What umbra-guest and umbra-revert say (docs/guest-protocol.md), read strictly: the guest belongs to somebody else. A line
 * that the protocol does not know, a wrong number of fields or too much of anything is NotUnderstood.
 */
import type { ChangedFsid, GuestVolumeKind, ShadowStorage } from '../vm/guest-requestor.ts'

export class NotUnderstood extends Error {}

export interface SaidVolume {
  /** As the guest spells it, whatever bytes are in it. */
  readonly mountPoint: string
  readonly type: string
  readonly kind: GuestVolumeKind
  readonly where: string
  readonly roomBytes: number
  readonly obstacle: string
}

export interface PhysicalVolume {
  readonly group: string
  readonly device: string
}

export interface SaidDescription {
  readonly tools: readonly string[]
  readonly volumes: readonly SaidVolume[]
  readonly physicalVolumes: readonly PhysicalVolume[]
  readonly arrays: readonly string[]
  readonly writers: readonly string[]
}

const protocolVersion = '1'
const mostBytes = 1024 * 1024
const mostLines = 4096
const mostFieldLength = 4096
const kinds: readonly GuestVolumeKind[] = ['lvm', 'thin', 'btrfs', 'other']
const fsidPattern = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

/** Text of the guest for people: short, and without anything that a terminal obeys or hides. */
export function readable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Cn}\p{Co}\p{Zl}\p{Zp}]/gu, '\u{fffd}').slice(0, 300)
}

export function readDescription(text: string): SaidDescription {
  const lines = linesOf(text)
  const [first] = lines
  if (first?.join(' ') !== `version ${protocolVersion}`) {
    throw new NotUnderstood(`it does not begin with version ${protocolVersion}`)
  }
  const tools: string[] = []
  const volumes: SaidVolume[] = []
  const physicalVolumes: PhysicalVolume[] = []
  const arrays: string[] = []
  const writers: string[] = []
  for (const line of lines.slice(1)) {
    if (line[0] === 'fs') volumes.push(readVolume(line))
    else if (line[0] === 'pv') {
      const [group = '', device = ''] = fields(line, 2)
      physicalVolumes.push({ group, device: unescaped(device) })
    } else if (line[0] === 'md') arrays.push(readable(unescaped(fields(line, 1)[0] ?? '')))
    else if (line[0] === 'writer') writers.push(readable(unescaped(fields(line, 1)[0] ?? '')))
    else if (line[0] === 'tool') tools.push(readable(fields(line, 1)[0] ?? ''))
    else throw unknown(line)
  }
  return { tools, volumes, physicalVolumes, arrays, writers }
}

function readVolume(line: readonly string[]): SaidVolume {
  const [mountPoint = '', type = '', kindText, where = '', room = '', obstacle = ''] = fields(line, 6)
  const kind = kinds.find((known) => known === kindText)
  if (kind === undefined || !mountPoint.startsWith('/') || where === '') throw unknown(line)
  return {
    mountPoint: unescaped(mountPoint),
    type: readable(type),
    kind,
    where: unescaped(where),
    roomBytes: bytesOf(room, line),
    obstacle: readable(unescaped(obstacle)),
  }
}

export function readAreas(text: string): readonly ShadowStorage[] {
  return linesOf(text).map((line) => {
    if (line[0] !== 'area') throw unknown(line)
    const [where = '', used = '', total = ''] = fields(line, 3)
    return { where: readable(unescaped(where)), usedBytes: bytesOf(used, line), totalBytes: bytesOf(total, line) }
  })
}

/** Only serials that were asked for may be named, each once. */
export function readReverted(text: string, serials: readonly string[]): readonly ChangedFsid[] {
  const left = new Set(serials)
  return linesOf(text).flatMap((line) => {
    if (line[0] === 'reverted') {
      bytesOf(fields(line, 2)[1] ?? '', line)
      return []
    }
    const [serial = '', fsid = ''] = line[0] === 'fsid' ? fields(line, 2) : []
    if (!left.delete(serial) || !fsidPattern.test(fsid)) throw unknown(line)
    return [{ serial, fsid }]
  })
}

function linesOf(text: string): readonly (readonly string[])[] {
  if (text.length > mostBytes) throw new NotUnderstood(`more than ${mostBytes} characters`)
  const lines = text.split('\n')
  if (lines.at(-1) === '') lines.pop()
  else if (text !== '') throw new NotUnderstood('it is cut off')
  if (lines.length > mostLines) throw new NotUnderstood(`more than ${mostLines} lines`)
  return lines.map((line) => line.split('\t'))
}

/** What follows a line's first word: exactly so many fields. */
function fields(line: readonly string[], count: number): readonly string[] {
  const [, ...rest] = line
  if (rest.length !== count || rest.some((field) => field.length > mostFieldLength)) throw unknown(line)
  return rest
}

function bytesOf(text: string, line: readonly string[]): number {
  const bytes = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN
  if (!Number.isSafeInteger(bytes)) throw unknown(line)
  return bytes
}

const unknown = (line: readonly string[]) => new NotUnderstood(line.join(' ').slice(0, 200))

/** Undoes the escapes of /proc/mounts: a backslash and three octal digits for a byte. */
export function unescaped(text: string): string {
  return text.replace(/(?:\\[0-3][0-7]{2})+/g, (escapes) =>
    Buffer.from(
      escapes
        .split('\\')
        .slice(1)
        .map((digits) => Number.parseInt(digits, 8)),
    ).toString('utf8'),
  )
}
