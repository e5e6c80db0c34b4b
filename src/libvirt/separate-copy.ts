/**
 * What a copy of a VM can not have too: everything in a domain's XML that is the original's alone (sockets, log files,
 * host devices, shares, fixed ports), each renamed, made automatic or left out, and each told. Source: libvirt docs,
 * "Domain XML format", element by element. Disks, firmware variables, name, UUID and MAC addresses are edited by name
 * elsewhere; what is only read (kernel, firmware, CD images) and the metadata of others stay.
 */
import type { Element } from '@xmldom/xmldom'
import { type CopyEnd, eachOutwardDevice, isHostInput } from './outward-devices.ts'
import { attribute, child, children, elements, parseXml, remove, serializeXml, text } from './xml-dom.ts'

interface Separation {
  readonly original: { readonly name: string; readonly uuid: string }
  /** The copy's UUID; unknown while it is only told what will happen. */
  readonly uuid: string
  readonly notes: string[]
}

export function separateFromOriginal(
  xml: string,
  original: { readonly name: string; readonly uuid: string },
  uuid: string,
): { readonly xml: string; readonly notes: readonly string[] } {
  const parsed = parseXml(xml, 'domain')
  const { root } = parsed
  const work: Separation = { original, uuid, notes: [] }
  separateSystem(root, work)
  eachOutwardDevice(elements(child(root, 'devices')), (device, { copy }) => ends[copy](device, work.notes))
  separateArguments(root, work)
  return { xml: serializeXml(parsed), notes: work.notes }
}

/** SMBIOS tells the guest who it is; libvirt refuses a UUID there that is not the VM's. */
function separateSystem(root: Element, { original, uuid, notes }: Separation): void {
  for (const part of children(root, 'sysinfo').flatMap(elements)) {
    for (const entry of children(part, 'entry')) {
      if (entry.textContent?.toLowerCase().includes(original.uuid) !== true) continue
      entry.textContent = entry.textContent.toLowerCase().replaceAll(original.uuid, uuid)
      notes.push(`the system information ${attribute(entry, 'name')} gets the new UUID`)
    }
  }
  const store = child(child(root, 'os'), 'varstore')
  if (attribute(store, 'path') === undefined) return
  store?.removeAttribute('path')
  notes.push('the variable store of its firmware becomes a new one')
}

/** What each end of the table means here; whatever changes is told. */
const ends: Readonly<Record<CopyEnd, (device: Element, notes: string[]) => void>> = {
  stays: () => undefined,
  gone: (device, notes) => dropShared(device, sharedName(device), notes),
  'gone unless shared read-only': dropDirectory,
  'gone if on a path': dropMemory,
  'gone if of the host': (input, notes) => isHostInput(input) && dropShared(input, sharedName(input), notes),
  'gone unless of a viewer': dropUnlessSpice,
  'gone unless emulated': separateTpm,
  'without its floppy': separateFloppy,
  'under names of its own': separateInterface,
  'to an end of its own': separateCharacterDevice,
  'on a port of its own': separateGraphics,
  'at an address of its own': separateVsock,
  'not recorded': separateAudio,
}

const ofTheHost = ['file', 'pipe', 'unix', 'tcp', 'udp', 'dev', 'nmdm']

/** A file, socket or device of the host can have one user: the copy's is made by libvirt, a socket or a terminal of its own. */
function separateCharacterDevice(device: Element, notes: string[]): void {
  const kind = attribute(device, 'type') ?? 'pty'
  const source = child(device, 'source')
  const log = child(device, 'log')
  const called = `${device.localName} ${attribute(child(device, 'target'), 'name') ?? attribute(child(device, 'target'), 'port') ?? ''}`
  if (log !== undefined) {
    notes.push(`${called.trim()} is not logged to ${attribute(log, 'file')} any more`)
    remove(log)
  }
  const automatic = kind === 'unix' && source === undefined
  if (kind === 'pty') source?.removeAttribute('path')
  if (!ofTheHost.includes(kind) || automatic) return
  const own = device.localName === 'channel' ? 'unix' : 'pty'
  const where = attribute(source, 'path') ?? [attribute(source, 'host'), attribute(source, 'service')].join(':')
  notes.push(`${called.trim()} leads to ${own === 'unix' ? 'a socket' : 'a terminal'} of its own, not to ${where}`)
  device.setAttribute('type', own)
  remove(...children(device, 'source'), child(device, 'protocol'))
}

