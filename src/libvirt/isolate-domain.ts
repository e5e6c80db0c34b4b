/**
 * Makes of a VM's configuration one that can run beside the original and touches nothing of it, nor of the host, nor of
 * any network but the one named (libvirt docs, "Domain XML format"). What is kept is what the guest needs to boot as it
 * is: machine, CPU, firmware, controllers, disks, graphics. Whatever leads out is taken away or led into nothing.
 */
import type { Element } from '@xmldom/xmldom'
import type { ConfigurationIsolation } from '../vm/hypervisor.ts'
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
} from './xml-dom.ts'

/** Devices that are the host's, another VM's, or a way out of this one. */
const devicesOfOthers = [
  'hostdev',
  'filesystem',
  'redirdev',
  'redirfilter',
  'smartcard',
  'shmem',
  'lease',
  'vsock',
  'audio',
  'sound',
  'pstore',
  'crypto',
]
/** Of an interface: what is the guest's own, and says nothing about where it is plugged in. */
const partsOfNic = ['mac', 'model', 'address', 'boot', 'mtu', 'alias', 'rom', 'acpi']
const characterDevices = ['serial', 'parallel', 'console', 'channel']

/** No device is left that reaches out; every interface is on the network. Pure. */
export function isolateDomain(xml: string, { network, keptDisks, memoryKiB }: ConfigurationIsolation): string {
  const parsed = parseXml(xml, 'domain')
  const { root } = parsed
  // Arguments for QEMU itself can be anything, a network among them; they stand in a namespace of their own.
  for (const node of [...root.childNodes].filter(({ nodeType }) => nodeType === 1) as Element[]) {
    if (node.namespaceURI !== root.namespaceURI) root.removeChild(node)
  }
  remove(child(root, 'metadata'))
  const generation = child(root, 'genid')
  if (generation !== undefined) generation.textContent = '' // libvirt makes a new one: it is a copy, and may know
  const devices = child(root, 'devices')
  const isKept = (disk: Element) => keptDisks.includes(attribute(child(disk, 'target'), 'dev') ?? '')
  remove(...children(devices, 'disk').filter((disk) => !isKept(disk)))
  remove(...children(devices, 'memory').filter((memory) => child(memory, 'source') !== undefined))
  remove(
    ...children(devices, 'input').filter((input) => ['passthrough', 'evdev'].includes(attribute(input, 'type') ?? '')),
  )
  for (const name of devicesOfOthers) remove(...children(devices, name))
  for (const nic of children(devices, 'interface')) plugInto(nic, network)
  for (const name of characterDevices) for (const device of children(devices, name)) leadNowhere(device)
  for (const tpm of children(devices, 'tpm')) if (attribute(child(tpm, 'backend'), 'type') !== 'emulator') remove(tpm)
  for (const rng of children(devices, 'rng')) if (attribute(child(rng, 'backend'), 'model') === 'egd') remove(rng)
  for (const graphics of children(devices, 'graphics')) hideGraphics(graphics)
  for (const video of children(devices, 'video')) remove(child(child(video, 'model'), 'acceleration'))
  for (const watchdog of children(devices, 'watchdog')) {
    if (attribute(watchdog, 'action') === 'dump') watchdog.setAttribute('action', 'reset')
  }
  for (const event of ['on_poweroff', 'on_crash']) {
    const action = child(root, event)
    if (action !== undefined) action.textContent = 'destroy'
  }
  if (memoryKiB !== undefined) capMemory(root, memoryKiB)
  return serializeXml(parsed)
}

/** Without filters, ports, scripts and backends of where it was before; never of type null, on which libvirt 9.0 dies. */
function plugInto(nic: Element, network: string): void {
  for (const name of [...nic.attributes].map((one) => one.name)) nic.removeAttribute(name)
  const wasHostDevice = child(nic, 'model') === undefined
  for (const part of [...nic.childNodes].filter(({ nodeType }) => nodeType === 1) as Element[]) {
    if (!partsOfNic.includes(part.localName ?? '')) remove(part)
  }
  nic.setAttribute('type', 'network')
  nic.insertBefore(createElement(nic, 'source', { network }), child(nic, 'mac')?.nextSibling ?? nic.firstChild)
  if (wasHostDevice) nic.appendChild(createElement(nic, 'model', { type: 'virtio' }))
}

/** Files, devices and sockets of the original are its own. The agent's channel gets a socket that libvirt chooses. */
function leadNowhere(device: Element): void {
  const type = attribute(device, 'type')
  if (device.localName === 'channel') {
    const name = attribute(child(device, 'target'), 'name')
    if (name !== 'org.qemu.guest_agent.0') {
      remove(device)
      return
    }
    device.setAttribute('type', 'unix')
    remove(child(device, 'source'), child(device, 'protocol'), child(device, 'log'))
    child(device, 'target')?.removeAttribute('state')
    return
  }
  remove(child(device, 'log'))
  if (type !== 'pty') device.setAttribute('type', 'null')
  device.removeAttribute('tty')
  remove(child(device, 'source'), child(device, 'protocol'))
}

/** Nobody looks at it but the screenshot: no port that could be taken, none that could be reached. */
function hideGraphics(graphics: Element): void {
  if (!['vnc', 'spice'].includes(attribute(graphics, 'type') ?? '')) {
    remove(graphics)
    return
  }
  for (const name of ['port', 'tlsPort', 'websocket', 'socket', 'listen', 'passwd', 'passwdValidTo', 'sharePolicy']) {
    graphics.removeAttribute(name)
  }
  remove(...children(graphics, 'listen'), ...children(graphics, 'gl'))
  graphics.setAttribute('autoport', 'no')
  graphics.appendChild(createElement(graphics, 'listen', { type: 'none' }))
}

const kibibytes: Readonly<Record<string, number>> = {
  b: 1 / 1024,
  bytes: 1 / 1024,
  KB: 1000 / 1024,
  k: 1,
  KiB: 1,
  MB: 1e6 / 1024,
  M: 1024,
  MiB: 1024,
  GB: 1e9 / 1024,
  G: 1024 ** 2,
  GiB: 1024 ** 2,
  T: 1024 ** 3,
  TiB: 1024 ** 3,
}

/** Never more than it had. Cells and slots of memory, which would have to add up, go. */
function capMemory(root: Element, memoryKiB: number): void {
  const memory = child(root, 'memory')
  const present = Number(text(memory)) * (kibibytes[attribute(memory, 'unit') ?? 'KiB'] ?? 1)
  if (memory === undefined || !(present > memoryKiB)) return
  memory.setAttribute('unit', 'KiB')
  memory.textContent = String(memoryKiB)
  remove(child(root, 'maxMemory'), child(root, 'currentMemory'), child(root, 'numatune'))
  remove(descend(root, 'cpu', 'numa'), ...children(child(root, 'devices'), 'memory'))
  ensureChild(root, 'currentMemory', memory).textContent = String(memoryKiB)
  child(root, 'currentMemory')?.setAttribute('unit', 'KiB')
}
