/**
 * How a VM will be backed up: a pure function of facts, with every condition evaluated and told in words, so that
 * `umbra vms` can show it before anyone backs up. Source: "Backing Up and Restoring Virtual Machines", the list of
 * conditions; docs/methods.md has the table.
 */
import { describeExclusion } from './exclusion.ts'
import type { GuestFileSystem, GuestOs, VirtualDisk, VmFacts } from './hypervisor.ts'

/** What a user may ask for. A VM that is not running has nothing to choose: its method is `offline`. */
export const methodRequests = ['auto', 'guest-freeze', 'checkpoint', 'saved-state'] as const
export type MethodRequest = (typeof methodRequests)[number]
export type Method = Exclude<MethodRequest, 'auto'> | 'offline'

/** Weakest first. */
export const consistencies = ['crash', 'filesystem', 'application'] as const
export type Consistency = (typeof consistencies)[number]

export function atLeast(achieved: Consistency, required: Consistency): boolean {
  return consistencies.indexOf(achieved) >= consistencies.indexOf(required)
}

/** What the guest agent told, or why it did not. */
export type GuestFacts =
  | { readonly answering: true; readonly os?: GuestOs; readonly fileSystems: readonly GuestFileSystem[] }
  | { readonly answering: false; readonly why: string }

export interface Condition {
  readonly name: string
  readonly met: boolean
  readonly detail: string
}

export interface Exclusion {
  readonly target: string
  readonly reason: string
}

export interface BackupPolicy {
  readonly method: MethodRequest
  readonly require: Consistency
  /** `vm`: each VM is frozen only for its own commit. `set`: one instant for all. */
  readonly instant: 'vm' | 'set'
}

export interface MethodPlan {
  readonly method: Method
  /** What the method can reach; what it did reach stands in the result. */
  readonly consistency: Consistency
  readonly because: string
  /** The conditions of guest-freeze and of any copy at all; all of them, met or not. */
  readonly conditions: readonly Condition[]
  readonly disks: readonly VirtualDisk[]
  readonly excluded: readonly Exclusion[]
  /** Why this VM can not be backed up as asked. Empty when it can. */
  readonly obstacles: readonly string[]
}

export function planMethod(vm: VmFacts, guest: GuestFacts, policy: BackupPolicy): MethodPlan {
  const excluded = vm.disks.flatMap((disk) => {
    const reason = describeExclusion(disk)
    return reason === undefined ? [] : [{ target: disk.target, reason }]
  })
  const disks = vm.disks.filter((disk) => describeExclusion(disk) === undefined)
  const copy = copyConditions(vm, disks)
  const freeze = freezeConditions(vm, guest)
  const choice = choose(vm, guest, policy.method, freeze)
  const obstacles = [...copy.filter(({ met }) => !met).map(({ detail }) => detail), ...choice.obstacles]
  if (!atLeast(choice.consistency, policy.require)) {
    obstacles.push(
      `${choice.method} reaches ${choice.consistency} consistency where ${policy.require} is required: ${choice.because}`,
    )
  }
  return { ...choice, obstacles, conditions: [...copy, ...freeze], disks, excluded }
}

interface Choice {
  method: Method
  consistency: Consistency
  because: string
  obstacles: string[]
}

function choose(vm: VmFacts, guest: GuestFacts, wanted: MethodRequest, freeze: readonly Condition[]): Choice {
  if (vm.power === 'off') {
    return vm.shutDownCleanly === true
      ? { method: 'offline', consistency: 'application', because: 'it is off, and had shut itself down', obstacles: [] }
      : {
          method: 'offline',
          consistency: 'crash',
          because: 'it is off, but how it was shut down is not known',
          obstacles: [],
        }
  }
  const unmet = freeze.filter(({ met }) => !met).map(({ detail }) => detail)
  switch (wanted) {
    case 'guest-freeze':
      return { ...freezing(guest), because: 'asked for', obstacles: unmet }
    case 'checkpoint':
      return { method: 'checkpoint', consistency: 'crash', because: 'asked for', obstacles: [] }
    case 'saved-state': {
      const because = 'memory and disks are of one instant; the VM stands still for it'
      return { method: 'saved-state', consistency: 'application', because, obstacles: savingObstacles(vm) }
    }
    case 'auto':
      return unmet.length === 0
        ? { ...freezing(guest), because: 'the guest agent answers', obstacles: [] }
        : { method: 'checkpoint', consistency: 'crash', because: unmet[0] ?? '', obstacles: [] }
  }
}

/** QEMU can not save a VM that has a VHD disk: "the vpc format does not support live migration". */
function savingObstacles({ persistent, disks }: VmFacts): string[] {
  const vhd = disks.filter(({ image }) => image?.format === 'vpc').map(({ target }) => target)
  return [
    ...(persistent ? [] : ['a VM without a stored configuration can not be saved and brought back safely']),
    ...(vhd.length === 0 ? [] : [`QEMU can not save a VM with VHD disks (${vhd.join(', ')}): use checkpoint`]),
  ]
}

/** Windows agents run the guest's VSS writers; elsewhere only the file systems are known to be at rest. */
function freezing(guest: GuestFacts): Pick<Choice, 'method' | 'consistency'> {
  const windows = guest.answering && guest.os?.id === 'mswindows'
  return { method: 'guest-freeze', consistency: windows ? 'application' : 'filesystem' }
}

function copyConditions(vm: VmFacts, disks: readonly VirtualDisk[]): Condition[] {
  const unopenable = disks.filter((disk) => disk.image === undefined)
  return [
    {
      name: 'nothing else occupies the VM',
      met: vm.busy === undefined,
      detail: vm.busy === undefined ? 'no job is running' : `occupied by ${vm.busy}`,
    },
    {
      name: 'not held in a saved state by the hypervisor',
      met: vm.power !== 'saved',
      detail:
        vm.power === 'saved'
          ? 'it is in the saved state of the hypervisor: start it, or discard that state'
          : 'it is not saved',
    },
    {
      name: 'every disk can be read',
      met: unopenable.length === 0,
      detail:
        unopenable.length === 0
          ? `${disks.length} disk${disks.length === 1 ? '' : 's'}`
          : `${unopenable.map(({ target, location }) => `${target} (${location})`).join(', ')} is of a kind that can not be read`,
    },
  ]
}

function freezeConditions(vm: VmFacts, guest: GuestFacts): Condition[] {
  const running = vm.power === 'running'
  return [
    { name: 'VM is running', met: running, detail: running ? 'running' : `it is ${vm.power}` },
    {
      name: 'guest agent installed and running',
      met: vm.agent === 'connected',
      detail: {
        connected: 'connected',
        disconnected: 'the VM has an agent channel, but no agent is connected to it',
        none: 'the VM has no guest agent channel',
      }[vm.agent],
    },
    { name: 'guest agent answers', met: guest.answering, detail: guest.answering ? 'answers' : guest.why },
    {
      name: 'guest operating system supported',
      met: guest.answering,
      detail: guest.answering ? (guest.os?.name ?? 'not told by the agent') : 'not known: the agent does not answer',
    },
  ]
}
