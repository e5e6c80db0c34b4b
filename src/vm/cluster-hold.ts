/**
 * Holding a cluster's resource: one of its attributes is set for a while and then put back exactly as it was, absent if it
 * was absent. The undo record `manage-resource` stands before the deed and older than whatever needs it, so that it is
 * undone after that: a VM is back before its cluster looks at it again.
 */
import { existsSync } from 'node:fs'
import type { Cleanup, UndoStep } from '../base/cleanup.ts'
import { failure } from '../errors.ts'
import { type Cluster, clusteredAs, type HeldAttribute } from './cluster.ts'
import type { Hypervisor, VmFacts } from './hypervisor.ts'
import type { Method } from './method.ts'
import type { MethodContext } from './method-run.ts'

/** As long as it takes to end a check of the VM that is under way. */
const maintenanceLimitMs = 120_000

export interface HeldResource {
  readonly resource: string
  readonly attribute: HeldAttribute
  readonly former: string | null
  readonly set: string
  /** While this file is there, the VM is not back, and its cluster must not look. */
  readonly memory?: string | undefined
}

/** Law 1. Undefined when the attribute has that value already: then it stays, also afterwards. */
export async function holdResource(
  cluster: Cluster,
  undo: Cleanup,
  { uuid, name }: { readonly uuid: string; readonly name: string },
  held: Omit<HeldResource, 'former'>,
  limitMs: number,
): Promise<UndoStep | undefined> {
  const { resource, attribute, set } = held
  const former = await cluster.attribute(resource, attribute)
  if (former === set) return undefined
  const step = await undo.defer({ undo: 'manage-resource', vm: uuid, name, ...held, former })
  await cluster.setAttribute(resource, attribute, set)
  await cluster.settled(limitMs)
  return step
}

/** The undo step `manage-resource`. What somebody else has set since is his. */
export async function releaseResource(cluster: Cluster, held: HeldResource): Promise<void> {
  const { resource, attribute, former, set, memory } = held
  if (memory !== undefined && existsSync(memory))
    throw new Error(`the VM is not back from ${memory}; its resource ${resource} keeps ${attribute}=${set}`)
  if ((await cluster.attribute(resource, attribute)) !== set) return
  await cluster.setAttribute(resource, attribute, former)
}

/**
 * The cluster looks away from before a VM is saved until after it is back, so that it sees no failure (C1). Nothing at all for
 * a VM that no cluster looks after. `memory`: where the VM's memory lies until it is back. Both calls are idempotent.
 */
export function maintenanceOf({ cluster, hypervisor, facts, undo, tell }: MethodContext, memory: string) {
  let step: UndoStep | undefined
  return {
    async begin(): Promise<void> {
      if (facts.cluster === undefined) return
      const { resource } = facts.cluster
      const held = { resource, attribute: 'maintenance', set: 'true', memory } as const
      step ??= await holdResource(cluster, undo, facts, held, maintenanceLimitMs)
      tell(`${resource}: maintenance`)
      await requireStillHere(cluster, hypervisor, facts)
    },
    async end(): Promise<void> {
      if (step === undefined) return
      await undo.run(step)
      step = undefined
      tell(`${facts.cluster?.resource}: managed as before`)
    },
  }
}

/** Whether its cluster still looks away, so that a VM may be brought back here without running twice. */
export async function stillHeld(cluster: Cluster, resource: string): Promise<boolean> {
  const found = (await cluster.vms()).find((vm) => vm.resource === resource)
  return found === undefined || (!found.managed && (found.here || found.node === undefined))
}

/** Right before the freeze: a VM that has moved since it was planned is not backed up by halves (C3). */
export async function requireStillHere(cluster: Cluster, hypervisor: Hypervisor, planned: VmFacts): Promise<void> {
  if (planned.cluster === undefined) return
  const now = clusteredAs(await cluster.vms(), planned)
  const power = await hypervisor.power(planned.uuid)
  const moved = now?.node !== planned.cluster.node
  if (!moved && power === planned.power) return
  const reason = moved
    ? `its cluster runs it on ${now?.node ?? 'no node'} now, and ran it on ${planned.cluster.node ?? 'none'}: back it up there`
    : `it was ${planned.power} when it was planned`
  throw failure('VM_STATE', { vm: planned.name, state: power, reason })
}

/**
 * Never an overlay: a restart by the cluster would begin without it, and lose what it caught. A VM that was saved stands still
 * with its memory loaded again, so a backup job can have its instant; but libvirt misses an agent that reports while a job
 * runs, which one does right after its VM was loaded, and has lost it then.
 */
export function clusteredCopies({ name, agent }: VmFacts, method: Method): { backupJob: boolean; restriction: string } {
  const losesAgent = method === 'saved-state' && agent === 'connected'
  const noOverlay = `${name} is a VM of a cluster, which would start it again without an overlay`
  const noJob =
    'libvirt would lose its guest agent in a backup job now: take guest-freeze, or put it on btrfs or reflinks'
  return {
    backupJob: method !== 'offline' && !losesAgent,
    restriction: losesAgent ? `${noOverlay}; ${noJob}` : noOverlay,
  }
}
