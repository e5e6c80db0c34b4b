/**
 * The workload's two logs: record k is written to log A and synced, then to log B and synced. So at any true instant
 * A is at most one record ahead; any other lead means that the two disks were not captured at one instant.
 */
import { crc32 } from 'node:zlib'
import type { BlockSource } from '../../src/disk/block-device.ts'
import { clusterBytes } from './sim-disk.ts'

export const recordBytes = 64
const nothing = new Uint8Array(recordBytes)

export interface LogArea {
  readonly offset: number
  readonly length: number
}

const aligned = (bytes: number) => Math.floor(bytes / clusterBytes) * clusterBytes

/** Log A lies in the third quarter of its disk, log B in the fourth: one disk can carry both. */
export function logArea(log: 'A' | 'B', diskBytes: number): LogArea {
  return { offset: aligned((diskBytes * (log === 'A' ? 2 : 3)) / 4), length: aligned(diskBytes / 4) }
}

/** `Q` is written when the application is quiesced, `W` otherwise. */
export function encodeRecord(sequence: number, type: 'W' | 'Q'): Uint8Array {
  const body = `seq=${String(sequence).padStart(10, '0')} type=${type}`
  return Buffer.from(`${body} crc=${crc32(body).toString(16).padStart(8, '0')}`.padEnd(recordBytes - 1).concat('\n'))
}

export interface LogContent {
  /** Number of the last good record; 0 for an empty log. */
  readonly last: number
  readonly lastType: 'W' | 'Q' | undefined
  /** Records that are damaged, or not where they belong. */
  readonly torn: number
}

export function readLog(bytes: Uint8Array): LogContent {
  let last = 0
  let lastType: LogContent['lastType']
  let torn = 0
  for (let at = 0, end = usedBytes(bytes); at < end; at += recordBytes) {
    const record = bytes.subarray(at, at + recordBytes)
    if (Buffer.compare(record, nothing) === 0) continue
    const sequence = at / recordBytes + 1
    const type = (['W', 'Q'] as const).find((each) => Buffer.compare(encodeRecord(sequence, each), record) === 0)
    if (type === undefined || sequence !== last + 1) torn++
    if (type !== undefined) {
      last = sequence
      lastType = type
    }
  }
  return { last, lastType, torn }
}

/** Most of a log is still zeros. */
function usedBytes(bytes: Uint8Array): number {
  let end = bytes.length
  while (end > 0 && bytes[end - 1] === 0) end--
  return end
}

export interface RecordsVerdict {
  /** Records that are on both disks. */
  readonly records: number
  /** How many records A is ahead of B. */
  readonly lead: number
  readonly torn: number
  /** Both disks are of one instant: nothing torn, lead 0 or 1. */
  readonly crossConsistent: boolean
  /** The application was quiesced at that instant. */
  readonly quiesced: boolean
}

/** Looks at what two images hold; for a VM with a single disk give it twice, or once. */
export async function verifyRecords(
  imageA: BlockSource | Uint8Array,
  imageB: BlockSource | Uint8Array = imageA,
): Promise<RecordsVerdict> {
  const a = readLog(await areaOf('A', imageA))
  const b = readLog(await areaOf('B', imageB))
  const torn = a.torn + b.torn
  const lead = a.last - b.last
  return {
    records: Math.min(a.last, b.last),
    lead,
    torn,
    crossConsistent: torn === 0 && (lead === 0 || lead === 1),
    quiesced: torn === 0 && lead === 0 && a.lastType === 'Q' && b.lastType === 'Q',
  }
}

async function areaOf(log: 'A' | 'B', image: BlockSource | Uint8Array): Promise<Uint8Array> {
  if (image instanceof Uint8Array) {
    const { offset, length } = logArea(log, image.length)
    return image.subarray(offset, offset + length)
  }
  const { offset, length } = logArea(log, image.sizeBytes)
  const bytes = new Uint8Array(length)
  await image.read(offset, bytes)
  return bytes
}
