/**
 * The disks in a domain's XML (libvirt docs, "Domain XML format", Hard drives and Host device assignment): what each
 * lies on, what is beneath it, where it sits in the guest. Nothing is probed: no driver type means raw, as in libvirt.
 */
import type { Element } from '@xmldom/xmldom'
import type { DiskImage, DiskStorage, VirtualDisk } from '../vm/hypervisor.ts'
import { attribute, child, children, text } from './xml-dom.ts'

/** An image of a disk's chain as the XML tells it. */
export interface ImageDescription {
  readonly sourceType: string
  readonly protocol?: string
  readonly location: string
  readonly image?: DiskImage
}

export interface PciAddress {
  readonly domain: number
  readonly bus: number
  readonly slot: number
  readonly function: number
}

export type DiskAddress =
  | { readonly drive: { controller: number; bus: number; target: number; unit: number } }
  | { readonly pci: PciAddress }

/** A disk as the XML tells it, with what only this layer needs. */
export interface DomainDisk extends Omit<VirtualDisk, 'sizeBytes'> {
  readonly chain: readonly ImageDescription[]
  readonly address?: DiskAddress
  /** A block job that copies this disk's data: copy or active-commit. */
  readonly mirror?: { readonly job: string; readonly ready: boolean }
  /** The PCI address on the host of a passed-through PCI device, for the one who can look what it is. */
  readonly hostPci?: string
}

const imageFormats = ['raw', 'qcow2', 'vpc', 'vhdx', 'vmdk', 'vdi', 'qed'] as const
const isImageFormat = (name: string): name is DiskImage['format'] => imageFormats.some((format) => format === name)

export function readDisk(disk: Element): DomainDisk | undefined {
  const target = attribute(child(disk, 'target'), 'dev')
  if (target === undefined) return undefined
  const device = attribute(disk, 'device')
  const { chain, ...image } = readImage(disk, attribute(child(disk, 'driver'), 'type') ?? 'raw')
  const serial = text(child(disk, 'serial'))
  const address = readAddress(child(disk, 'address'))
  const mirror = child(disk, 'mirror')
  return {
    target,
    bus: attribute(child(disk, 'target'), 'bus') ?? 'unknown',
    device: device === 'cdrom' || device === 'floppy' || device === 'lun' ? device : 'disk',
    ...(serial === undefined ? {} : { serial }),
    readOnly: child(disk, 'readonly') !== undefined || device === 'cdrom',
    shareable: child(disk, 'shareable') !== undefined,
    transient: child(disk, 'transient') !== undefined,
    ...image,
    backing: chain.map((beneath) => beneath.location),
    chain,
    passThrough: false,
    ...(address === undefined ? {} : { address }),
    ...(mirror === undefined
      ? {}
      : { mirror: { job: attribute(mirror, 'job') ?? 'copy', ready: attribute(mirror, 'ready') === 'yes' } }),
  }
}

/** The image described by a <disk>, and by the <backingStore>s beneath it. */
function readImage(disk: Element, driverType: string): ImageDescription & { chain: readonly ImageDescription[] } {
  const chain: ImageDescription[] = []
  for (let store = child(disk, 'backingStore'); store !== undefined; store = child(store, 'backingStore')) {
    const format = attribute(child(store, 'format'), 'type')
    if (format !== undefined) chain.push(describeImage(store, format))
  }
  return { ...describeImage(disk, driverType), chain }
}

function describeImage(holder: Element, format: string): ImageDescription {
  const sourceType = attribute(holder, 'type') ?? 'file'
  const source = child(holder, 'source')
  const protocol = sourceType === 'network' ? attribute(source, 'protocol') : undefined
  const readable = child(source, 'encryption') === undefined && child(holder, 'encryption') === undefined
  const storage = readable && child(source, 'slices') === undefined ? readStorage(sourceType, source) : undefined
  return {
    sourceType,
    ...(protocol === undefined ? {} : { protocol }),
    location: describeLocation(sourceType, source),
    ...(storage === undefined || !isImageFormat(format) ? {} : { image: { format, storage } }),
  }
}

function describeLocation(sourceType: string, source: Element | undefined): string {
  if (source === undefined) return ''
  if (sourceType === 'network')
    return `${attribute(source, 'protocol') ?? 'network'}:${attribute(source, 'name') ?? ''}`
  if (sourceType === 'volume') return `${attribute(source, 'pool') ?? ''}/${attribute(source, 'volume') ?? ''}`
  const named = ['file', 'dev', 'dir', 'path']
    .map((name) => attribute(source, name))
    .find((value) => value !== undefined)
  return named ?? (sourceType === 'nvme' ? `nvme:${pciText(child(source, 'address'))}` : '')
}

