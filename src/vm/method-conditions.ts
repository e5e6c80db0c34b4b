/**
 * The conditions of a copy at all, of guest-freeze and of saved state, each evaluated on the facts and told in words
 * (W6). Those of child-snapshot are in child-snapshot-conditions.ts. Pure. Source: "Backing Up and Restoring Virtual
 * Machines", the list of conditions; docs/methods.md has the table.
 */
import type { VirtualDisk, VmFacts } from './hypervisor.ts'
import { type Condition, type GuestFacts, methods } from './method.ts'

export function copyConditions(vm: VmFacts, disks: readonly VirtualDisk[]): Condition[] {
  const unopenable = disks.filter((disk) => disk.image === undefined)
  const neededFor = methods
  return [
    {
      name: 'nothing else occupies the VM',
      met: vm.busy === undefined,
      detail: vm.busy === undefined ? 'no job is running' : `occupied by ${vm.busy}`,
      neededFor,
    },
    {
      name: 'not held in a saved state by the hypervisor',
      met: vm.power !== 'saved',
      detail:
        vm.power === 'saved'
          ? 'it is in the saved state of the hypervisor: start it, or discard that state'
          : 'it is not saved',
      neededFor,
    },
    {
      name: 'every disk can be read',
      met: unopenable.length === 0,
      detail:
        unopenable.length === 0
          ? `${disks.length} disk${disks.length === 1 ? '' : 's'}`
          : `${unopenable.map(({ target, location }) => `${target} (${location})`).join(', ')} is of a kind that can not be read`,
      neededFor,
    },
  ]
}

/** Of every method in which the guest takes part. */
export function guestConditions(vm: VmFacts, guest: GuestFacts): Condition[] {
  const running = vm.power === 'running'
  const neededFor = ['child-snapshot', 'guest-freeze'] as const
  return [
    { name: 'VM is running', met: running, detail: running ? 'running' : `it is ${vm.power}`, neededFor },
    {
      name: 'guest agent installed and running',
      met: vm.agent === 'connected',
      detail: {
        connected: 'connected',
        disconnected: 'the VM has an agent channel, but no agent is connected to it',
        none: 'the VM has no guest agent channel',
      }[vm.agent],
      neededFor,
    },
    { name: 'guest agent answers', met: guest.answering, detail: guest.answering ? 'answers' : guest.why, neededFor },
    {
      name: 'guest operating system supported',
      met: guest.answering,
      detail: guest.answering ? (guest.os?.name ?? 'not told by the agent') : 'not known: the agent does not answer',
      neededFor,
    },
  ]
}

/** A cluster starts a VM from the file that it has, which names the base: what an overlay caught would be lost. */
export function clusterConditions({ cluster }: VmFacts): Condition[] {
  if (cluster === undefined) return []
  const { resource } = cluster
  return [
    {
      name: 'no cluster restarts it',
      met: false,
      detail: `it is the cluster resource ${resource}: a restart by the cluster would begin without its overlay, which this needs`,
      neededFor: ['child-snapshot'],
    },
  ]
}

/** QEMU can not save a VM that has a VHD disk: "the vpc format does not support live migration". */
export function savingConditions({ persistent, disks, cluster }: VmFacts): Condition[] {
  const vhd = disks.filter(({ image }) => image?.format === 'vpc').map(({ target }) => target)
  const neededFor = ['saved-state'] as const
  return [
    {
      name: 'it has a stored configuration',
      met: persistent || cluster !== undefined,
      detail: persistent
        ? 'it has'
        : cluster !== undefined
          ? `its cluster keeps it (${cluster.configPath})`
          : 'a VM without a stored configuration can not be saved and brought back safely',
      neededFor,
    },
    {
      name: 'no VHD disk',
      met: vhd.length === 0,
      detail: vhd.length === 0 ? 'none' : `QEMU can not save a VM with VHD disks (${vhd.join(', ')}): use checkpoint`,
      neededFor,
    },
  ]
}
