/**
 * The writer's half of a restore: PreRestore turns the VM off and removes it, keeping its configuration and files aside;
 * PostRestore registers what was restored. Until PostRestore has succeeded one undo record brings everything back, in
 * this process or, after a crash, in the next.
 */
import { existsSync } from 'node:fs'
import { rename, rm, symlink } from 'node:fs/promises'
import type { Json, JsonObject, UndoRecord, UndoStep } from '../base/cleanup.ts'
import { invariant } from '../base/failure.ts'
import { failure } from '../errors.ts'
import type { ComponentRef } from '../vss/components.ts'
import type { RestoreSession } from '../vss/writer.ts'
import type { ConfigurationEditor, Hypervisor, PowerState } from './hypervisor.ts'
import { unconnectedNetwork } from './restore-networks.ts'
import type { VmRestorePlan } from './restore-plan.ts'

interface Planned {
  readonly plan: VmRestorePlan
  readonly configuration: string
  /** The power state when it was backed up, for a VM whose memory comes back. */
  readonly power: string
  readonly start: boolean
  step?: UndoStep
}

export class VmRestore {
  readonly #hypervisor: Hypervisor
  readonly #editor: ConfigurationEditor
  readonly #planned = new Map<string, Planned>()

  constructor(hypervisor: Hypervisor, editor: ConfigurationEditor) {
    this.#hypervisor = hypervisor
    this.#editor = editor
  }

  /** Tells which plan the events for this component will carry out. */
  add(component: ComponentRef, planned: Omit<Planned, 'step'>): void {
    this.#planned.set(component.name, planned)
  }

  async preRestore(component: ComponentRef, { undo, emit }: RestoreSession): Promise<void> {
    const planned = this.#of(component)
    const { plan } = planned
    const { former } = plan
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

  async postRestore(component: ComponentRef, { undo, emit }: RestoreSession): Promise<void> {
    const { plan, configuration, power, start, step } = this.#of(component)
    invariant(step !== undefined, 'PreRestore comes before PostRestore')
    if (plan.needsUnconnected) await this.#hypervisor.ensureIsolatedNetwork(unconnectedNetwork)
    const rewritten = this.#editor.edit(configuration, plan.edit)
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

function takeBackRecord({ former, ...plan }: VmRestorePlan): UndoRecord {
  const asideOf = (path: string) => plan.asides.find((one) => one.path === path)?.aside ?? null
  const place = (path: string): JsonObject => ({ path, aside: asideOf(path) })
  return {
    undo: 'take-back-restore',
    vm: plan.uuid,
    name: plan.name,
    places: [...plan.targets.map(({ path }) => place(path)), ...plan.links.map(({ path }) => place(path))] as Json,
    ...(former === undefined
      ? {}
      : { former: { configuration: former.configuration, power: former.power, persistent: former.persistent } }),
  }
}

/** The record of the undo step `take-back-restore`, read back from a journal. */
export interface TakeBack {
  readonly vm: string
  readonly places: readonly { readonly path: string; readonly aside: string | null }[]
  readonly former?: { readonly configuration: string; readonly power: PowerState; readonly persistent: boolean }
}

/**
 * The undo step `take-back-restore`: the former VM is back with its files, and what was restored is gone. A place with
 * an aside is put back only when its aside exists (else it was never moved); a place without one was free before.
 */
export async function takeBackRestore(hypervisor: Hypervisor, { vm, places, former }: TakeBack): Promise<void> {
  const begun = places.some(({ path, aside }) => existsSync(aside ?? path))
  const power = await hypervisor.power(vm)
  const registered = power !== 'gone'
  if (former === undefined || begun || !registered) {
    if (registered) {
      await hypervisor.turnOff(vm)
      await hypervisor.undefine(vm, { discardSaved: true }) // the memory that was restored, never the former one's
    }
    for (const { path, aside } of places) {
      if (aside === null) await rm(path, { force: true })
      else if (existsSync(aside)) await rename(aside, path)
    }
    if (former !== undefined) await hypervisor.define(former.configuration)
  }
  if (former === undefined) return
  if (former.power === 'running' || former.power === 'paused') {
    if ((await hypervisor.power(vm)) === 'off') await hypervisor.start(vm)
    if (former.power === 'paused') await hypervisor.suspend(vm)
  }
}
