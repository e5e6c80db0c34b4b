/**
 * The configuration of a simulated VM: XML as libvirt writes it, kept verbatim. This file makes it, reads what a
 * hypervisor needs of it, and changes the source of one disk without touching anything else.
 */
import { createHash } from 'node:crypto'
import { DOMParser, type Element } from '@xmldom/xmldom'
import { failure } from '../../src/errors.ts'
import type { DiskImage, DiskStorage, VirtualNic } from '../../src/vm/hypervisor.ts'

export interface ConfiguredDisk {
  readonly target: string
  readonly bus: string
  readonly device: 'disk' | 'lun' | 'cdrom' | 'floppy'
  readonly readOnly: boolean
  readonly shareable: boolean
  readonly transient: boolean
  readonly sourceType: string
  readonly serial?: string
  readonly protocol?: string
  readonly image?: DiskImage
}

export interface Configuration {
  readonly name: string
  readonly uuid: string | undefined
  readonly disks: readonly ConfiguredDisk[]
  readonly nics: readonly VirtualNic[]
  readonly nvram: string | undefined
  readonly hasTpm: boolean
  readonly hasAgent: boolean
  readonly hasVirtioScsi: boolean
}

const formats: readonly string[] = ['raw', 'qcow2', 'vpc', 'vhdx', 'vmdk', 'vdi', 'qed']
const devices = ['disk', 'lun', 'cdrom', 'floppy'] as const
const known = new Map<string, Configuration>()

/** Rejects what is not a VM with VM_CONFIGURATION_INVALID. */
export function readConfiguration(xml: string): Configuration {
  const read = known.get(xml) ?? parse(xml)
  known.set(xml, read)
  return read
}

function parse(xml: string): Configuration {
  const refuse = (reason: string) => failure('VM_CONFIGURATION_INVALID', { vm: 'the VM', reason })
  let domain: Element | null
  try {
    const onError = (_level: string, message: string) => {
      throw new Error(message)
    }
    domain = new DOMParser({ onError }).parseFromString(xml, 'text/xml').documentElement
  } catch (error) {
    throw refuse(String(error))
  }
  if (domain?.nodeName !== 'domain') throw refuse('the root element is not domain')
  const name = child(domain, 'name')?.textContent?.trim()
  if (name === undefined || name === '') throw refuse('no name')
  const inside = child(domain, 'devices')
  return {
    name,
    uuid: child(domain, 'uuid')?.textContent?.trim().toLowerCase(),
    disks: children(inside, 'disk').map(diskOf),
    nics: children(inside, 'interface').map(nicOf),
    nvram: child(child(domain, 'os'), 'nvram')?.textContent?.trim(),
    hasTpm: child(inside, 'tpm') !== undefined,
    hasAgent: children(inside, 'channel').some(
      (channel) => attribute(child(channel, 'target'), 'name') === 'org.qemu.guest_agent.0',
    ),
    hasVirtioScsi: children(inside, 'controller').some(
      (controller) => attribute(controller, 'type') === 'scsi' && attribute(controller, 'model') === 'virtio-scsi',
    ),
  }
}

function diskOf(disk: Element): ConfiguredDisk {
  const sourceType = attribute(disk, 'type') ?? 'file'
  const source = child(disk, 'source')
  const format = attribute(child(disk, 'driver'), 'type') ?? 'raw'
  const storage = source === undefined ? undefined : storageOf(sourceType, source)
  const protocol = attribute(source, 'protocol')
  const serial = child(disk, 'serial')?.textContent?.trim()
  return {
    target: attribute(child(disk, 'target'), 'dev') ?? '',
    bus: attribute(child(disk, 'target'), 'bus') ?? 'scsi',
    device: devices.find((each) => each === attribute(disk, 'device')) ?? 'disk',
    readOnly: child(disk, 'readonly') !== undefined,
    shareable: child(disk, 'shareable') !== undefined,
    transient: child(disk, 'transient') !== undefined,
    sourceType,
    ...(serial === undefined ? {} : { serial }),
    ...(protocol === undefined ? {} : { protocol }),
    ...(storage === undefined || !isFormat(format) ? {} : { image: { format, storage } }),
  }
}

