/**
 * What the simulated hypervisor tells about a VM.
 */
import type { VirtualDisk, VmFacts } from '../../src/vm/hypervisor.ts'
import type { HostFacts, MachineNeeds } from '../../src/vm/machine-needs.ts'
import { type ConfiguredDisk, readConfiguration } from './sim-configuration.ts'
import { storageKey } from './sim-disk.ts'
import { attachedCopies } from './sim-hot-add.ts'
import { powerOf, type SimVm } from './sim-vm.ts'
import { type SimWorld, tpmPath } from './sim-world.ts'

export function factsOf(world: SimWorld, vm: SimVm): VmFacts {
  const power = powerOf(vm)
  const now = readConfiguration(vm.live?.configuration ?? vm.configuration)
  const [copy] = attachedCopies(vm)
  const job = vm.live?.backupJob === undefined ? undefined : 'a backup job of the hypervisor'
  const busy =
    vm.busy ?? job ?? (copy === undefined ? undefined : `auto-recovery: the copy ${copy.serial} is attached to it`)
  return {
    name: now.name,
    uuid: vm.uuid,
    power,
    ...(power === 'off' ? { shutDownCleanly: vm.shutDownCleanly } : {}),
    persistent: vm.persistent,
    agent: agentOf(world, vm, now.hasAgent),
    disks: now.disks.map((disk) => diskFacts(world, disk)),
    hostFiles: [
      ...(now.nvram === undefined ? [] : [{ role: 'nvram', path: now.nvram } as const]),
      ...(now.hasTpm ? [{ role: 'tpm', path: world.path(tpmPath(vm.uuid)) } as const] : []),
    ],
    nics: now.nics,
    hotAddsScsi: now.hasVirtioScsi,
    ...(busy === undefined ? {} : { busy }),
    hasHypervisorSnapshots: vm.hasHypervisorSnapshots,
    configuration: vm.persistent ? vm.configuration : (vm.live?.configuration ?? vm.configuration),
  }
}

function agentOf(world: SimWorld, vm: SimVm, configured: boolean): VmFacts['agent'] {
  if (!configured) return 'none'
  return vm.live !== undefined && world.guestOf(vm.uuid).agentRuns ? 'connected' : 'disconnected'
}

function diskFacts(world: SimWorld, disk: ConfiguredDisk): VirtualDisk {
  const key = disk.image === undefined ? '' : storageKey(disk.image.storage)
  const nbd = disk.image !== undefined && 'nbd' in disk.image.storage ? disk.image.storage.nbd : undefined
  const chain = disk.image === undefined ? undefined : world.files.findDisk(disk.image)
  return {
    ...disk,
    location: nbd === undefined ? key : `nbd:${nbd.exportName}`,
    backing: chain?.keys.slice(1) ?? [],
    ...(chain === undefined ? {} : { sizeBytes: chain.sizeBytes }),
    passThrough: disk.sourceType === 'hostdev',
  }
}

/** A host of x86 PCs that fits every VM, unless the world says otherwise. */
export function hostFactsOf(world: SimWorld, needs: MachineNeeds): HostFacts {
  const { kind, architecture, emulator = '/usr/bin/qemu-system-x86_64', machine, firmware, bootFiles, media } = needs
  const named = [...bootFiles, ...media.map(({ path }) => path)]
  const runs = architecture === 'x86_64' && ['kvm', 'qemu'].includes(kind)
  return {
    ...(runs ? { emulator } : {}),
    machines: runs ? [machine] : [],
    firmwares: firmware?.path === undefined ? [] : [firmware.path],
    choosesEfi: true,
    secureBoot: true,
    tpmBackends: ['emulator', 'passthrough'],
    diskFormats: ['raw', 'qcow2', 'vpc'],
    netDevices: [...world.networks.values()].filter(({ kind }) => kind === 'bridge').map(({ name }) => name),
    missing: named.filter((path) => !world.files.has(path)),
    ...world.host,
  }
}
