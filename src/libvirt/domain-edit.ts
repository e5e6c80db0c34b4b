/**
 * Edits of a domain's XML for restore and for overlays: text in, text out, everything not named stays untouched
 * (libvirt docs, "Domain XML format"). An edit that names a disk or NIC that is not there is refused.
 */
import type { Element } from '@xmldom/xmldom'
import { failure } from '../errors.ts'
import type { DiskImage, DiskStorage, ServedBacking } from '../vm/hypervisor.ts'
import {
  attribute,
  child,
  children,
  createElement,
  descend,
  ensureChild,
  parseXml,
  remove,
  serializeXml,
  text,
  type XmlDocument,
} from './xml-dom.ts'

/** Where a NIC is plugged in. */
export type NicConnection = { readonly network: string } | { readonly bridge: string }

function edit(xml: string, change: (root: Element, parsed: XmlDocument) => void): string {
  const parsed = parseXml(xml, 'domain')
  change(parsed.root, parsed)
  return serializeXml(parsed)
}

function setText(element: Element, value: string): void {
  element.textContent = value
}

export const renameDomain = (xml: string, name: string): string =>
  edit(xml, (root) => setText(ensureChild(root, 'name'), name))

export const setDomainUuid = (xml: string, uuid: string): string =>
  edit(xml, (root) => setText(ensureChild(root, 'uuid'), uuid))

/** For a firmware that keeps its variables in `path`; a VM without such a firmware stays as it is. */
export const setNvramPath = (xml: string, path: string): string =>
  edit(xml, (root) => {
    const nvram = descend(root, 'os', 'nvram')
    if (nvram === undefined) return
    const source = child(nvram, 'source')
    if (source === undefined) setText(nvram, path)
    else source.setAttribute('file', path)
  })

const nicsOf = (root: Element): Element[] => children(child(root, 'devices'), 'interface')
const macOf = (nic: Element): string => (attribute(child(nic, 'mac'), 'address') ?? '').toLowerCase()

/** New MAC addresses, by position; undefined lets libvirt make one. */
export const setMacs = (xml: string, macs: readonly (string | undefined)[]): string =>
  edit(xml, (root) => {
    for (const [index, nic] of nicsOf(root).entries()) {
      const mac = macs[index]
      if (mac === undefined || mac === '') remove(child(nic, 'mac'))
      else ensureChild(nic, 'mac').setAttribute('address', mac)
    }
  })

/** Plugs the NIC with that MAC in somewhere else; it keeps its MAC, model and address. */
export const connectNic = (xml: string, mac: string, to: NicConnection): string =>
  edit(xml, (root) => {
    const nic = findNic(root, mac)
    const kind = 'network' in to ? 'network' : 'bridge'
    const former = attribute(nic, 'type') ?? kind
    nic.setAttribute('type', kind)
    const mark = child(nic, 'mac')?.nextSibling ?? nic.firstChild
    const source = createElement(nic, 'source', { ...to })
    const known = child(nic, 'source')
    if (known === undefined) nic.insertBefore(source, mark)
    else nic.replaceChild(source, known)
    remove(child(nic, 'virtualport'), child(nic, 'vlan'), child(nic, 'backend'), child(nic, 'script'))
    if (![kind, 'network', 'bridge'].includes(former)) remove(child(nic, 'target'), child(nic, 'driver'))
  })

function findNic(root: Element, mac: string): Element {
  const nic = nicsOf(root).find((candidate) => macOf(candidate) === mac.toLowerCase())
  if (nic === undefined) throw missing(root, `a NIC with the address ${mac}`)
  return nic
}

function missing(root: Element, what: string) {
  const vm = text(child(root, 'name')) ?? 'the VM'
  return failure('VM_CONFIGURATION_INVALID', { vm, reason: `it does not have ${what}` })
}

function findDisk(root: Element, target: string): Element {
  const disks = children(child(root, 'devices'), 'disk')
  const disk = disks.find((candidate) => attribute(child(candidate, 'target'), 'dev') === target)
  if (disk === undefined) throw missing(root, `a disk ${target}`)
  return disk
}

/** Puts a disk on another image. What was known about images beneath the old one goes. */
export const setDiskImage = (xml: string, target: string, image: DiskImage): string =>
  edit(xml, (root) => {
    const disk = findDisk(root, target)
    const { type, source } = sourceElement(disk, image.storage)
    putSource(disk, type, source, image.format)
    remove(child(disk, 'backingStore'))
  })

/** States what lies beneath a disk, so that nothing is guessed from it: a served disk, and nothing beneath that. */
export const setServedBacking = (xml: string, target: string, backing: ServedBacking): string =>
  edit(xml, (root) => {
    const disk = findDisk(root, target)
    const { socketPath, exportName, reconnectDelaySeconds } = backing
    const { type, source } = sourceElement(disk, { nbd: { socketPath, exportName } })
    source.appendChild(createElement(disk, 'reconnect', { delay: String(reconnectDelaySeconds) }))
    const beneath = createElement(disk, 'backingStore', { type })
    for (const part of [createElement(disk, 'format', { type: 'raw' }), source, createElement(disk, 'backingStore')]) {
      beneath.appendChild(part)
    }
    remove(child(disk, 'backingStore'))
    disk.insertBefore(beneath, child(disk, 'source')?.nextSibling ?? null)
  })

