/**
 * The writer's half of a restore: PreRestore turns the VM off and removes it, keeping its configuration and files aside;
 * PostRestore registers what was restored. Until PostRestore has succeeded one undo record brings everything back, in
 * this process or, after a crash, in the next.
 */
import { existsSync, lstatSync, readlinkSync } from 'node:fs'
import { rename, rm, symlink } from 'node:fs/promises'
import type { Json, JsonObject, UndoRecord, UndoStep } from '../base/cleanup.ts'
import { invariant } from '../base/failure.ts'
import { failure } from '../errors.ts'
import type { ComponentRef } from '../vss/components.ts'
import type { RestoreSession } from '../vss/writer.ts'
import { type Cluster, noCluster } from './cluster.ts'
import { type ClusterRestore, handBack, takeOffline } from './cluster-restore.ts'
import type { ConfigurationEditor, Hypervisor, PowerState, VmFacts } from './hypervisor.ts'
import { unconnectedNetwork } from './restore-networks.ts'
import type { VmRestorePlan } from './restore-plan.ts'

interface Planned {
  readonly plan: VmRestorePlan
  readonly configuration: string
  /** The power state when it was backed up, for a VM whose memory comes back. */
  readonly power: string
  readonly start: boolean
  step?: UndoStep
  /** Of a VM that a cluster looks after. */
  clustered?: ClusterRestore
}

export class VmRestore {
  readonly #hypervisor: Hypervisor
  readonly editor: ConfigurationEditor
  readonly #planned = new Map<string, Planned>()

  readonly #cluster: Cluster

  constructor(hypervisor: Hypervisor, editor: ConfigurationEditor, cluster: Cluster = noCluster) {
    this.#hypervisor = hypervisor
    this.editor = editor
    this.#cluster = cluster
  }

  /** Tells which plan the events for this component will carry out. */
  add(component: ComponentRef, planned: Omit<Planned, 'step' | 'clustered'>): void {
    this.#planned.set(component.name, planned)
  }

