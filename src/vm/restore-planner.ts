/**
 * Gathers what a restore plan needs (what was stored, what is on this host) and hands the plan to the writer's restore.
 */
import { randomBytes } from 'node:crypto'
import { lstatSync, realpathSync } from 'node:fs'
import { basename, dirname, isAbsolute, join } from 'node:path'
import { z } from 'zod'
import { failure } from '../errors.ts'
import type { ComponentRestorePlan, RestorePlanner, RestoreRequest, StoredComponent } from '../vss/restore-plan.ts'
import { type Cluster, clusteredAs, noCluster } from './cluster.ts'
import { clusterRestorePlan } from './cluster-restore.ts'
import type { ConfigurationEditor, Hypervisor, VmFacts } from './hypervisor.ts'
import type { VmRestore } from './restore.ts'
import { planVmRestore, type RestoreSurroundings, type StoredVm, type VmRestorePlan } from './restore-plan.ts'

const target = z.string().regex(/^[A-Za-z0-9._-]{1,64}$/)
const owner = z.object({ uid: z.number().int(), gid: z.number().int(), mode: z.number().int() })
const storedVm = z.object({
  name: z.string().min(1),
  uuid: z.string().regex(/^[0-9a-f-]{36}$/),
  power: z.string(),
  disks: z.array(
    z.object({ target, location: z.string(), format: z.string().optional(), sizeBytes: z.number().optional() }),
  ),
  excluded: z.array(z.object({ target, reason: z.string() })),
  nics: z.array(z.object({ mac: z.string(), type: z.string(), source: z.string().optional() })),
  hostFiles: z.array(
    z.object({ role: z.enum(['nvram', 'tpm']), document: z.string(), path: z.string().startsWith('/'), owner }),
  ),
  owners: z.record(z.string(), owner),
})

/** Who carries the plan out. Without an editor nothing is compared with what this host has. */
export type PlanTaker = Pick<VmRestore, 'add'> & { readonly editor?: ConfigurationEditor }

export class VmRestorePlanner implements RestorePlanner {
  readonly #hypervisor: Hypervisor
  readonly #restore: PlanTaker
  readonly #workDirectory: string
  readonly #cluster: Cluster

  constructor(hypervisor: Hypervisor, restore: PlanTaker, workDirectory: string, cluster: Cluster = noCluster) {
    this.#hypervisor = hypervisor
    this.#restore = restore
    this.#workDirectory = workDirectory
    this.#cluster = cluster
  }

