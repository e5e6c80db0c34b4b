/**
 * Disks that are not backed up, each with its reason, never silently (X1). "Pass-through and iSCSI disks are not
 * visible to the host operating system and therefore not backed up": here because their bytes belong to another machine
 * or pass QEMU by. Network disks that QEMU itself reads (NBD, RBD) are backed up.
 */
import type { VirtualDisk } from './hypervisor.ts'

/** The one reason that needs no care at a restore. */
export const removableMedium = 'removable medium'

/** Why the disk is left out, or undefined when it is backed up. */
export function describeExclusion(disk: VirtualDisk): string | undefined {
  if (disk.passThrough) return 'pass-through device: back it up from inside the VM'
  if (disk.device === 'lun') return 'pass-through LUN: back it up from inside the VM'
  if (disk.device === 'cdrom' || disk.device === 'floppy') return removableMedium
  if (disk.protocol === 'iscsi') return 'iSCSI disk: back it up from inside the VM or on its target'
  if (disk.sourceType === 'nvme' || disk.sourceType === 'vhostuser')
    return `${disk.sourceType} device: QEMU does not see its data`
  if (disk.transient) return 'transient: its changes are thrown away when the VM stops'
  if (disk.shareable) return 'shared with other VMs: one VM alone can not give a consistent copy'
  if (disk.readOnly) return 'read-only: this VM never changes it'
  return undefined
}
