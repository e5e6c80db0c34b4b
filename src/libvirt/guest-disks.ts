/**
 * Finds the VM's disk behind a disk as the guest sees it: by serial, else by where it sits on its bus. Never by a name
 * inside the guest; those change from boot to boot (QEMU Guest Agent Protocol Reference, GuestDiskAddress).
 */
import type { DomainDisk, PciAddress } from './domain-disks.ts'
import type { DomainDescription } from './domain-xml.ts'
import type { GuestDisk } from './guest-replies.ts'

const only = <Item>(items: readonly Item[]): Item | undefined => (items.length === 1 ? items[0] : undefined)

const samePci = (a: PciAddress | undefined, b: PciAddress | undefined): boolean =>
  a !== undefined &&
  b !== undefined &&
  a.domain === b.domain &&
  a.bus === b.bus &&
  a.slot === b.slot &&
  a.function === b.function

/** The target of the disk; undefined when none fits or more than one would. */
export function targetOf(seen: GuestDisk, vm: DomainDescription): string | undefined {
  const disks = vm.disks.filter((disk) => !disk.passThrough)
  return (bySerial(seen, disks) ?? byAddress(seen, disks, vm))?.target
}

/** udev puts vendor and model before the serial: 0QEMU_QEMU_HARDDISK_web-sda. */
function bySerial({ serial }: GuestDisk, disks: readonly DomainDisk[]): DomainDisk | undefined {
  if (serial === undefined) return undefined
  const named = disks.filter((disk) => disk.serial !== undefined)
  const exact = only(named.filter((disk) => disk.serial === serial))
  return exact ?? only(named.filter((disk) => serial.endsWith(`_${disk.serial}`)))
}

function byAddress(seen: GuestDisk, disks: readonly DomainDisk[], vm: DomainDescription): DomainDisk | undefined {
  const onPci = disks.filter(({ address }) =>
    samePci(address && 'pci' in address ? address.pci : undefined, seen['pci-controller']),
  )
  if (onPci.length > 0) return only(onPci)
  const fitting = disks.filter(({ address, bus }) => {
    if (address === undefined || !('drive' in address) || !busFits(seen['bus-type'], bus)) return false
    const { bus: channel, target, unit } = address.drive
    return channel === seen.bus && target === seen.target && unit === seen.unit
  })
  const ofController = fitting.filter(({ address, bus }) => {
    const index = address !== undefined && 'drive' in address ? address.drive.controller : 0
    return samePci(vm.controllers.get(`${bus}${index}`), seen['pci-controller'])
  })
  return only(ofController) ?? only(fitting)
}

const busFits = (inGuest: string, bus: string): boolean => inGuest === bus || (inGuest === 'sas' && bus === 'scsi')
