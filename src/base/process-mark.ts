/**
 * ProcessMark: who is at work, so that what a killed process left can be told from what a living one needs. It stands in
 * names of files, in journals, and in draft markers of repositories (docs/repository-format.md), and keeps its text.
 * A process is its host, the host's boot, its number and the moment it started: numbers alone are used again.
 */
import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { hostname } from 'node:os'

export interface ProcessMark {
  /** Digest of the host's name: a mark can be part of a file name. */
  readonly host: string
  /** Digest of the boot's identifier. */
  readonly boot: string
  readonly pid: number
  /** Start of the process in clock ticks since boot. */
  readonly startTicks: number
}

const shortDigest = (text: string) => createHash('sha256').update(text).digest('hex').slice(0, 8)

let own: Promise<ProcessMark> | undefined

/** The mark of this process. */
export function ownProcessMark(): Promise<ProcessMark> {
  own ??= readOwnMark()
  return own
}

async function readOwnMark(): Promise<ProcessMark> {
  const boot = await readFile('/proc/sys/kernel/random/boot_id', 'utf8').catch(() => 'unknown')
  const startTicks = (await readStartTicks(process.pid)) ?? 0
  return { host: shortDigest(hostname()), boot: shortDigest(boot.trim()), pid: process.pid, startTicks }
}

/** Field 22 of /proc/<pid>/stat; undefined when there is no such process (or only its remains). */
async function readStartTicks(pid: number): Promise<number | undefined> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => undefined)
  if (stat === undefined) return undefined
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return fields[0] === 'Z' || fields[0] === 'X' ? undefined : Number(fields[19])
}

/** Whether the marked process lives; 'elsewhere' when only its own host can tell. */
export async function processState(mark: ProcessMark): Promise<'alive' | 'dead' | 'elsewhere'> {
  const self = await ownProcessMark()
  if (mark.host !== self.host) return 'elsewhere'
  if (mark.boot !== self.boot) return 'dead'
  return (await readStartTicks(mark.pid)) === mark.startTicks ? 'alive' : 'dead'
}

/** `host-boot-pid-ticks`, for file names. */
export function processMarkText(mark: ProcessMark): string {
  return `${mark.host}-${mark.boot}-${mark.pid}-${mark.startTicks}`
}

/** The mark at the beginning of `text`; undefined when there is none. */
export function parseProcessMark(text: string): ProcessMark | undefined {
  const match = /^([0-9a-f]{8})-([0-9a-f]{8})-(\d{1,10})-(\d{1,15})(?![0-9])/.exec(text)
  if (match === null) return undefined
  const [, host = '', boot = '', pid, ticks] = match
  return { host, boot, pid: Number(pid), startTicks: Number(ticks) }
}

/** Whether the process lives whose mark `text` begins with. */
export async function isAtWork(text: string): Promise<boolean> {
  const mark = parseProcessMark(text)
  return mark !== undefined && (await processState(mark)) === 'alive'
}
