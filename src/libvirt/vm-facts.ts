/**
 * Everything the choice of a method looks at, gathered from a VM without disturbing it (API reference of libvirt,
 * module libvirt-domain). Calls of one VM are sent together. What can not be told because another job holds the VM
 * makes it busy, not unreadable.
 */
import { readFile } from 'node:fs/promises'
import { describeError } from '../base/failure.ts'
import type { HostFile, VirtualDisk, VmFacts } from '../vm/hypervisor.ts'
import { backingChain, imageInfo } from './disk-image.ts'
import type { DomainCalls, DomainState } from './domain-calls.ts'
import type { DomainDisk } from './domain-disks.ts'
import { type DomainDescription, readDomain } from './domain-xml.ts'
import { attachedCopies, virtioScsiControllers } from './hot-add.ts'
import { isFailure } from './libvirt-errors.ts'
import { powerOf } from './power.ts'
import { domainStates, shutOffByGuest, xmlFlags } from './protocol.ts'

const tpmDirectory = '/var/lib/libvirt/swtpm'
const massStorageClass = /^0x01/

export async function vmFacts(domains: DomainCalls, uuid: string): Promise<VmFacts> {
  const [state, configuration, now, persistent, managedSave, snapshots] = await Promise.all([
    domains.state(uuid),
    domains.xml(uuid, xmlFlags.secure | xmlFlags.inactive),
    domains.xml(uuid, 0),
    domains.isPersistent(uuid),
    domains.hasManagedSave(uuid),
    domains.snapshotCount(uuid),
  ])
  const active = state.state !== domainStates.off
  const described = readDomain(now)
  const [disks, busy] = await Promise.all([
    Promise.all(described.disks.map((disk) => diskFacts(domains, uuid, disk, active))),
    active ? occupation(domains, uuid, described) : undefined,
  ])
  return {
    name: described.name,
    uuid,
    power: powerOf(state.state, managedSave),
    ...shutDown(state),
    persistent,
    agent: active ? described.agent : withoutConnection(described.agent),
    disks: disks.filter((disk) => disk !== undefined),
    hostFiles: hostFiles(readDomain(configuration), uuid),
    nics: described.nics,
    hotAddsScsi: virtioScsiControllers(now).length > 0,
    ...(busy === undefined ? {} : { busy }),
    hasHypervisorSnapshots: snapshots > 0,
    configuration,
  }
}

const shutDown = ({ state, reason }: DomainState): { shutDownCleanly?: boolean } =>
  state === domainStates.off ? { shutDownCleanly: reason === shutOffByGuest } : {}

const withoutConnection = (agent: VmFacts['agent']): VmFacts['agent'] => (agent === 'none' ? 'none' : 'disconnected')

function hostFiles({ nvram, hasEmulatedTpm }: DomainDescription, uuid: string): HostFile[] {
  return [
    ...(nvram === undefined ? [] : [{ role: 'nvram' as const, path: nvram }]),
    ...(hasEmulatedTpm ? [{ role: 'tpm' as const, path: `${tpmDirectory}/${uuid}` }] : []),
  ]
}

/** The job that holds the VM, in words. */
async function occupation(domains: DomainCalls, uuid: string, vm: DomainDescription): Promise<string | undefined> {
  const [copy] = attachedCopies(vm.disks)
  if (copy !== undefined) return `auto-recovery: the copy ${copy} is attached to it`
  const mirrored = vm.disks.find((disk) => disk.mirror !== undefined)
  if (mirrored?.mirror !== undefined) return `a block job (${mirrored.mirror.job}) on ${mirrored.target}`
  try {
    if ((await domains.jobType(uuid)) !== 0) return 'a job of the hypervisor (backup, migration, save or dump)'
    const used = vm.disks.filter((disk) => !disk.passThrough && disk.location !== '')
    const jobs = await Promise.all(used.map((disk) => domains.blockJob(uuid, disk.target)))
    const target = used.find((_, index) => jobs[index] !== undefined)?.target
    return target === undefined ? undefined : `a block job on ${target}`
  } catch (error) {
    if (isFailure(error, 'VM_BUSY')) return describeError(error)
    // It has been turned off since: then nothing holds it any more.
    if (!(await domains.isActive(uuid))) return undefined
    throw error
  }
}

/** Undefined for a passed-through PCI device that is no storage. */
async function diskFacts(
  domains: DomainCalls,
  uuid: string,
  disk: DomainDisk,
  active: boolean,
): Promise<VirtualDisk | undefined> {
  const { chain: _chain, address: _address, mirror: _mirror, hostPci, ...facts } = disk
  if (hostPci !== undefined && !(await isMassStorage(hostPci))) return undefined
  if (disk.passThrough || disk.location === '') return facts
  const [sizeBytes, backing] = await Promise.all([
    diskSize(domains, uuid, disk),
    active || disk.backing.length > 0 ? disk.backing : backingOf(disk),
  ])
  return { ...facts, backing, ...(sizeBytes === undefined ? {} : { sizeBytes }) }
}

async function isMassStorage(hostPci: string): Promise<boolean> {
  return massStorageClass.test(await readFile(`/sys/bus/pci/devices/${hostPci}/class`, 'utf8').catch(() => ''))
}

const localPath = ({ image }: DomainDisk): string | undefined => {
  if (image === undefined) return undefined
  if ('file' in image.storage) return image.storage.file
  return 'blockDevice' in image.storage ? image.storage.blockDevice : undefined
}

async function diskSize(domains: DomainCalls, uuid: string, disk: DomainDisk): Promise<number | undefined> {
  const told = await domains.diskSize(uuid, disk.target).catch(() => undefined)
  if (told !== undefined && told > 0) return told
  const path = localPath(disk)
  if (path === undefined || disk.image === undefined) return undefined
  return (await imageInfo(path, disk.image.format).catch(() => undefined))?.virtualSizeBytes
}

/** The chain of a VM that is off is in no XML, only in the images themselves. */
async function backingOf(disk: DomainDisk): Promise<readonly string[]> {
  const path = localPath(disk)
  if (path === undefined || disk.image === undefined || disk.image.format === 'raw') return []
  return (await backingChain(path, disk.image.format).catch(() => [])).map((image) => image.path)
}
