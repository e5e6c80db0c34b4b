/**
 * A hypervisor whose facts say what a cluster says about its VMs. Everything else goes straight through. A VM that the
 * cluster runs on another node is not found here, and the refusal says where it is.
 */
import { Failure } from '../base/failure.ts'
import { failure } from '../errors.ts'
import { type Cluster, clusteredAs, placeText } from './cluster.ts'
import type { Hypervisor, VmFacts } from './hypervisor.ts'

const plain = new WeakMap<Hypervisor, Hypervisor>()

/** The hypervisor alone: what is undone must not wait for a cluster that does not answer. */
export const withoutCluster = (hypervisor: Hypervisor): Hypervisor => plain.get(hypervisor) ?? hypervisor

export function clusteredHypervisor(hypervisor: Hypervisor, cluster: Cluster): Hypervisor {
  const known = {
    async listVms(): Promise<readonly VmFacts[]> {
      const [vms, clustered] = await Promise.all([hypervisor.listVms(), cluster.vms()])
      return vms.map((vm) => withCluster(vm, clusteredAs(clustered, vm)))
    },
    async vm(nameOrUuid: string): Promise<VmFacts> {
      const clustered = await cluster.vms()
      try {
        const vm = await hypervisor.vm(nameOrUuid)
        return withCluster(vm, clusteredAs(clustered, vm))
      } catch (error) {
        if (!(error instanceof Failure) || error.code !== 'VM_NOT_FOUND') throw error
        const there = clustered.find(({ name, uuid }) => name === nameOrUuid || uuid === nameOrUuid.toLowerCase())
        if (there === undefined) throw error
        const { known: others = 'others' } = error.context
        throw failure('VM_NOT_FOUND', { vm: `${nameOrUuid} here (${placeText(there)})`, known: others }, error)
      }
    },
  }
  const clustered = new Proxy(hypervisor, {
    get(target, property) {
      if (property === 'listVms' || property === 'vm') return known[property]
      const value: unknown = Reflect.get(target, property, target)
      if (typeof value !== 'function') return value
      // No bind: V8 takes no bound function for a disposer.
      return (...args: unknown[]) => Reflect.apply(value, target, args)
    },
  })
  plain.set(clustered, hypervisor)
  return clustered
}

function withCluster(vm: VmFacts, clustered: ReturnType<typeof clusteredAs>): VmFacts {
  if (clustered === undefined) return vm
  const { name: _name, uuid: _uuid, ...cluster } = clustered
  return { ...vm, cluster }
}
