/**
 * Puts the parts of instant restores together: the VM's side (src/vm/instant-vm.ts) with libvirt and QEMU's tools, and the
 * repository with the key that goes on to the process that serves its disks.
 */
import type { Configuration } from '../config.ts'
import { domainXmlEditor } from '../libvirt/configuration-editor.ts'
import { defaultUri } from '../libvirt/connection.ts'
import { closeGate, openGate } from '../libvirt/disk-gate.ts'
import { connectHypervisor, type LibvirtHypervisor } from '../libvirt/libvirt-hypervisor.ts'
import { overlayUse } from '../libvirt/overlay-file.ts'
import { createRepositoryOverlay, hasBacking, nbdBacking, pullOffline } from '../libvirt/repository-overlay.ts'
import { openRepository, type Unlock } from '../repository/repository.ts'
import type { InstantEnvironment, InstantMachine, OpenedRepository } from '../requester/instant.ts'
import type { InstantPlaces, InstantRecord } from '../requester/instant-record.ts'
import { type ServerKey, serverProcesses } from '../requester/instant-server.ts'
import { workDirectory } from '../requester/session.ts'
import { InstantVm } from '../vm/instant-vm.ts'
import { unlockOf } from './passphrase.ts'

export function instantEnvironment(
  { stateDirectory }: Pick<Configuration, 'stateDirectory'>,
  hypervisor: LibvirtHypervisor,
): InstantEnvironment {
  return { stateDirectory, machine: machineOf(hypervisor, stateDirectory), servers: serverProcesses(stateDirectory) }
}

function machineOf(hypervisor: LibvirtHypervisor, stateDirectory: string): InstantMachine {
  const tools = { hasBacking, pullOffline, editor: domainXmlEditor, workDirectory: workDirectory(stateDirectory) }
  const vm = new InstantVm({ hypervisor, ...tools })
  return {
    uri: hypervisor.uri,
    async plan(stored, request) {
      const made = await vm.plan(stored, request)
      const backingOf = (places: InstantPlaces) => (target: string) =>
        nbdBacking({ socketPath: places.gateSocketPath, exportName: target })
      return { ...made.plan, register: (places) => vm.register(made, backingOf(places)) }
    },
    makeOverlay: ({ target, overlay, sizeBytes }, { gateSocketPath }) =>
      createRepositoryOverlay(overlay, { socketPath: gateSocketPath, exportName: target, sizeBytes }),
    openGate: async (record, places) => openGate(gateOf(record, places), await hypervisor.vmOwner()),
    closeGate: (record, places) => closeGate(gateOf(record, places)),
    start: (uuid) => vm.start(uuid),
    power: (uuid) => vm.power(uuid),
    remove: (uuid) => vm.remove(uuid),
    isPulled: (uuid, disk) => vm.isPulled(uuid, disk),
    isUnused: async ({ overlay }) => ['missing', 'unused'].includes(await overlayUse(overlay)),
    beginPulls: (uuid, disks) => vm.beginPulls(uuid, disks),
    pull: (uuid, disk, options) => vm.pull(uuid, disk, options),
    resume: async (uuid) => {
      if ((await hypervisor.power(uuid)) === 'paused') await hypervisor.resumeAfterIoError(uuid)
    },
  }
}

const gateOf = ({ disks }: InstantRecord, places: InstantPlaces) => ({
  socketPath: places.gateSocketPath,
  serverSocketPath: places.serverSocketPath,
  pidFile: places.gatePidFile,
  exportNames: disks.map(({ target }) => target),
})

/** With the key for the server: the one that opened it here, asked for at most once. Disposal closes the repository. */
export async function openForInstant(
  settings: Configuration,
  location: string,
): Promise<OpenedRepository & AsyncDisposable> {
  const unlock = unlockOf(settings)
  const repository = await openRepository(location, { unlock })
  const key = repository.keys === undefined ? {} : await keyOf(unlock)
  return { repository, key, [Symbol.asyncDispose]: () => repository[Symbol.asyncDispose]() }
}

/** Of a repository that it has opened. */
async function keyOf({ keyFile, passphrase }: Unlock): Promise<ServerKey> {
  if (keyFile !== undefined) return { keyFile }
  return passphrase === undefined ? {} : { passphrase: await passphrase() }
}

/** The hypervisor that the settings name. Disposal disconnects. */
export async function openInstantHypervisor({ connect }: Pick<Configuration, 'connect'>): Promise<LibvirtHypervisor> {
  return connectHypervisor(connect ?? (await defaultUri()))
}
