/**
 * The devices of a VM that lead out of it: to its host, to other VMs, to a network. Source: libvirt docs, "Domain XML
 * format", element by element. Two documents are made by this table: one that runs where nothing may lead out at all
 * (a check, isolate-domain.ts), and one that runs beside its original and has nothing of the original's (a copy,
 * separate-copy.ts). What each end means is said there. A device that is not listed stays in both.
 */
import type { Element } from '@xmldom/xmldom'
import { attribute } from './xml-dom.ts'

/** What becomes of a device where nothing may lead out. */
export type CheckEnd =
  | 'gone'
  | 'only the kept'
  | 'onto the one network'
  | 'nowhere'
  | 'gone unless emulated'
  | 'gone if from a daemon'
  | 'gone if on a source'
  | 'gone if of the host'
  | 'unreachable'
  | 'without acceleration'
  | 'without dumps'

/** What becomes of a device that its original has too. */
export type CopyEnd =
  | 'stays'
  | 'gone'
  | 'gone unless shared read-only'
  | 'gone if on a path'
  | 'gone if of the host'
  | 'gone unless of a viewer'
  | 'gone unless emulated'
  | 'without its floppy'
  | 'under names of its own'
  | 'to an end of its own'
  | 'on a port of its own'
  | 'at an address of its own'
  | 'not recorded'

export interface DeviceEnds {
  readonly check: CheckEnd
  readonly copy: CopyEnd
}

/** By the name of the element. */
export const outwardDevices: ReadonlyMap<string, DeviceEnds> = new Map<string, DeviceEnds>([
  ['disk', { check: 'only the kept', copy: 'without its floppy' }],
  ['interface', { check: 'onto the one network', copy: 'under names of its own' }],
  ['serial', { check: 'nowhere', copy: 'to an end of its own' }],
  ['parallel', { check: 'nowhere', copy: 'to an end of its own' }],
  ['console', { check: 'nowhere', copy: 'to an end of its own' }],
  ['channel', { check: 'nowhere', copy: 'to an end of its own' }],
  ['graphics', { check: 'unreachable', copy: 'on a port of its own' }],
  ['video', { check: 'without acceleration', copy: 'stays' }],
  ['audio', { check: 'gone', copy: 'not recorded' }],
  ['sound', { check: 'gone', copy: 'stays' }],
  ['hostdev', { check: 'gone', copy: 'gone' }],
  ['filesystem', { check: 'gone', copy: 'gone unless shared read-only' }],
  ['shmem', { check: 'gone', copy: 'gone' }],
  ['memory', { check: 'gone if on a source', copy: 'gone if on a path' }],
  ['redirdev', { check: 'gone', copy: 'gone unless of a viewer' }],
  ['redirfilter', { check: 'gone', copy: 'stays' }],
  ['smartcard', { check: 'gone', copy: 'gone unless of a viewer' }],
  ['input', { check: 'gone if of the host', copy: 'gone if of the host' }],
  ['vsock', { check: 'gone', copy: 'at an address of its own' }],
  ['tpm', { check: 'gone unless emulated', copy: 'gone unless emulated' }],
  ['rng', { check: 'gone if from a daemon', copy: 'stays' }],
  ['lease', { check: 'gone', copy: 'gone' }],
  ['pstore', { check: 'gone', copy: 'gone' }],
  ['crypto', { check: 'gone', copy: 'stays' }],
  ['watchdog', { check: 'without dumps', copy: 'stays' }],
])

/** Calls `end` for each device of the table, with what the table says of it. */
export function eachOutwardDevice(devices: Iterable<Element>, end: (device: Element, ends: DeviceEnds) => void): void {
  for (const device of [...devices]) {
    const ends = device.prefix ? undefined : outwardDevices.get(device.localName ?? '')
    if (ends !== undefined) end(device, ends)
  }
}

/** An input device that is the host's own, and not one that QEMU makes. */
export const isHostInput = (input: Element): boolean =>
  ['passthrough', 'evdev'].includes(attribute(input, 'type') ?? '')
