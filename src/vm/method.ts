/**
 * How a VM will be backed up: a pure function of facts, with every condition evaluated and told in words, so that
 * `umbra vms` can show it before anyone backs up. Source: "Backing Up and Restoring Virtual Machines", the list of
 * conditions; docs/methods.md has the table.
 */
import type { RecoveryWay } from './auto-recovery.ts'
import { descriptionOf, listText, requestorConditions } from './child-snapshot-conditions.ts'
import { describeExclusion } from './exclusion.ts'
import type { GuestDescription } from './guest-requestor.ts'
import type { GuestFileSystem, GuestOs, VirtualDisk, VmFacts } from './hypervisor.ts'
import { clusterConditions, copyConditions, guestConditions, savingConditions } from './method-conditions.ts'
import { type Profile, savesByDefault } from './profile.ts'
import { chooseRecovery } from './recovery-choice.ts'

/** What a user may ask for. A VM that is not running has nothing to choose: its method is `offline`. */
export const methodRequests = ['auto', 'child-snapshot', 'guest-freeze', 'checkpoint', 'saved-state'] as const
export type MethodRequest = (typeof methodRequests)[number]
export const methods = ['child-snapshot', 'guest-freeze', 'checkpoint', 'saved-state', 'offline'] as const
export type Method = (typeof methods)[number]

/** Weakest first. */
export const consistencies = ['crash', 'filesystem', 'application'] as const
export type Consistency = (typeof consistencies)[number]

export function atLeast(achieved: Consistency, required: Consistency): boolean {
  return consistencies.indexOf(achieved) >= consistencies.indexOf(required)
}

/** What the guest agent told, or why it did not. */
export type GuestFacts =
  | {
      readonly answering: true
      readonly os?: GuestOs
      readonly fileSystems: readonly GuestFileSystem[]
      /** What it told of its own snapshots; missing when no method in question would use them. */
      readonly requestor?: GuestDescription | { readonly unavailable: string }
    }
  | { readonly answering: false; readonly why: string }

export interface Condition {
  readonly name: string
  readonly met: boolean
  readonly detail: string
  /** The methods, or ways of auto-recovery, that can not do without it. */
  readonly neededFor: readonly (Method | RecoveryWay)[]
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
  readonly profile: Profile
  /** False when the context of the shadow copies forbids auto-recovery (VSS_VOLSNAP_ATTR_NO_AUTORECOVERY). */
  readonly autoRecovery: boolean
  /** How the copies of a child-snapshot are rolled back; `auto` leaves it to the profile. */
  readonly recovery: 'auto' | RecoveryWay
}

export const defaultPolicy: BackupPolicy = {
  method: 'auto',
  require: 'crash',
  instant: 'vm',
  profile: 'modern',
  autoRecovery: true,
  recovery: 'auto',
}

/** How the copies are rolled back to the guest's own snapshot. */
export interface RecoveryPlan {
  readonly way: RecoveryWay
  readonly because: string
  /** The disks that a snapshot of the guest lies on. */
  readonly disks: readonly { readonly target: string; readonly because: string }[]
  /** The volumes of the guest that have to have a snapshot, as the guest names them. */
  readonly volumes: readonly string[]
}

export interface MethodPlan {
  readonly method: Method
  /** What the method can reach; what it did reach stands in the result. */
  readonly consistency: Consistency
  readonly because: string
  /** Those of any copy at all, and of every method in question; all of them, met or not. */
  readonly conditions: readonly Condition[]
  readonly disks: readonly VirtualDisk[]
  readonly excluded: readonly Exclusion[]
  /** Why this VM can not be backed up as asked. Empty when it can. */
  readonly obstacles: readonly string[]
  /** Present exactly when the method is child-snapshot. */
  readonly recovery?: RecoveryPlan
}

