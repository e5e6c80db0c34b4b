/**
 * A VM as a hypervisor would tell of it, for tests of pure plans: ordinary unless told otherwise.
 */
import type { VirtualDisk, VmFacts } from '../../src/vm/hypervisor.ts'
import type { StoredVm } from '../../src/vm/restore-plan.ts'

export const uuid = '11111111-2222-4333-8444-555555555555'

export const sampleDisk = (target: string, changes: Partial<VirtualDisk> = {}): VirtualDisk => ({
  target,
  bus: 'scsi',
  device: 'disk',
  readOnly: false,
  shareable: false,
  transient: false,
  sourceType: 'file',
  location: `/images/web01-${target}.qcow2`,
  image: { format: 'qcow2', storage: { file: `/images/web01-${target}.qcow2` } },
  sizeBytes: 1_000_000,
  backing: [],
  passThrough: false,
  ...changes,
})

export const sampleVm = (changes: Partial<VmFacts> = {}): VmFacts => ({
  name: 'web01',
  uuid,
  power: 'running',
  persistent: true,
  agent: 'connected',
  disks: [sampleDisk('sda')],
  hostFiles: [],
  nics: [],
  hotAddsScsi: true,
  hasHypervisorSnapshots: false,
  configuration: '<domain/>',
  ...changes,
})

const owner = { uid: 64055, gid: 64055, mode: 0o600 }

/** What was stored of it. */
export const storedVm = (changes: Partial<StoredVm> = {}): StoredVm => ({
  name: 'web01',
  uuid,
  power: 'running',
  disks: [
    { target: 'sda', location: '/images/web01-sda.qcow2', format: 'qcow2', sizeBytes: 1_000_000 },
    { target: 'sdb', location: '/data/web01.raw', format: 'raw', sizeBytes: 500_000 },
  ],
  excluded: [],
  nics: [{ mac: '52:54:00:00:00:01', type: 'network', source: 'default' }],
  hostFiles: [{ role: 'nvram', document: 'nvram', path: '/nvram/web01_VARS.fd', owner }],
  owners: { sda: owner },
  ...changes,
})
