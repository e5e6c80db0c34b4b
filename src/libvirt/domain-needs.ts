/**
 * What a domain's XML needs of the host that runs it, and the edits that give it another host's emulator, machine type or
 * firmware (libvirt docs, "Domain XML format": general metadata, operating system booting, CPU model, TPM device).
 */
import type { Element } from '@xmldom/xmldom'
import { XMLSerializer } from '@xmldom/xmldom'
import type { MachineNeeds } from '../vm/machine-needs.ts'
import { attribute, child, children, descend, ensureChild, parseXml, remove, serializeXml, text } from './xml-dom.ts'

export function readNeeds(xml: string): MachineNeeds {
  const { root } = parseXml(xml, 'domain')
  const [os, devices] = [child(root, 'os'), child(root, 'devices')]
  const type = child(os, 'type')
  const emulator = text(child(devices, 'emulator'))
  const cpu = readCpu(child(root, 'cpu'))
  const firmware = readFirmware(os)
  const backend = attribute(child(child(devices, 'tpm'), 'backend'), 'type')
  return {
    kind: attribute(root, 'type') ?? 'kvm',
    architecture: attribute(type, 'arch') ?? 'x86_64',
    machine: attribute(type, 'machine') ?? '',
    ...(emulator === undefined ? {} : { emulator }),
    ...(cpu === undefined ? {} : { cpu }),
    ...(firmware === undefined ? {} : { firmware }),
    ...(backend === undefined ? {} : { tpm: { backend } }),
    bootFiles: ['kernel', 'initrd', 'dtb'].flatMap((name) => text(child(os, name)) ?? []),
    media: children(devices, 'disk').flatMap(readMedium),
  }
}

/** Only a model that is spelled out can be missing; the host's own is there by definition. */
function readCpu(cpu: Element | undefined): string | undefined {
  const spelledOut = child(cpu, 'model') !== undefined && (attribute(cpu, 'mode') ?? 'custom') === 'custom'
  return cpu !== undefined && spelledOut ? new XMLSerializer().serializeToString(cpu) : undefined
}

function readFirmware(os: Element | undefined): MachineNeeds['firmware'] {
  const loader = child(os, 'loader')
  const chosen = attribute(os, 'firmware')
  const path = text(loader)
  const secure = attribute(loader, 'secure') === 'yes'
  if (path !== undefined) return { kind: attribute(loader, 'type') === 'rom' ? 'bios' : 'efi', path, secure }
  return chosen === 'efi' || chosen === 'bios' ? { kind: chosen, secure } : undefined
}

function readMedium(disk: Element): { target: string; path: string }[] {
  const [target, path] = [attribute(child(disk, 'target'), 'dev'), attribute(child(disk, 'source'), 'file')]
  const isDrive = ['cdrom', 'floppy'].includes(attribute(disk, 'device') ?? 'disk')
  return isDrive && target !== undefined && path !== undefined ? [{ target, path }] : []
}

function edit(xml: string, change: (root: Element) => void): string {
  const parsed = parseXml(xml, 'domain')
  change(parsed.root)
  return serializeXml(parsed)
}

export const setEmulator = (xml: string, path: string): string =>
  edit(xml, (root) => {
    const devices = ensureChild(root, 'devices')
    const first = [...devices.childNodes].find((node) => node.nodeType === 1)
    ensureChild(devices, 'emulator', first as Element | undefined).textContent = path
  })

export const setMachine = (xml: string, machine: string): string =>
  edit(xml, (root) => descend(root, 'os', 'type')?.setAttribute('machine', machine))

export const setFirmwarePath = (xml: string, path: string): string =>
  edit(xml, (root) => {
    const loader = descend(root, 'os', 'loader')
    if (loader !== undefined) loader.textContent = path
  })

/** A new VM generation ID (libvirt docs, "General metadata", genid), for a VM that has one. */
export const setGeneration = (xml: string, generation: string): string =>
  edit(xml, (root) => {
    const known = child(root, 'genid')
    if (known !== undefined) known.textContent = generation
  })

/** Takes the medium out of a drive; the drive stays. */
export const ejectMedium = (xml: string, target: string): string =>
  edit(xml, (root) => {
    const drives = children(child(root, 'devices'), 'disk')
    const drive = drives.find((one) => attribute(child(one, 'target'), 'dev') === target)
    remove(child(drive, 'source'), child(drive, 'backingStore'))
  })