export function planMethod(vm: VmFacts, guest: GuestFacts, policy: BackupPolicy): MethodPlan {
  const excluded = vm.disks.flatMap((disk) => {
    const reason = describeExclusion(disk)
    return reason === undefined ? [] : [{ target: disk.target, reason }]
  })
  const disks = vm.disks.filter((disk) => describeExclusion(disk) === undefined)
  const inQuestion = mayUseRequestor(policy) && vm.power !== 'off'
  const recovery = inQuestion ? chooseRecovery(vm, guest, policy, disks) : undefined
  const ofAnyCopy = copyConditions(vm, disks)
  const ofMethods = [
    ...guestConditions(vm, guest),
    ...(recovery === undefined ? [] : requestorConditions(vm, guest, policy, disks)),
    ...(recovery?.conditions ?? []),
    ...(maySave(policy) ? savingConditions(vm) : []),
    ...(inQuestion ? clusterConditions(vm) : []),
  ]
  const choice = choose(vm, guest, policy, (method) => [
    ...unmetIn(ofMethods.filter(({ neededFor }) => neededFor.includes(method))),
    ...(method === 'child-snapshot' ? (recovery?.obstacles ?? []) : []),
  ])
  const obstacles = [...unmetIn(ofAnyCopy), ...choice.obstacles]
  if (!atLeast(choice.consistency, policy.require)) {
    obstacles.push(
      `${choice.method} reaches ${choice.consistency} consistency where ${policy.require} is required: ${choice.because}`,
    )
  }
  const recovered = choice.method === 'child-snapshot' && recovery !== undefined ? { recovery: recovery.plan } : {}
  return { ...choice, obstacles, conditions: [...ofAnyCopy, ...ofMethods], disks, excluded, ...recovered }
}

/** Whether the guest is worth asking for snapshots of its own. */
export const mayUseRequestor = ({ method }: BackupPolicy): boolean => method === 'auto' || method === 'child-snapshot'

const maySave = ({ method, profile }: BackupPolicy): boolean =>
  method === 'saved-state' || (method === 'auto' && savesByDefault(profile))

const unmetIn = (conditions: readonly Condition[]): string[] =>
  conditions.filter(({ met }) => !met).map(({ detail }) => detail)

interface Choice {
  readonly method: Method
  readonly consistency: Consistency
  readonly because: string
  readonly obstacles: readonly string[]
}

/** What keeps a method from being taken, in words; empty when nothing does. */
type Unmet = (method: Method) => readonly string[]

function choose(vm: VmFacts, guest: GuestFacts, policy: BackupPolicy, unmet: Unmet): Choice {
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
  const { method } = policy
  if (method === 'auto') return chooseByProfile(guest, policy.profile, unmet)
  const because = method === 'saved-state' ? savedBecause : 'asked for'
  return { method, consistency: reaches(method, guest), because, obstacles: unmet(method) }
}

/** Each profile's order; the reason tells why the better one was not taken. */
function chooseByProfile(guest: GuestFacts, profile: Profile, unmet: Unmet): Choice {
  const take = (method: Method, because: string): Choice => {
    return { method, consistency: reaches(method, guest), because, obstacles: unmet(method) }
  }
  const [noChildSnapshot] = unmet('child-snapshot')
  const [noFreeze] = unmet('guest-freeze')
  const writers = descriptionOf(guest)?.writers ?? []
  if (savesByDefault(profile)) {
    return noChildSnapshot === undefined
      ? take('child-snapshot', takesPart(writers))
      : take('saved-state', `no child-snapshot: ${noChildSnapshot}`)
  }
  if (noChildSnapshot === undefined && (profile === '2012r2' || writers.length > 0)) {
    return take('child-snapshot', takesPart(writers))
  }
  if (noFreeze !== undefined) return take('checkpoint', noFreeze)
  return take(
    'guest-freeze',
    noChildSnapshot === undefined
      ? 'the guest agent answers, and the guest has no writers of its own that a snapshot inside it would serve'
      : `the guest agent answers; no child-snapshot: ${noChildSnapshot}`,
  )
}

const savedBecause = 'memory and disks are of one instant; the VM stands still for it'

const takesPart = (writers: readonly string[]): string =>
  writers.length === 0
    ? 'the guest can take a snapshot of itself'
    : `the guest can take a snapshot of itself, and its writers take part: ${listText(writers)}`

/** Writers of the guest's own (Windows agents run VSS's) bring applications to rest; else only file systems are. */
function reaches(method: Method, guest: GuestFacts): Consistency {
  switch (method) {
    case 'child-snapshot':
      return (descriptionOf(guest)?.writers ?? []).length > 0 ? 'application' : 'filesystem'
    case 'guest-freeze':
      return guest.answering && guest.os?.id === 'mswindows' ? 'application' : 'filesystem'
    case 'saved-state':
      return 'application'
    case 'checkpoint':
    case 'offline':
      return 'crash'
  }
}
