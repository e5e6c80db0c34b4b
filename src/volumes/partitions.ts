/**
 * Where file systems and physical volumes may lie on a disk: its partitions, or the disk itself when it has none.
 * Source: UEFI specification, "GUID Partition Table (GPT) Disk Layout" and "Legacy Master Boot Record (MBR)"; logical
 * partitions as in the Linux kernel's block/partitions/msdos.c; what counts as a partition table as in LVM's filters.
 */
import { crc32 } from 'node:zlib'
import { fits, type RevertDisk, readStretch, refuse, type Stretch, wholeDisk } from './disk-stretch.ts'

const gptProtective = 0xee
const extendedTypes = [0x05, 0x0f, 0x85]
const mostPartitions = 256
const largestTableBytes = 1024 * 1024

/** The partitions of `disk`; the whole disk when there is no partition table on it. */
export async function stretchesOf(disk: RevertDisk): Promise<readonly Stretch[]> {
  const whole = wholeDisk(disk)
  if (whole.sizeBytes < 512) return []
  const first = mbrEntries(await readStretch(whole, 0, 512))
  if (first.some(({ type }) => type === gptProtective)) return await gptPartitions(whole)
  if (first.length === 0) return [whole]
  const found: Stretch[] = []
  for (const entry of first) {
    if (extendedTypes.includes(entry.type)) found.push(...(await logicalPartitions(whole, entry.start)))
    else found.push(within(whole, entry.start * 512, entry.sectors * 512))
  }
  return found
}

function within(disk: Stretch, offset: number, sizeBytes: number): Stretch {
  if (!fits(disk, offset, sizeBytes)) refuse(disk.disk.name, 'a partition lies beyond its end')
  return { disk: disk.disk, offset, sizeBytes }
}

interface MbrEntry {
  readonly type: number
  readonly start: number
  readonly sectors: number
}

/** Without entries when the sector holds no partition table: boot code of a file system has other boot indicators. */
function mbrEntries(sector: Buffer): MbrEntry[] {
  if (sector.readUInt16LE(510) !== 0xaa55) return []
  const entries = [446, 462, 478, 494].map((at) => ({
    active: sector.readUInt8(at),
    type: sector.readUInt8(at + 4),
    start: sector.readUInt32LE(at + 8),
    sectors: sector.readUInt32LE(at + 12),
  }))
  if (entries.some(({ active }) => (active & 0x7f) !== 0)) return []
  return entries.filter(({ type, sectors }) => type !== 0 && sectors > 0)
}

/** A chain of tables: each names one partition, relative to itself, and the next table, relative to the first. */
async function logicalPartitions(disk: Stretch, extendedStart: number): Promise<Stretch[]> {
  const found: Stretch[] = []
  const seen = new Set<number>()
  let table: number | undefined = extendedStart
  while (table !== undefined) {
    if (seen.has(table) || seen.size >= mostPartitions) refuse(disk.disk.name, 'its logical partitions have no end')
    seen.add(table)
    const entries = mbrEntries(await readStretch(disk, table * 512, 512))
    const here = table
    const volumes = entries.filter(({ type }) => !extendedTypes.includes(type))
    found.push(...volumes.map(({ start, sectors }) => within(disk, (here + start) * 512, sectors * 512)))
    const next = entries.find(({ type }) => extendedTypes.includes(type))
    table = next === undefined ? undefined : extendedStart + next.start
  }
  return found
}

async function gptPartitions(disk: Stretch): Promise<Stretch[]> {
  for (const block of [512, 4096]) {
    for (const at of [block, disk.sizeBytes - (disk.sizeBytes % block) - block]) {
      const found = await gptAt(disk, block, at)
      if (found !== undefined) return found
    }
  }
  return refuse(disk.disk.name, 'its GUID partition table is damaged')
}

/** Undefined when there is no sound header with a sound table: the other copy may have one. */
async function gptAt(disk: Stretch, block: number, at: number): Promise<Stretch[] | undefined> {
  if (!fits(disk, at, block)) return undefined
  const header = await readStretch(disk, at, block)
  const headerBytes = header.readUInt32LE(12)
  if (header.toString('latin1', 0, 8) !== 'EFI PART' || headerBytes < 92 || headerBytes > block) return undefined
  const checked = Buffer.from(header.subarray(0, headerBytes))
  checked.writeUInt32LE(0, 16)
  if (crc32(checked) !== header.readUInt32LE(16)) return undefined
  const tableAt = Number(header.readBigUInt64LE(72)) * block
  const count = header.readUInt32LE(80)
  const entryBytes = header.readUInt32LE(84)
  const tableBytes = count * entryBytes
  if (entryBytes < 128 || tableBytes > largestTableBytes || !fits(disk, tableAt, tableBytes)) return undefined
  const table = await readStretch(disk, tableAt, tableBytes)
  if (crc32(table) !== header.readUInt32LE(88)) return undefined
  const found: Stretch[] = []
  for (let entry = 0; entry < tableBytes; entry += entryBytes) {
    if (table.subarray(entry, entry + 16).every((byte) => byte === 0)) continue
    const first = Number(table.readBigUInt64LE(entry + 32))
    const last = Number(table.readBigUInt64LE(entry + 40))
    if (found.length >= mostPartitions) refuse(disk.disk.name, 'it has too many partitions')
    found.push(within(disk, first * block, (last - first + 1) * block))
  }
  return found
}
