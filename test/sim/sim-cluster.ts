/**
 * A failover cluster in memory, for tests of whoever uses the port: it remembers what it was asked, refuses on demand, and
 * tells of every check that would have found a VM missing while it looked.
 */
import type { Cluster, ClusteredVm, HeldAttribute } from '../../src/vm/cluster.ts'

export class SimCluster implements Cluster {
  /** By resource. */
  readonly members = new Map<string, ClusteredVm>()
  readonly attributes = new Map<string, string>()
  readonly asked: string[] = []
  /** Called before each call with its name; throw to let it fail. */
  before: (call: string) => void = () => undefined
  /** Called after a change was made; throw and it is as if its answer got lost. */
  afterwards: (call: string) => void = () => undefined
  /** What the cluster does when it acts: after `settled`. */
  act: (resource: string, targetRole: string | null) => Promise<void> = async () => undefined

  add(vm: Partial<ClusteredVm> & Pick<ClusteredVm, 'resource' | 'name'>): void {
    const here = { node: 'n1', here: true, role: 'Started', managed: true, failCount: 0, configPath: '/etc/vm.xml' }
    this.members.set(vm.resource, { ...here, ...vm })
  }

  /** The cluster moves it, or stops it. */
  change(resource: string, change: Partial<ClusteredVm>): void {
    const member = this.members.get(resource)
    if (member === undefined) throw new Error(`there is no resource ${resource}`)
    this.members.set(resource, { ...member, ...change })
  }

  stop(resource: string): void {
    const { node: _node, ...rest } = this.members.get(resource) as ClusteredVm
    this.members.set(resource, { ...rest, here: false, role: 'Stopped' })
  }

  async vms(): Promise<readonly ClusteredVm[]> {
    this.before('vms')
    return [...this.members.values()].map((vm) => ({
      ...vm,
      managed: vm.managed && this.attributes.get(`${vm.resource} maintenance`) !== 'true',
    }))
  }

  async attribute(resource: string, name: HeldAttribute): Promise<string | null> {
    this.before('attribute')
    return this.attributes.get(`${resource} ${name}`) ?? null
  }

  async setAttribute(resource: string, name: HeldAttribute, value: string | null): Promise<void> {
    this.before('setAttribute')
    this.asked.push(`${resource} ${name}=${value}`)
    if (value === null) this.attributes.delete(`${resource} ${name}`)
    else this.attributes.set(`${resource} ${name}`, value)
    this.afterwards('setAttribute')
  }

  async settled(): Promise<void> {
    this.before('settled')
    for (const { resource } of this.members.values())
      await this.act(resource, await this.attribute(resource, 'target-role'))
  }
}
