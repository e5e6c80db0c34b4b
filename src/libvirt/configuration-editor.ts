/**
 * The ConfigurationEditor of the VM side, on domain XML: one edit after the other, each touching only what it names.
 */
import type { ConfigurationEdit, ConfigurationEditor, DiskFile } from '../vm/hypervisor.ts'
import {
  connectNic,
  renameDomain,
  setDiskImage,
  setDomainUuid,
  setMacs,
  setNvramPath,
  setServedBacking,
} from './domain-edit.ts'
import { ejectMedium, readNeeds, setEmulator, setFirmwarePath, setGeneration, setMachine } from './domain-needs.ts'
import { readDomain } from './domain-xml.ts'
import { isolateDomain } from './isolate-domain.ts'
import { separateFromOriginal } from './separate-copy.ts'
import { attribute, child, children, parseXml, remove, serializeXml } from './xml-dom.ts'

export const domainXmlEditor: ConfigurationEditor = {
  edit(configuration: string, edit: ConfigurationEdit): string {
    let xml = configuration
    if (edit.name !== undefined) xml = renameDomain(xml, edit.name)
    if (edit.uuid !== undefined) xml = setDomainUuid(xml, edit.uuid)
    if (edit.nvram !== undefined) xml = setNvramPath(xml, edit.nvram)
    for (const [target, disk] of Object.entries(edit.disks ?? {})) {
      const change = disk === 'remove' ? removeDisk : setDiskFile(disk)
      xml = change(xml, target)
    }
    for (const [mac, { connect }] of Object.entries(edit.nics ?? {})) {
      if (connect !== undefined) xml = connectNic(xml, mac, connect)
    }
    if (edit.emulator !== undefined) xml = setEmulator(xml, edit.emulator)
    if (edit.machine !== undefined) xml = setMachine(xml, edit.machine)
    if (edit.firmware !== undefined) xml = setFirmwarePath(xml, edit.firmware)
    if (edit.generation !== undefined) xml = setGeneration(xml, edit.generation)
    for (const target of edit.eject ?? []) xml = ejectMedium(xml, target)
    if (edit.separateFrom !== undefined) xml = separateFromOriginal(xml, edit.separateFrom, readDomain(xml).uuid).xml
    const macs = readDomain(xml).nics.map((nic) => edit.nics?.[nic.mac]?.mac ?? nic.mac)
    xml = setMacs(xml, macs)
    return edit.isolation === undefined ? xml : isolateDomain(xml, edit.isolation)
  },
  needs: readNeeds,
  ties: (configuration, original) => separateFromOriginal(configuration, original, '').notes,
}

const setDiskFile =
  ({ file, format, backing }: DiskFile) =>
  (xml: string, target: string) => {
    const onFile = setDiskImage(xml, target, { format: format as 'raw', storage: { file } })
    return backing === undefined ? onFile : setServedBacking(onFile, target, backing)
  }

/** Drops a disk by its target, or the n-th host device by the name `hostdevN` that Umbra gives to it. */
function removeDisk(xml: string, target: string): string {
  const parsed = parseXml(xml, 'domain')
  const devices = child(parsed.root, 'devices')
  const hostDevice = /^hostdev(\d+)$/.exec(target)
  if (hostDevice !== null) remove(children(devices, 'hostdev')[Number(hostDevice[1])])
  else remove(...children(devices, 'disk').filter((disk) => attribute(child(disk, 'target'), 'dev') === target))
  return serializeXml(parsed)
}
