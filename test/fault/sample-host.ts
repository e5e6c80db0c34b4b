/**
 * The surroundings of a restore, for tests of pure plans: a host with a network `default` that fits every VM.
 */
import type { HostFacts, MachineNeeds } from '../../src/vm/machine-needs.ts'
import type { RestoreSurroundings } from '../../src/vm/restore-plan.ts'

export const newUuid = '99999999-8888-4777-8666-555555555555'

/** A host on which these paths are files. */
export function sampleHost(
  files: readonly string[] = [],
  changes: Partial<RestoreSurroundings> = {},
): RestoreSurroundings {
  const folders = ['/images', '/data', '/nvram', '/elsewhere']
  let macs = 0
  return {
    networks: [{ name: 'default', kind: 'network', active: true }],
    pathKind: (path) => (files.includes(path) ? 'file' : folders.includes(path) ? 'other' : 'absent'),
    newUuid,
    newMac: () => `52:54:00:ff:00:0${++macs}`,
    token: 'abcd',
    workDirectory: '/work',
    ...changes,
  }
}

export const sampleNeeds = (changes: Partial<MachineNeeds> = {}): MachineNeeds => ({
  kind: 'kvm',
  architecture: 'x86_64',
  machine: 'pc-q35-7.2',
  emulator: '/usr/bin/qemu-system-x86_64',
  bootFiles: [],
  media: [],
  ...changes,
})

export const sampleFacts = (changes: Partial<HostFacts> = {}): HostFacts => ({
  emulator: '/usr/bin/qemu-system-x86_64',
  machines: ['q35', 'pc', 'pc-q35-6.2', 'pc-q35-7.2', 'pc-i440fx-7.2'],
  firmwares: ['/usr/share/OVMF/OVMF_CODE.fd'],
  choosesEfi: true,
  secureBoot: true,
  tpmBackends: ['emulator'],
  diskFormats: ['raw', 'qcow2', 'vpc', 'vmdk'],
  netDevices: ['lo', 'eth0'],
  missing: [],
  ...changes,
})
