/**
 * What the writer and the restore need of a cluster that looks after VMs: which resource a VM is, where it runs, and two
 * switches that are remembered and put back. src/cluster implements it; why things are as they are is in docs/cluster.md.
 * Every call is bounded in time and rejects with a coded Failure.
 */

/** What a cluster says about a VM that it looks after. */
export interface ClusterFacts {
  /** Id of the resource. */
  readonly resource: string
  /** Name of the node where it runs; undefined while it runs nowhere. */
  readonly node?: string
  /** Whether it runs on this host. */
  readonly here: boolean
  /** Started, Stopped and the like. */
  readonly role: string
  /** Whether the cluster acts on it at all. */
  readonly managed: boolean
  /** Failures that the cluster has counted, on all nodes together; a million stands for "never again here". */
  readonly failCount: number
  /** The file that the VM is started from. */
  readonly configPath: string
  /** Where its memory is put whenever the cluster stops it, and taken from when it is started; mostly undefined. */
  readonly memoryPath?: string
}

/** A VM of a cluster, wherever it runs. */
export interface ClusteredVm extends ClusterFacts {
  readonly name: string
  /** Lower case; undefined when its file has none, and then it gets another one at every start. */
  readonly uuid?: string
}

/** `maintenance`: the cluster looks away. `target-role`: Started or Stopped. */
export const heldAttributes = ['maintenance', 'target-role'] as const
export type HeldAttribute = (typeof heldAttributes)[number]

export interface Cluster {
  /** All VMs the cluster looks after; none where no cluster runs, which costs one cheap check. A second old at most. */
  vms(): Promise<readonly ClusteredVm[]>
  /** The value that was set for the resource itself; null when none was. */
  attribute(resource: string, name: HeldAttribute): Promise<string | null>
  /** Null removes it. Idempotent. The cluster acts on it later: see `settled`. */
  setAttribute(resource: string, name: HeldAttribute, value: string | null): Promise<void>
  /** Resolves when the cluster has nothing more to do; CLUSTER_NOT_ANSWERING when it still has after `limitMs`. */
  settled(limitMs: number): Promise<void>
}

export const noCluster: Cluster = {
  vms: async () => [],
  attribute: async () => null,
  setAttribute: async () => undefined,
  settled: async () => undefined,
}

/** By UUID; by name where the cluster's file has no UUID. */
export function clusteredAs(
  vms: readonly ClusteredVm[],
  vm: { readonly name: string; readonly uuid: string },
): ClusteredVm | undefined {
  return vms.find(({ name, uuid }) => (uuid === undefined ? name === vm.name : uuid === vm.uuid))
}

/** For lists and refusals. */
export const placeText = ({ resource, node, role }: ClusterFacts): string =>
  node === undefined ? `cluster resource ${resource}, ${role.toLowerCase()}` : `cluster resource ${resource} on ${node}`

/** VMs of the cluster that this host's hypervisor does not have, by name and UUID, with where they are. */
export function elsewhere(
  vms: readonly ClusteredVm[],
  known: readonly { readonly uuid: string; readonly name: string }[],
) {
  return vms
    .filter((vm) => !known.some((one) => clusteredAs([vm], one) !== undefined))
    .map((vm) => ({ label: vm.name, ...(vm.uuid === undefined ? {} : { name: vm.uuid }), reason: placeText(vm) }))
}
