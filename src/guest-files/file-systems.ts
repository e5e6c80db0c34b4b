/**
 * The list of what may hold a file system on a VM's disks, as helper-vm/umbra-files tells it: `device<tab>NAME<tab>BYTES` and
 * what blkid found there. Everything is bounded and checked: labels were written by guests.
 */
import { failure } from '../errors.ts'
import type { GuestPlace } from './guest-path.ts'

export interface GuestFileSystem {
  /** Its place in the helper VM's list, from 1 on. */
  readonly index: number
  /** The disk and the number of the partition (`vda1`), the disk (`vdb`), or the logical volume (`vg0/root`). */
  readonly name: string
  readonly sizeBytes: number
  /** As blkid names it: `ext4`, `LVM2_member`, ...; undefined when nothing is known there. */
  readonly type?: string
  readonly label?: string
  readonly uuid?: string
  /** Whether its files can be read. */
  readonly isReadable: boolean
}

const readableTypes = ['ext2', 'ext3', 'ext4', 'xfs', 'btrfs', 'vfat', 'ntfs']
const mostFileSystems = 2000
const longestValue = 1000

export function parseFileSystems(text: string): GuestFileSystem[] {
  const found: { name: string; sizeBytes: number; facts: Map<string, string> }[] = []
  for (const line of text.split('\n')) {
    if (line === '') continue
    const [, name, size] = /^device\t([A-Za-z0-9+_./-]{1,300})\t(\d{1,16})$/.exec(line) ?? []
    if (name !== undefined) {
      if (found.length >= mostFileSystems) throw refused('there are too many file systems')
      found.push({ name, sizeBytes: Number(size), facts: new Map() })
      continue
    }
    const [, key, value = ''] = /^ID_FS_(TYPE|USAGE|LABEL_ENC|UUID_ENC)=(.*)$/.exec(line) ?? []
    if (key === undefined || value.length > longestValue)
      throw refused(`the list says ${JSON.stringify(line.slice(0, 80))}`)
    found.at(-1)?.facts.set(key, value)
  }
  const all = found.map(({ name, sizeBytes, facts }, position) => {
    const type = facts.get('TYPE')
    const [label, uuid] = [facts.get('LABEL_ENC'), facts.get('UUID_ENC')]
    return {
      index: position + 1,
      name,
      sizeBytes,
      isReadable: type !== undefined && readableTypes.includes(type),
      ...(type === undefined ? {} : { type }),
      ...(label === undefined ? {} : { label: decoded(label) }),
      ...(uuid === undefined ? {} : { uuid: decoded(uuid) }),
    }
  })
  return all.toSorted(byName)
}

/** Disks and partitions first, then logical volumes. */
function byName(one: { readonly name: string }, other: { readonly name: string }): number {
  const [isVolume, isOtherVolume] = [one.name.includes('/'), other.name.includes('/')]
  if (isVolume !== isOtherVolume) return isVolume ? 1 : -1
  return one.name.localeCompare(other.name, 'en', { numeric: true })
}

/** Blkid writes `\xHH` for bytes that might do harm. */
function decoded(value: string): string {
  const bytes = value.replace(/\\x([0-9a-fA-F]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)))
  return Buffer.from(bytes, 'latin1').toString('utf8')
}

/** The one that a place names; all that can be read when it names none. GUEST_FILE_SYSTEM_NOT_FOUND. */
export function chooseFileSystems(
  all: readonly GuestFileSystem[],
  { fileSystem }: GuestPlace,
): readonly GuestFileSystem[] {
  if (fileSystem === undefined) return all.filter(({ isReadable }) => isReadable)
  const [, key, value] = /^(UUID|LABEL)=(.+)$/s.exec(fileSystem) ?? []
  const isMeant = (one: GuestFileSystem) => {
    if (key === 'UUID') return one.uuid?.toLowerCase() === value?.toLowerCase()
    return key === 'LABEL' ? one.label === value : one.name === fileSystem
  }
  const meant = all.filter(isMeant)
  const names = (list: readonly GuestFileSystem[]) => list.map(({ name }) => name).join(', ')
  if (meant.length === 0) {
    throw failure('GUEST_FILE_SYSTEM_NOT_FOUND', { name: fileSystem, known: names(all) || 'none' })
  }
  if (meant.length > 1) throw failure('GUEST_PATH_AMBIGUOUS', { path: fileSystem, places: names(meant) })
  return meant
}

const refused = (reason: string): Error => failure('GUEST_FILES_REFUSED', { reason })