  async planRestore(stored: StoredComponent, request: RestoreRequest): Promise<ComponentRestorePlan> {
    if (request.to !== undefined && !isAbsolute(request.to)) {
      throw failure('USAGE', { reason: `--to needs a path that begins with /, not ${request.to}` })
    }
    const vm = readStoredVm(stored)
    const configuration = new TextDecoder().decode(stored.documents['configuration.xml'])
    const here = await this.#lookAround(vm, request, configuration)
    const plan = await this.#asClustered(vm, request, here)
    this.#restore.add(stored.component, {
      plan,
      configuration: plan.keepsConfiguration && plan.former !== undefined ? plan.former.configuration : configuration,
      power: vm.power,
      start: request.start,
    })
    const { targets, steps, warnings, obstacles } = plan
    return { component: stored.component, caption: plan.name, targets, steps, warnings, obstacles }
  }

  /** A VM that its cluster has stopped is in no hypervisor; the resource is there all the same. */
  async #asClustered(vm: StoredVm, request: RestoreRequest, here: RestoreSurroundings): Promise<VmRestorePlan> {
    if (request.as !== undefined) return planVmRestore(vm, request, here)
    const found = clusteredAs(await this.#cluster.vms(), vm)
    if (found === undefined) return planVmRestore(vm, request, here)
    // The files of a VM that its cluster has stopped are still its own.
    const usersOf = (path: string) => {
      const users = here.usersOf?.(path) ?? []
      return users.length > 0 ? users : [vm]
    }
    const { memoryBytes, ...withoutMemory } = vm
    const plan = clusterRestorePlan(planVmRestore(withoutMemory, request, { ...here, usersOf }), found, here.token)
    if (memoryBytes === undefined) return plan
    const warning = 'its memory is left out: its cluster starts it from its disks, as after a power cut'
    return { ...plan, warnings: [...plan.warnings, warning] }
  }

  async #lookAround(vm: StoredVm, request: RestoreRequest, configuration: string): Promise<RestoreSurroundings> {
    const vms = await this.#hypervisor.listVms()
    const former = vms.find(({ uuid }) => uuid === vm.uuid)
    const named = vms.find(({ name }) => name === (request.as ?? vm.name))
    const namesake = named !== undefined && (request.as !== undefined || named.uuid !== vm.uuid) ? named : undefined
    const { editor } = this.#restore
    const needs = editor?.needs(configuration)
    const macs = vms.flatMap(({ name, uuid, nics }) => nics.map(({ mac }) => ({ name, uuid, mac: mac.toLowerCase() })))
    return {
      ...(former === undefined ? {} : { former }),
      ...(namesake === undefined ? {} : { namesake }),
      networks: await this.#hypervisor.networks(),
      pathKind,
      newUuid: crypto.randomUUID(),
      newMac: () => unusedMac(macs),
      token: randomBytes(4).toString('hex'),
      workDirectory: this.#workDirectory,
      realPath,
      usersOf: usersIn(vms),
      macUsers: (mac) => macs.filter((one) => one.mac === mac.toLowerCase()),
      ...(needs === undefined ? {} : { fit: { needs, host: await this.#hypervisor.hostFacts(needs) } }),
      ...(editor === undefined || request.as === undefined ? {} : { ties: editor.ties(configuration, vm) }),
      newGeneration: crypto.randomUUID(),
    }
  }
}

/** What the writer stored, read as something that comes from outside. */
export function readStoredVm({ metadata, streams, component }: StoredComponent): StoredVm {
  const parsed = storedVm.safeParse(metadata)
  if (!parsed.success) {
    throw failure('VSS_INVALID_XML_DOCUMENT', { document: 'backup-components.xml', reason: parsed.error.message })
  }
  const { disks, nics, ...rest } = parsed.data
  return {
    ...rest,
    nics: nics.map(({ mac, type, source }) => ({ mac, type, ...(source === undefined ? {} : { source }) })),
    disks: disks.map(({ target: name, location, format }) => {
      const sizeBytes = streams[`disks/${name}`]
      if (sizeBytes === undefined)
        throw failure('VM_NOT_RESTORED', { vm: component.name, reason: `the recovery point has no disk ${name}` })
      return { target: name, location, sizeBytes, ...(format === undefined ? {} : { format }) }
    }),
    ...(streams.memory === undefined ? {} : { memoryBytes: streams.memory }),
  }
}

function pathKind(path: string): 'file' | 'other' | 'absent' {
  const found = lstatSync(path, { throwIfNoEntry: false })
  if (found === undefined) return 'absent'
  return found.isFile() || found.isSymbolicLink() ? 'file' : 'other'
}

/** A path with every link on the way to its last part followed, however much of the way is there. */
function realPath(path: string): string {
  const directory = dirname(path)
  if (directory === path) return path
  try {
    return join(realpathSync(directory), basename(path))
  } catch {
    return join(realPath(directory), basename(path))
  }
}

/** The files of all VMs by where they really are, so that a link to one counts as that one. */
function usersIn(vms: readonly VmFacts[]): (path: string) => readonly VmFacts[] {
  const followed = (path: string) => {
    try {
      return realpathSync(path)
    } catch {
      return path
    }
  }
  const users = vms.map((vm) => {
    const disks = vm.disks.flatMap(({ location, backing }) => [location, ...backing])
    return { vm, files: new Set([...disks, ...vm.hostFiles.map(({ path }) => path)].map(followed)) }
  })
  return (path) => users.filter(({ files }) => files.has(followed(path))).map(({ vm }) => vm)
}

function unusedMac(macs: readonly { readonly mac: string }[]): string {
  const mac = newMac()
  return macs.some((one) => one.mac === mac) ? unusedMac(macs) : mac
}

/** A random MAC of QEMU's own range. */
export function newMac(): string {
  return ['52', '54', '00', ...[...randomBytes(3)].map((byte) => byte.toString(16).padStart(2, '0'))].join(':')
}