function dropUnlessSpice(device: Element, notes: string[]): void {
  const kind = attribute(device, 'type')
  if (kind === 'spicevmc' || (kind === undefined && attribute(device, 'mode') !== 'host-certificates')) return
  notes.push(`the ${device.localName} of the host is left out`)
  remove(device)
}

function separateGraphics(device: Element, notes: string[]): void {
  const fixed = ['port', 'tlsPort', 'websocket'].filter((name) => Number(attribute(device, name) ?? -1) > 0)
  const sockets = [device, ...children(device, 'listen')].filter((one) => attribute(one, 'socket') !== undefined)
  if (fixed.length === 0 && sockets.length === 0) return
  for (const name of fixed) device.removeAttribute(name)
  for (const one of sockets) one.removeAttribute('socket')
  if (fixed.length > 0) device.setAttribute('autoport', 'yes')
  notes.push(`its ${attribute(device, 'type')} display gets a port or socket of its own`)
}

/** Names of host devices and of ports are given anew; connections are the network plan's business. */
function separateInterface(device: Element): void {
  remove(child(device, 'target'), ...children(device, 'portForward'))
  child(device, 'backend')?.removeAttribute('logFile')
  child(child(device, 'virtualport'), 'parameters')?.removeAttribute('interfaceid')
}

function separateTpm(device: Element, notes: string[]): void {
  const backend = child(device, 'backend')
  const kind = attribute(backend, 'type') ?? 'passthrough'
  if (kind === 'emulator') {
    remove(child(backend, 'source'))
    return
  }
  notes.push(`its TPM is one of the host (${kind}) and is left out`)
  remove(device)
}

function separateVsock(device: Element, notes: string[]): void {
  const cid = child(device, 'cid')
  if (attribute(cid, 'address') === undefined) return
  cid?.removeAttribute('address')
  cid?.setAttribute('auto', 'yes')
  notes.push('its vsock gets an address of its own')
}

/** A floppy image is written by whoever has it; a CD is only read. */
function separateFloppy(device: Element, notes: string[]): void {
  const source = child(device, 'source')
  if (attribute(device, 'device') !== 'floppy' || source === undefined || child(device, 'readonly') !== undefined)
    return
  notes.push(`${attribute(child(device, 'target'), 'dev')} loses its floppy ${attribute(source, 'file') ?? ''}`.trim())
  remove(source)
}

function separateAudio(device: Element, notes: string[]): void {
  if (attribute(device, 'type') !== 'file') return
  notes.push(`its sound is not recorded to ${attribute(device, 'path')} any more`)
  device.setAttribute('type', 'none')
  device.removeAttribute('path')
}

/** Devices, memory and directories of the host that the original uses, perhaps at this moment. */
function dropShared(device: Element, what: string, notes: string[]): void {
  notes.push(`${what} is left out`)
  remove(device)
}

function sharedName(device: Element): string {
  if (device.localName === 'shmem') return `the shared memory ${attribute(device, 'name')}`
  if (device.localName === 'lease') return `the lock ${text(child(device, 'key')) ?? ''}`
  if (device.localName === 'pstore') return `the crash store ${text(child(device, 'path')) ?? ''}`
  return `the host device (${attribute(device, 'type') ?? attribute(device, 'mode')})`
}

function dropDirectory(device: Element, notes: string[]): void {
  if (child(device, 'readonly') !== undefined) return
  const source = child(device, 'source')
  const place = attribute(source, 'dir') ?? attribute(source, 'socket') ?? attribute(source, 'file') ?? ''
  dropShared(device, `the shared directory ${place} (${attribute(child(device, 'target'), 'dir') ?? ''})`, notes)
}

function dropMemory(device: Element, notes: string[]): void {
  const path = text(child(child(device, 'source'), 'path'))
  if (path !== undefined) dropShared(device, `the memory module on ${path}, which was not backed up,`, notes)
}

/** QEMU's own arguments are not libvirt's to understand: what may name the original or a file goes. */
function separateArguments(root: Element, { original, notes }: Separation): void {
  const [line] = elements(root).filter((one) => one.localName === 'commandline' && one.prefix)
  const values = elements(line).map((one) => one.getAttribute('value') ?? '')
  const suspect = values.some(
    (value) => /\//.test(value) || value.includes(original.name) || value.includes(original.uuid),
  )
  if (line === undefined || !suspect) return
  notes.push(`its own arguments for QEMU are left out: ${values.join(' ')}`)
  remove(line)
}
