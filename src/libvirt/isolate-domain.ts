/**
 * Makes of a VM's configuration one that can run beside the original and touches nothing of it, nor of the host, nor of
 * any network but the one named (libvirt docs, "Domain XML format"). What is kept is what the guest needs to boot as it
 * is: machine, CPU, firmware, controllers, disks, graphics. Whatever leads out is taken away or led into nothing.
 */
import type { Element } from '@xmldom/xmldom'
import type { ConfigurationIsolation } from '../vm/hypervisor.ts'
import { type CheckEnd, eachOutwardDevice, isHostInput } from './outward-devices.ts'
import {
  attribute,
  child,
  children,
  createElement,
  descend,
  elements,
  ensureChild,
  parseXml,
  remove,
  serializeXml,
  text,
} from './xml-dom.ts'

/** Of an interface: what is the guest's own, and says nothing about where it is plugged in. */
const partsOfNic = ['mac', 'model', 'address', 'boot', 'mtu', 'alias', 'rom', 'acpi']

/** No device is left that reaches out; every interface is on the network. Pure. */
export function isolateDomain(xml: string, { network, keptDisks, memoryKiB }: ConfigurationIsolation): string {
  const parsed = parseXml(xml, 'domain')
  const { root } = parsed
  // Arguments for QEMU itself can be anything, a network among them; they stand in a namespace of their own.
  for (const node of elements(root)) {
    if (node.namespaceURI !== root.namespaceURI) root.removeChild(node)
  }
  remove(child(root, 'metadata'))
  const generation = child(root, 'genid')
  if (generation !== undefined) generation.textContent = '' // libvirt makes a new one: it is a copy, and may know
  eachOutwardDevice(elements(child(root, 'devices')), (device, { check }) =>
    ends[check](device, { network, keptDisks }),
  )
  for (const event of ['on_poweroff', 'on_crash']) {
    const action = child(root, event)
    if (action !== undefined) action.textContent = 'destroy'
  }
  if (memoryKiB !== undefined) capMemory(root, memoryKiB)
  return serializeXml(parsed)
}

type Isolation = Pick<ConfigurationIsolation, 'network' | 'keptDisks'>

/** What each end of the table means here. */
const ends: Readonly<Record<CheckEnd, (device: Element, isolation: Isolation) => void>> = {
  gone: (device) => remove(device),
  'only the kept': (disk, { keptDisks }) =>
    keptDisks.includes(attribute(child(disk, 'target'), 'dev') ?? '') || remove(disk),
  'onto the one network': (nic, { network }) => plugInto(nic, network),
  nowhere: leadNowhere,
  unreachable: hideGraphics,
  'gone unless emulated': (tpm) => attribute(child(tpm, 'backend'), 'type') === 'emulator' || remove(tpm),
  'gone if from a daemon': (rng) => attribute(child(rng, 'backend'), 'model') === 'egd' && remove(rng),
  'gone if on a source': (memory) => child(memory, 'source') && remove(memory),
  'gone if of the host': (input) => isHostInput(input) && remove(input),
  'without acceleration': (video) => remove(child(child(video, 'model'), 'acceleration')),
  'without dumps': (watchdog) => attribute(watchdog, 'action') === 'dump' && watchdog.setAttribute('action', 'reset'),
}

/** Without filters, ports, scripts and backends of where it was before; never of type null, on which libvirt 9.0 dies. */
function plugInto(nic: Element, network: string): void {
  for (const name of [...nic.attributes].map((one) => one.name)) nic.removeAttribute(name)
  const wasHostDevice = child(nic, 'model') === undefined
  for (const part of elements(nic)) {
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
