/**
 * Gathers what a restore plan needs (what was stored, what is on this host) and hands the plan to the writer's restore.
 */
import { randomBytes } from 'node:crypto'
import { lstatSync } from 'node:fs'
import { isAbsolute } from 'node:path'
import { z } from 'zod'
import { Failure } from '../base/failure.ts'
import { failure } from '../errors.ts'
import type { ComponentRestorePlan, RestorePlanner, RestoreRequest, StoredComponent } from '../vss/restore-plan.ts'
import type { Hypervisor, VmFacts } from './hypervisor.ts'
import type { VmRestore } from './restore.ts'
import { planVmRestore, type RestoreSurroundings, type StoredVm } from './restore-plan.ts'

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

export class VmRestorePlanner implements RestorePlanner {
  readonly #hypervisor: Hypervisor
  readonly #restore: VmRestore
  readonly #workDirectory: string

  constructor(hypervisor: Hypervisor, restore: VmRestore, workDirectory: string) {
    this.#hypervisor = hypervisor
    this.#restore = restore
    this.#workDirectory = workDirectory
  }

  async planRestore(stored: StoredComponent, request: RestoreRequest): Promise<ComponentRestorePlan> {
    if (request.to !== undefined && !isAbsolute(request.to)) {
      throw failure('USAGE', { reason: `--to needs a path that begins with /, not ${request.to}` })
    }
    const vm = readStoredVm(stored)
    const configuration = new TextDecoder().decode(stored.documents['configuration.xml'])
    const here = await this.#lookAround(vm, request)
    const plan = planVmRestore(vm, request, here)
    this.#restore.add(stored.component, {
      plan,
      configuration,
      power: vm.power,
      start: request.start,
    })
    const { targets, steps, warnings, obstacles } = plan
    return { component: stored.component, caption: plan.name, targets, steps, warnings, obstacles }
  }

  async #lookAround(vm: StoredVm, request: RestoreRequest): Promise<RestoreSurroundings> {
    const former = await this.#find(vm.uuid)
    const named = await this.#find(request.as ?? vm.name)
    const namesake = named !== undefined && (request.as !== undefined || named.uuid !== vm.uuid) ? named : undefined
    return {
      ...(former === undefined ? {} : { former }),
      ...(namesake === undefined ? {} : { namesake }),
      networks: await this.#hypervisor.networks(),
      pathKind,
      newUuid: crypto.randomUUID(),
      newMac,
      token: randomBytes(4).toString('hex'),
      workDirectory: this.#workDirectory,
    }
  }

  async #find(nameOrUuid: string): Promise<VmFacts | undefined> {
    try {
      return await this.#hypervisor.vm(nameOrUuid)
    } catch (error) {
      if (error instanceof Failure && error.code === 'VM_NOT_FOUND') return undefined
      throw error
    }
  }
}

/** What the writer stored, read as something that comes from outside. */
function readStoredVm({ metadata, streams, component }: StoredComponent): StoredVm {
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

/** A random MAC of QEMU's own range. */
function newMac(): string {
  return ['52', '54', '00', ...[...randomBytes(3)].map((byte) => byte.toString(16).padStart(2, '0'))].join(':')
}