const isFormat = (format: string): format is DiskImage['format'] => formats.includes(format)

function storageOf(type: string, source: Element): DiskStorage | undefined {
  const file = attribute(source, 'file')
  const device = attribute(source, 'dev')
  if (type === 'file' && file !== undefined) return { file }
  if (type === 'block' && device !== undefined) return { blockDevice: device }
  if (type !== 'network') return undefined
  const hosts = children(source, 'host')
  const name = attribute(source, 'name') ?? ''
  if (attribute(source, 'protocol') === 'nbd') {
    const socketPath = attribute(hosts[0], 'socket')
    const host = attribute(hosts[0], 'name')
    const port = Number(attribute(hosts[0], 'port') ?? 10809)
    return { nbd: { exportName: name, ...(socketPath === undefined ? { host: host ?? '', port } : { socketPath }) } }
  }
  if (attribute(source, 'protocol') !== 'rbd') return undefined
  const [pool = '', image = ''] = name.split('/')
  const monitors = hosts.map((host) => ({
    host: attribute(host, 'name') ?? '',
    port: Number(attribute(host, 'port') ?? 6789),
  }))
  return { rbd: { pool, image, monitors } }
}

function nicOf(nic: Element): VirtualNic {
  const source = child(nic, 'source')
  const connected = attribute(source, 'network') ?? attribute(source, 'bridge')
  return {
    mac: attribute(child(nic, 'mac'), 'address') ?? '',
    type: attribute(nic, 'type') ?? 'network',
    ...(connected === undefined ? {} : { source: connected }),
  }
}

const children = (parent: Element | undefined, name: string): Element[] =>
  [...(parent?.childNodes ?? [])].filter((node): node is Element => node.nodeName === name)

const child = (parent: Element | undefined, name: string): Element | undefined => children(parent, name)[0]

const attribute = (element: Element | undefined, name: string): string | undefined =>
  element?.getAttribute(name) ?? undefined

/** The text of one disk element. */
export function diskText(xml: string, target: string): string {
  const dev = new RegExp(`<target\\b[^>]*\\bdev=(['"])${target}\\1`)
  const found = xml.match(/<disk\b[\s\S]*?<\/disk>/g)?.find((disk) => dev.test(disk))
  if (found === undefined) throw failure('VM_CONFIGURATION_INVALID', { vm: target, reason: `no disk ${target}` })
  return found
}

