/**
 * What `umbra vms` shows: method, way and consistency in the table; with a name every condition as a sentence.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { sampleDisk, sampleVm, uuid } from '../../test/fault/sample-vm.ts'
import type { JsonObject } from '../base/cleanup.ts'
import type { GuestVolume } from '../vm/guest-requestor.ts'
import { type BackupPolicy, defaultPolicy, type GuestFacts, planMethod } from '../vm/method.ts'
import { conditionLines, vmRecord } from './vm-record.ts'
import { type ListedVm, renderVmInWords, renderVms } from './vms-listing.ts'

const root: GuestVolume = {
  mountPoint: '/',
  type: 'ext4',
  kind: 'lvm',
  where: 'vg0/root',
  targets: ['sda'],
  roomBytes: 512 * 1024 * 1024,
}
const boot: GuestVolume = { ...root, mountPoint: '/boot', kind: 'other', where: '/dev/sda1' }

const guest = (volumes: readonly GuestVolume[]): GuestFacts => ({
  answering: true,
  os: { id: 'debian', name: 'Debian GNU/Linux 12', version: '12' },
  fileSystems: [],
  requestor: { via: 'exec', volumes, writers: ['postgres'], arrays: [], strayDevices: [] },
})

/** As it comes out of the writer: through JSON. */
function listed(name: string, facts: GuestFacts, policy: Partial<BackupPolicy>, hotAddsScsi = true): ListedVm {
  const vm = sampleVm({ name, disks: [sampleDisk('sda')], hotAddsScsi })
  const plan = planMethod(vm, facts, { ...defaultPolicy, ...policy })
  const told = JSON.parse(JSON.stringify({ ...plan, name, uuid, power: vm.power })) as JsonObject
  return { ...vmRecord(told), obstacles: plan.obstacles }
}

describe('umbra vms', () => {
  test('shows the method with the way of auto-recovery, and why', () => {
    const table = renderVms(
      [
        listed('db01', guest([root]), {}),
        listed('db02', guest([root]), { profile: '2012r2' }, false),
        listed('web01', guest([root, boot]), {}),
        listed('old95', { answering: false, why: 'no answer within 5000 ms' }, { method: 'child-snapshot' }),
      ],
      undefined,
    )
    const lines = table.split('\n')
    assert.match(
      lines[1] ?? '',
      /^db01 +running +child-snapshot \(by-reading\) +application .*writers take part: postgres/,
    )
    assert.match(lines[2] ?? '', /by-reading: all volumes of the guest are classic LVM/)
    assert.match(lines[3] ?? '', /^db02 +running +child-snapshot \(on-host\)/)
    assert.match(lines[4] ?? '', /on-host: not in-guest: the VM has no virtio-scsi controller/)
    assert.match(lines[5] ?? '', /^web01 +running +guest-freeze +filesystem .*no child-snapshot: .*\/boot/)
    assert.match(lines[6] ?? '', /^old95 +running +not possible/)
  })
})

describe('umbra vms NAME', () => {
  test('prints every condition, met or unmet, by what needs it', () => {
    assert.equal(
      renderVmInWords(listed('db01', guest([root]), { profile: '2012r2' }, false)),
      `db01 (11111111-2222-4333-8444-555555555555, running, 1 disk)
  child-snapshot (on-host), application consistency: the guest can take a snapshot of itself, and its writers take part: postgres
  auto-recovery on-host: not in-guest: the VM has no virtio-scsi controller
  rolled back sda: holds / (ext4, vg0/root)
  for any method:
    met    nothing else occupies the VM: no job is running
    met    not held in a saved state by the hypervisor: it is not saved
    met    every disk can be read: 1 disk
  for child-snapshot and guest-freeze:
    met    VM is running: running
    met    guest agent installed and running: connected
    met    guest agent answers: answers
    met    guest operating system supported: Debian GNU/Linux 12
  for child-snapshot:
    met    copies may be rolled back (auto-recovery): the context of the shadow copies allows it
    met    guest operating system can take snapshots of itself: Debian GNU/Linux 12
    met    backup integration service in the guest: the agent may run programs
    met    every file system of the guest supports snapshots: / (ext4, vg0/root)
    met    room for the snapshots inside the guest: 512 MiB free in vg0
    met    no array and no dynamic disk in the guest: basic disks only
    met    every volume of the guest lies on backed-up disks only: sda
    met    overlays lie on the same volume as the disks: each beside its image file
  for auto-recovery in-guest:
    unmet  copies can be hot-added over SCSI: the VM has no virtio-scsi controller
  disk   sda: 977 KiB, /images/web01-sda.qcow2`,
    )
  })

  test('prints every reason of a VM that can not be backed up as asked', () => {
    const text = renderVmInWords(
      listed('old95', { answering: false, why: 'no answer within 5000 ms' }, { method: 'child-snapshot' }),
    )
    assert.match(text, /\n {2}can not be backed up:\n {4}no answer within 5000 ms\n {4}not known: the agent/)
    assert.doesNotMatch(text, /^ {2}(rolled back|auto-recovery)/m)
  })
})

describe('conditions of a recovery point made before they told what needs them', () => {
  test('are printed as they were', () => {
    const told = { conditions: [{ name: 'VM is running', met: true, detail: 'running' }] }
    assert.deepEqual(conditionLines(vmRecord(told)), ['  met    VM is running: running'])
  })

  test('says which disks are read whole every time, and what would help', () => {
    const told = {
      ...{ name: 'web01', uuid, power: 'running', method: 'guest-freeze', consistency: 'filesystem' },
      disks: [
        { target: 'sda', format: 'raw' },
        { target: 'sdb', format: 'qcow2' },
      ],
    }
    const words = (changes: JsonObject) => renderVmInWords({ ...vmRecord({ ...told, ...changes }), obstacles: [] })
    assert.match(words({}), /read whole and compared in every backup: sda \(raw\); as qcow2 only what changed/)
    assert.doesNotMatch(words({ method: 'offline' }), /read whole/)
  })
})