function readStorage(sourceType: string, source: Element | undefined): DiskStorage | undefined {
  const file = attribute(source, 'file')
  if (sourceType === 'file' && file !== undefined) return { file }
  const blockDevice = attribute(source, 'dev')
  if (sourceType === 'block' && blockDevice !== undefined) return { blockDevice }
  if (sourceType !== 'network' || source === undefined) return undefined
  if (attribute(source, 'protocol') === 'nbd') return readNbd(source)
  return attribute(source, 'protocol') === 'rbd' ? readRbd(source) : undefined
}

const portOf = (host: Element | undefined, otherwise: number): number => Number(attribute(host, 'port') ?? otherwise)

function readNbd(source: Element): DiskStorage | undefined {
  const host = child(source, 'host')
  if (attribute(source, 'tls') === 'yes' || host === undefined) return undefined
  const exportName = attribute(source, 'name') ?? ''
  const socketPath = attribute(host, 'socket')
  if (attribute(host, 'transport') === 'unix') {
    return socketPath === undefined ? undefined : { nbd: { socketPath, exportName } }
  }
  const name = attribute(host, 'name')
  return name === undefined ? undefined : { nbd: { host: name, port: portOf(host, 10809), exportName } }
}

function readRbd(source: Element): DiskStorage | undefined {
  const name = attribute(source, 'name')
  const slash = name?.indexOf('/') ?? -1
  if (name === undefined || slash < 0 || child(source, 'snapshot') !== undefined) return undefined
  const user = attribute(child(source, 'auth'), 'username')
  const configFile = attribute(child(source, 'config'), 'file')
  const monitors = children(source, 'host').map((host) => ({
    host: attribute(host, 'name') ?? '',
    port: portOf(host, 6789),
  }))
  return {
    rbd: {
      pool: name.slice(0, slash),
      image: name.slice(slash + 1),
      monitors,
      ...(user === undefined ? {} : { user }),
      ...(configFile === undefined ? {} : { configFile }),
    },
  }
}

const numberOf = (element: Element, name: string): number => Number(attribute(element, name) ?? 0)

/** A PCI address from <address> of a controller, a disk or a host device. */
export function readPci(address: Element): PciAddress {
  return {
    domain: numberOf(address, 'domain'),
    bus: numberOf(address, 'bus'),
    slot: numberOf(address, 'slot'),
    function: numberOf(address, 'function'),
  }
}

function readAddress(address: Element | undefined): DiskAddress | undefined {
  const type = attribute(address, 'type')
  if (address === undefined) return undefined
  if (type === 'pci') return { pci: readPci(address) }
  if (type !== 'drive') return undefined
  const [controller, bus] = [numberOf(address, 'controller'), numberOf(address, 'bus')]
  return { drive: { controller, bus, target: numberOf(address, 'target'), unit: numberOf(address, 'unit') } }
}

function pciText(address: Element | undefined): string {
  if (address === undefined) return ''
  const { domain, bus, slot, function: fn } = readPci(address)
  const hex = (value: number, digits: number) => value.toString(16).padStart(digits, '0')
  return `${hex(domain, 4)}:${hex(bus, 2)}:${hex(slot, 2)}.${fn}`
}

/** A host device as a disk; undefined when it carries none. PCI devices are told apart by who knows the host. */
export function readHostDevice(device: Element, index: number): DomainDisk | undefined {
  const type = attribute(device, 'type')
  const source = child(device, 'source')
  if (type !== 'scsi' && type !== 'scsi_host' && type !== 'pci') return undefined
  const address = pciText(child(source, 'address'))
  const adapter = attribute(child(source, 'adapter'), 'name') ?? attribute(source, 'wwpn') ?? attribute(source, 'name')
  return {
    target: `hostdev${index}`,
    bus: type === 'pci' ? 'pci' : 'scsi',
    device: 'lun',
    readOnly: child(device, 'readonly') !== undefined,
    shareable: child(device, 'shareable') !== undefined,
    transient: false,
    sourceType: 'hostdev',
    location: type === 'pci' ? `pci:${address}` : `${type}:${adapter ?? ''}`,
    backing: [],
    chain: [],
    passThrough: true,
    ...(type === 'pci' ? { hostPci: address } : {}),
  }
}