/** Lets libvirt find out by itself what lies beneath a disk, as it does for every disk that does not say. */
export function forgetChain(xml: string, target: string): string {
  const parsed = parseXml(xml, 'domain')
  const chain = child(findDisk(parsed.root, target), 'backingStore')
  if (chain === undefined) return xml
  remove(chain)
  return serializeXml(parsed)
}

/**
 * Takes the top image off a disk: what is beneath takes its place, word for word when the XML tells it (secrets and
 * hosts of a network source), else as `base` says.
 */
export const dropTopImage = (xml: string, target: string, base: DiskImage): string =>
  edit(xml, (root) => {
    const disk = findDisk(root, target)
    const beneath = child(disk, 'backingStore')
    const [source, deeper] = [child(beneath, 'source'), child(beneath, 'backingStore')]
    const format = attribute(child(beneath, 'format'), 'type')
    if (beneath === undefined || source === undefined || format === undefined) {
      const described = sourceElement(disk, base.storage)
      putSource(disk, described.type, described.source, base.format)
      remove(beneath)
      return
    }
    putSource(disk, attribute(beneath, 'type') ?? 'file', source, format)
    if (deeper === undefined || deeper.firstChild === null) remove(beneath)
    else disk.replaceChild(deeper, beneath)
  })

function putSource(disk: Element, type: string, source: Element, format: string): void {
  disk.setAttribute('type', type)
  if (type === 'file' && attribute(disk, 'device') === 'lun') disk.setAttribute('device', 'disk')
  if (type === 'file') for (const name of ['sgio', 'rawio']) disk.removeAttribute(name)
  const before = child(disk, 'source') ?? child(disk, 'target')
  const driver = child(disk, 'driver') ?? ensureChild(disk, 'driver', before)
  if (attribute(driver, 'name') === undefined) driver.setAttribute('name', 'qemu')
  driver.setAttribute('type', format)
  source.removeAttribute('index')
  const known = child(disk, 'source')
  if (known === undefined) disk.insertBefore(source, child(disk, 'target') ?? null)
  else disk.replaceChild(source, known)
  remove(child(disk, 'mirror'), child(disk, 'auth'), child(disk, 'encryption'))
}

function sourceElement(nearby: Element, storage: DiskStorage): { type: string; source: Element } {
  if ('file' in storage) return { type: 'file', source: createElement(nearby, 'source', { file: storage.file }) }
  if ('blockDevice' in storage) {
    return { type: 'block', source: createElement(nearby, 'source', { dev: storage.blockDevice }) }
  }
  if ('nbd' in storage) {
    const { socketPath, host, port, exportName } = storage.nbd
    const source = createElement(nearby, 'source', { protocol: 'nbd', name: exportName })
    const tcp = { name: host ?? 'localhost', port: String(port ?? 10809) }
    const at = socketPath === undefined ? tcp : { transport: 'unix', socket: socketPath }
    source.appendChild(createElement(nearby, 'host', at))
    return { type: 'network', source }
  }
  const { pool, image, monitors, configFile } = storage.rbd
  const source = createElement(nearby, 'source', { protocol: 'rbd', name: `${pool}/${image}` })
  for (const { host, port } of monitors) {
    source.appendChild(createElement(nearby, 'host', { name: host, port: String(port) }))
  }
  if (configFile !== undefined) source.appendChild(createElement(nearby, 'config', { file: configFile }))
  return { type: 'network', source }
}

/** Removes what only a running VM has, so that the text can be defined again. */
export const dropLiveState = (xml: string): string =>
  edit(xml, (root) => {
    root.removeAttribute('id')
    const devices = child(root, 'devices')
    for (const device of devices === undefined ? [] : [...devices.childNodes]) {
      if (device.nodeType === 1) dropLiveDeviceState(device as Element)
    }
    for (const label of children(root, 'seclabel')) {
      if (attribute(label, 'type') === 'dynamic') remove(label)
    }
  })

function dropLiveDeviceState(device: Element): void {
  const alias = child(device, 'alias')
  if (!attribute(alias, 'name')?.startsWith('ua-')) remove(alias)
  if (device.localName === 'disk') {
    remove(child(device, 'backingStore'), child(device, 'mirror'))
    child(device, 'source')?.removeAttribute('index')
  }
  if (device.localName === 'interface') {
    if (attribute(child(device, 'target'), 'dev')?.startsWith('vnet')) remove(child(device, 'target'))
    child(device, 'source')?.removeAttribute('portid')
  }
  if (device.localName === 'channel') {
    child(device, 'target')?.removeAttribute('state')
    if (attribute(child(device, 'source'), 'path')?.includes('/channel/target/')) remove(child(device, 'source'))
  }
}
