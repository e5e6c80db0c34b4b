/**
 * What a domain's XML says, read only (libvirt docs, "Domain XML format"). The text itself is always kept verbatim;
 * this is the view of it that the facts of a VM, the merge of overlays and the guest agent need.
 */
import type { VirtualNic } from '../vm/hypervisor.ts'
import { type DomainDisk, type PciAddress, readDisk, readHostDevice, readPci } from './domain-disks.ts'
import { attribute, child, children, descend, parseXml, text } from './xml-dom.ts'

const agentChannel = 'org.qemu.guest_agent.0'

export interface DomainDescription {
  readonly name: string
  readonly uuid: string
  readonly disks: readonly DomainDisk[]
  readonly nics: readonly VirtualNic[]
  readonly nvram?: string
  /** True when the VM has a TPM whose state the host keeps. */
  readonly hasEmulatedTpm: boolean
  /** Only a running VM's XML knows whether the agent is connected. */
  readonly agent: 'connected' | 'disconnected' | 'none'
  /** PCI addresses of the disk controllers, by type and index: `scsi0`. */
  readonly controllers: ReadonlyMap<string, PciAddress>
}

export function readDomain(xml: string, vm?: string): DomainDescription {
  const { root } = parseXml(xml, 'domain', vm)
  const devices = child(root, 'devices')
  const nvram = descend(root, 'os', 'nvram')
  const nvramPath = attribute(child(nvram, 'source'), 'file') ?? text(nvram)
  return {
    name: text(child(root, 'name')) ?? '',
    uuid: text(child(root, 'uuid'))?.toLowerCase() ?? '',
    disks: [
      ...children(devices, 'disk').flatMap((disk) => readDisk(disk) ?? []),
      ...children(devices, 'hostdev').flatMap((device, index) => readHostDevice(device, index) ?? []),
    ],
    nics: children(devices, 'interface').map(readNic),
    ...(nvramPath === undefined ? {} : { nvram: nvramPath }),
    hasEmulatedTpm: children(devices, 'tpm').some((tpm) => attribute(child(tpm, 'backend'), 'type') === 'emulator'),
    agent: readAgent(children(devices, 'channel')),
    controllers: new Map(
      children(devices, 'controller').flatMap((controller) => {
        const address = child(controller, 'address')
        const key = `${attribute(controller, 'type')}${attribute(controller, 'index') ?? 0}`
        return address !== undefined && attribute(address, 'type') === 'pci' ? [[key, readPci(address)] as const] : []
      }),
    ),
  }
}

type Elements = ReturnType<typeof children>

function readNic(nic: Elements[number]): VirtualNic {
  const source = child(nic, 'source')
  const name = attribute(source, 'network') ?? attribute(source, 'bridge') ?? attribute(source, 'dev')
  return {
    mac: (attribute(child(nic, 'mac'), 'address') ?? '').toLowerCase(),
    type: attribute(nic, 'type') ?? 'unknown',
    ...(name === undefined ? {} : { source: name }),
  }
}

function readAgent(channels: Elements): DomainDescription['agent'] {
  const target = channels.map((channel) => child(channel, 'target')).find((t) => attribute(t, 'name') === agentChannel)
  if (target === undefined) return 'none'
  return attribute(target, 'state') === 'connected' ? 'connected' : 'disconnected'
}
