/**
 * Which disks are left out, and that none is without a word (X1).
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { sampleDisk } from '../../test/fault/sample-vm.ts'
import { describeExclusion } from './exclusion.ts'
import type { VirtualDisk } from './hypervisor.ts'

const excluded: readonly (readonly [Partial<VirtualDisk>, RegExp])[] = [
  [{ passThrough: true }, /pass-through device/],
  [{ device: 'lun', sourceType: 'block' }, /pass-through LUN/],
  [{ device: 'cdrom' }, /removable medium/],
  [{ device: 'floppy' }, /removable medium/],
  [{ sourceType: 'network', protocol: 'iscsi' }, /iSCSI/],
  [{ sourceType: 'nvme' }, /nvme device: QEMU does not see its data/],
  [{ sourceType: 'vhostuser' }, /vhostuser device/],
  [{ transient: true }, /transient/],
  [{ shareable: true }, /shared with other VMs/],
  [{ readOnly: true }, /read-only/],
]

test('disks that the host can not see, or that are not the VM’s own, are excluded with a reason', () => {
  for (const [changes, reason] of excluded) assert.match(describeExclusion(sampleDisk('sda', changes)) ?? '', reason)
})

test('files, block devices and network disks that QEMU itself reads are backed up', () => {
  const kept: readonly Partial<VirtualDisk>[] = [
    {},
    { sourceType: 'block', bus: 'virtio' },
    { sourceType: 'network', protocol: 'nbd' },
    { sourceType: 'network', protocol: 'rbd' },
    { backing: ['/images/template.qcow2'] },
  ]
  for (const changes of kept) assert.equal(describeExclusion(sampleDisk('sda', changes)), undefined)
})

test('a pass-through device is named as one, whatever else it is', () => {
  assert.match(describeExclusion(sampleDisk('sda', { passThrough: true, readOnly: true })) ?? '', /pass-through/)
})