  async preRestore(component: ComponentRef, session: RestoreSession): Promise<void> {
    const planned = this.#of(component)
    const { plan } = planned
    const { former, cluster } = plan
    const { undo, emit } = session
    if (cluster !== undefined) {
      planned.clustered = { plan: { ...plan, cluster }, cluster: this.#cluster, hypervisor: this.#hypervisor }
      return takeOffline(planned.clustered, session)
    }
    planned.step = await undo.defer(takeBackRecord(plan))
    if (former !== undefined) {
      await this.#hypervisor.turnOff(former.uuid)
      if ((await this.#hypervisor.power(former.uuid)) === 'saved')
        throw failure('VM_STATE', { vm: former.name, state: 'saved', reason: 'somebody has saved it meanwhile' })
      emit({ event: 'VM', vm: plan.name, detail: 'former VM turned off' })
    }
    for (const { path, aside } of plan.asides) await rename(path, aside)
    if (former?.persistent) await this.#hypervisor.undefine(former.uuid)
  }

  async postRestore(component: ComponentRef, session: RestoreSession): Promise<void> {
    const { plan, configuration, power, start, step, clustered } = this.#of(component)
    const { undo, emit } = session
    const rewritten = plan.keepsConfiguration ? configuration : this.editor.edit(configuration, plan.edit)
    if (clustered !== undefined) return handBack(clustered, rewritten, session)
    invariant(step !== undefined, 'PreRestore comes before PostRestore')
    if (plan.needsUnconnected) await this.#hypervisor.ensureIsolatedNetwork(unconnectedNetwork)
    await this.#hypervisor.define(rewritten)
    for (const { path, to } of plan.links) await symlink(to, path)
    if (plan.memory !== undefined) {
      await this.#hypervisor.restoreSaved(plan.memory, rewritten)
      await this.#hypervisor.keepSaved(plan.uuid, power === 'paused' ? 'paused' : 'running')
    }
    if (start) await this.#hypervisor.start(plan.uuid)
    emit({ event: 'VM', vm: plan.name, detail: start ? 'registered and started' : 'registered' })
    const leftovers = [...plan.asides.map(({ aside }) => aside), ...(plan.memory === undefined ? [] : [plan.memory])]
    await undo.supersede(step, { undo: 'remove-files', paths: leftovers })
  }

  #of(component: ComponentRef): Planned {
    const planned = this.#planned.get(component.name)
    invariant(planned !== undefined, `no restore was planned for ${component.name}`)
    return planned
  }
}

/** What is restored is known by its inode, so that an undo, perhaps much later, removes nothing else. */
function takeBackRecord({ former, ...plan }: VmRestorePlan): UndoRecord {
  const files = plan.targets.map(({ path, staged }): JsonObject => {
    const aside = plan.asides.find((one) => one.path === path)?.aside ?? null
    const found = lstatSync(staged, { bigint: true, throwIfNoEntry: false })
    return { path, aside, ...(found === undefined ? {} : { inode: String(found.ino) }) }
  })
  const links = plan.links.map(({ path, to }): JsonObject => ({ path, aside: null, to }))
  return {
    undo: 'take-back-restore',
    vm: plan.uuid,
    name: plan.name,
    places: [...files, ...links] as Json,
    ...(former === undefined ? {} : { former: formerRecord(former) }),
  }
}

const formerRecord = ({ uuid, configuration, power, persistent }: VmFacts): JsonObject => ({
  uuid,
  configuration,
  power,
  persistent,
})

/** The record of the undo step `take-back-restore`, read back from a journal. */
export interface TakeBack {
  readonly vm: string
  readonly places: readonly Place[]
  readonly former?: {
    /** Only of one with another UUID than `vm` it matters. */
    readonly uuid?: string
    readonly configuration: string
    readonly power: PowerState
    readonly persistent: boolean
  }
}

interface Place {
  readonly path: string
  readonly aside: string | null
  /** Of the file that was restored. */
  readonly inode?: string
  /** Of a link: where it leads. */
  readonly to?: string
}

/**
 * The undo step `take-back-restore`: the former VM is back with its files, and what was restored is gone. A place with
 * an aside is put back only when its aside exists (else it was never moved); a place without one was free before, and
 * what somebody else has put there since stays.
 */
export async function takeBackRestore(hypervisor: Hypervisor, { vm, places, former }: TakeBack): Promise<void> {
  const begun = places.some((place) => (place.aside === null ? isRestored(place) : existsSync(place.aside)))
  const formerUuid = former?.uuid ?? vm
  if (former === undefined || begun || (await hypervisor.power(formerUuid)) === 'gone') {
    if ((await hypervisor.power(vm)) !== 'gone') {
      await hypervisor.turnOff(vm)
      await hypervisor.undefine(vm, { discardSaved: true }) // the memory that was restored, never the former one's
    }
    for (const place of places) {
      if (place.aside === null) {
        if (isRestored(place)) await rm(place.path, { force: true })
      } else if (existsSync(place.aside)) await rename(place.aside, place.path)
    }
    if (former !== undefined) await hypervisor.define(former.configuration)
  }
  if (former === undefined) return
  if (former.power === 'running' || former.power === 'paused') {
    if ((await hypervisor.power(formerUuid)) === 'off') await hypervisor.start(formerUuid)
    if (former.power === 'paused') await hypervisor.suspend(formerUuid)
  }
}

/** Whether what lies there is what was restored; in a record that does not tell what that was, everything is. */
function isRestored({ path, inode, to }: Place): boolean {
  const found = lstatSync(path, { bigint: true, throwIfNoEntry: false })
  if (found === undefined) return false
  if (to !== undefined) return found.isSymbolicLink() && readlinkSync(path) === to
  return inode === undefined || String(found.ino) === inode
}