/** Puts another image on one disk; everything else stays as it is written. */
export function withDiskImage(xml: string, target: string, image: DiskImage): string {
  const before = diskText(xml, target)
  const { type, source } = sourceText(image.storage)
  const after = before
    .replace(/<source\b[^>]*\/>|<source\b[\s\S]*?<\/source>/, () => source)
    .replace(/(<disk\b[^>]*\btype=)(['"])[^'"]*\2/, (_, start: string) => `${start}'${type}'`)
    .replace(/(<driver\b[^>]*\btype=)(['"])[^'"]*\2/, (_, start: string) => `${start}'${image.format}'`)
  return xml.replace(before, () => after)
}

/** One disk more, the last. */
export function withDisk(xml: string, disk: ConfiguredDisk): string {
  const unit = readConfiguration(xml).disks.length
  return xml.replace(/( *<interface\b| *<channel\b| *<tpm\b| *<\/devices>)/, (next) =>
    [...diskLines(disk, unit), next].join('\n'),
  )
}

export function withoutDisk(xml: string, target: string): string {
  const [before = '', after = ''] = xml.split(diskText(xml, target))
  return before.replace(/\n *$/, '') + after
}

function sourceText(storage: DiskStorage): { type: string; source: string } {
  if ('file' in storage) return { type: 'file', source: `<source file='${escaped(storage.file)}'/>` }
  if ('blockDevice' in storage) return { type: 'block', source: `<source dev='${escaped(storage.blockDevice)}'/>` }
  const network = (protocol: string, name: string, hosts: string[]) => ({
    type: 'network',
    source: `<source protocol='${protocol}' name='${escaped(name)}'>${hosts.map((host) => `<host ${host}/>`).join('')}</source>`,
  })
  if ('nbd' in storage) {
    const { socketPath, host = '', port = 10809, exportName } = storage.nbd
    const address =
      socketPath === undefined ? `name='${host}' port='${port}'` : `transport='unix' socket='${socketPath}'`
    return network('nbd', exportName, [address])
  }
  const { pool, image, monitors } = storage.rbd
  return network(
    'rbd',
    `${pool}/${image}`,
    monitors.map(({ host, port }) => `name='${host}' port='${port}'`),
  )
}

const escaped = (text: string) => text.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/'/g, '&apos;')

export interface ConfigurationParts {
  readonly name: string
  readonly uuid: string
  readonly disks: readonly ConfiguredDisk[]
  readonly nics: readonly VirtualNic[]
  readonly nvram?: string
  readonly hasTpm: boolean
  readonly hasAgent: boolean
  readonly hasVirtioScsi: boolean
}

/** A configuration as `virsh dumpxml --inactive` prints it. */
export function writeConfiguration(parts: ConfigurationParts): string {
  const lines = [
    "<domain type='kvm'>",
    `  <name>${escaped(parts.name)}</name>`,
    `  <uuid>${parts.uuid}</uuid>`,
    "  <memory unit='KiB'>131072</memory>",
    "  <currentMemory unit='KiB'>131072</currentMemory>",
    "  <vcpu placement='static'>1</vcpu>",
    '  <os>',
    "    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>",
    ...(parts.nvram === undefined ? [] : [`    <nvram>${escaped(parts.nvram)}</nvram>`]),
    '  </os>',
    "  <clock offset='utc'/>",
    '  <devices>',
    '    <emulator>/usr/bin/qemu-system-x86_64</emulator>',
    ...(parts.hasVirtioScsi ? ["    <controller type='scsi' index='0' model='virtio-scsi'/>"] : []),
    ...parts.disks.flatMap((disk, unit) => diskLines(disk, unit)),
    ...parts.nics.flatMap((nic) => nicLines(nic)),
    ...(parts.hasAgent
      ? ["    <channel type='unix'>", "      <target type='virtio' name='org.qemu.guest_agent.0'/>", '    </channel>']
      : []),
    ...(parts.hasTpm
      ? ["    <tpm model='tpm-crb'>", "      <backend type='emulator' version='2.0'/>", '    </tpm>']
      : []),
    '  </devices>',
    '</domain>',
  ]
  return `${lines.join('\n')}\n`
}

function diskLines(disk: ConfiguredDisk, unit: number): string[] {
  const { type, source } =
    disk.image === undefined ? { type: disk.sourceType, source: '' } : sourceText(disk.image.storage)
  return [
    `    <disk type='${type}' device='${disk.device}'>`,
    `      <driver name='qemu' type='${disk.image?.format ?? 'raw'}'/>`,
    ...(source === '' ? [] : [`      ${source}`]),
    `      <target dev='${disk.target}' bus='${disk.bus}'/>`,
    ...(disk.readOnly ? ['      <readonly/>'] : []),
    ...(disk.shareable ? ['      <shareable/>'] : []),
    ...(disk.transient ? ['      <transient/>'] : []),
    ...(disk.serial === undefined ? [] : [`      <serial>${escaped(disk.serial)}</serial>`]),
    `      <address type='drive' controller='0' bus='0' target='0' unit='${unit}'/>`,
    '    </disk>',
  ]
}

function nicLines(nic: VirtualNic): string[] {
  const source = nic.source === undefined ? [] : [`      <source ${nic.type}='${escaped(nic.source)}'/>`]
  return [
    `    <interface type='${nic.type}'>`,
    `      <mac address='${nic.mac}'/>`,
    ...source,
    "      <model type='virtio'/>",
    '    </interface>',
  ]
}

/** The UUID every simulated VM of that name has. */
export function uuidOf(name: string): string {
  const hex = createHash('sha256').update(name).digest('hex')
  return [hex.slice(0, 8), hex.slice(8, 12), `4${hex.slice(13, 16)}`, `8${hex.slice(17, 20)}`, hex.slice(20, 32)].join(
    '-',
  )
}
