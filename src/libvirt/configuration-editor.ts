/**
 * The ConfigurationEditor of the VM side, on domain XML: one edit after the other, each touching only what it names.
 */
import type { ConfigurationEdit, ConfigurationEditor } from '../vm/hypervisor.ts'
import { connectNic, renameDomain, setDiskImage, setDomainUuid, setMacs, setNvramPath } from './domain-edit.ts'
import { readDomain } from './domain-xml.ts'
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
    const macs = readDomain(xml).nics.map((nic) => edit.nics?.[nic.mac]?.mac ?? nic.mac)
    return setMacs(xml, macs)
  },
}

const setDiskFile = (disk: { readonly file: string; readonly format: string }) => (xml: string, target: string) =>
  setDiskImage(xml, target, { format: disk.format as 'raw', storage: { file: disk.file } })

/** Drops a disk by its target, or the n-th host device by the name `hostdevN` that Umbra gives to it. */
function removeDisk(xml: string, target: string): string {
  const parsed = parseXml(xml, 'domain')
  const devices = child(parsed.root, 'devices')
  const hostDevice = /^hostdev(\d+)$/.exec(target)
  if (hostDevice !== null) remove(children(devices, 'hostdev')[Number(hostDevice[1])])
  else remove(...children(devices, 'disk').filter((disk) => attribute(child(disk, 'target'), 'dev') === target))
  return serializeXml(parsed)
}
