/**
 * The host of the backups by jobs: two VMs whose disks are tracked, one of which has a raw disk besides, tracking points of
 * others, and guests that write to known places.
 */
import assert from 'node:assert/strict'
import { pointNameOf } from '../../src/libvirt/bitmap-state.ts'
import { openRepository } from '../../src/repository/repository.ts'
import { defaultPolicy } from '../../src/vm/method.ts'
import { FaultPlan } from '../sim/faulty.ts'
import type { SimBitmap } from '../sim/sim-bitmaps.ts'
import { readConfiguration } from '../sim/sim-configuration.ts'
import type { SimVm } from '../sim/sim-vm.ts'
import type { SimVmSpec } from '../sim/sim-world.ts'
import { Instants } from './backup-job-instants.ts'
import { Host, Incarnation, type IncarnationOptions } from './harness.ts'

/** Eight granules: the guest's own logs are in the second half, and `writeAt` writes to the first. */
const tracked = { sizeBytes: 512 * 1024, format: 'qcow2' } as const
const raw = { sizeBytes: 64 * 1024 } as const

/** It freezes. */
export const web01: SimVmSpec = { disks: { sda: tracked, sdb: tracked, sdc: raw } }
/** Without an agent: checkpoint. */
export const old95: SimVmSpec = { agent: 'none', disks: { sda: tracked } }

/** Of nobody, and of another repository. */
const foreignNames = ['nightly', 'umbra-aaaaaaaa-a1'] as const

export interface ForeignPoint {
  readonly vm: SimVm
  readonly name: string
  readonly bitmap: SimBitmap
}

export interface JobHost {
  readonly host: Host
  readonly instants: Instants
  readonly foreign: readonly ForeignPoint[]
  /** The owner of our own tracking points. */
  readonly owner: string
  /** Recovery points that were there before. */
  readonly earlier: readonly string[]
  /** The VM whose process died, by name. */
  died?: string
}

const granules = { before: 1, during: 2, after: 3 } as const
const granuleBytes = 64 * 1024

/** `earlier`: whether there is a recovery point that a backup can build upon. */
export async function prepareJobHost(
  vms: Record<string, SimVmSpec>,
  { earlier }: { earlier: boolean },
): Promise<JobHost> {
  const host = await Host.create(vms)
  const foreign: ForeignPoint[] = []
  for (const vm of host.world.vms.values())
    for (const name of foreignNames) foreign.push({ vm, name, bitmap: await beginForeign(host, vm, name) })
  const instants = new Instants(host)
  instants.watch()
  const owner = await idOf(host.repository)
  if (!earlier) return { host, instants, foreign, owner, earlier: [] }
  const made = await jobProcess(host).backup(jobPolicy)
  assert.ok(made.ended === 'done', 'the earlier backup')
  writeAt(host, 'before')
  return { host, instants, foreign, owner, earlier: [made.value.recoveryPoint] }
}

async function idOf(location: string): Promise<string> {
  await using repository = await openRepository(location)
  return repository.id
}

async function beginForeign({ world }: Host, vm: SimVm, point: string): Promise<SimBitmap> {
  const [scratch, socket] = [world.path('/foreign'), world.path('/foreign.s')]
  const plan = { socket, disks: [{ target: 'sda', scratch, track: true }], point }
  await world.hypervisor.prepareBackupJob(vm.uuid, plan)
  await world.hypervisor.beginBackupJob(vm.uuid, plan)
  await world.hypervisor.endBackupJob(vm.uuid, { socket, scratch: [scratch] })
  const bitmap = bitmapsOf({ world }, vm).get(point)
  assert.ok(bitmap !== undefined)
  return bitmap
}

/** Of all its disks; those of one name are one. */
export function bitmapsOf({ world }: Pick<Host, 'world'>, vm: SimVm): Map<string, SimBitmap> {
  const { disks } = readConfiguration(vm.live?.configuration ?? vm.configuration)
  const layers = disks.flatMap(({ image }) => (image === undefined ? [] : world.files.disk(image).layers))
  return new Map(layers.flatMap(({ watch }) => [...watch.bitmaps]))
}

/** The tracking points of ours that a VM has, or has the bitmap of. */
export function ownPoints({ host, owner }: JobHost, vm: SimVm): string[] {
  const names = new Set([...vm.points.map(({ name }) => name), ...bitmapsOf(host, vm).keys()])
  return [...names].filter((name) => name.startsWith(pointNameOf(owner, '')))
}

let written = 0

/** Every disk of every VM that runs gets bytes that were never there, each time in a granule of its own. */
export function writeAt({ world }: Host, when: keyof typeof granules): void {
  const text = `${when} ${++written}`
  for (const vm of world.vms.values()) {
    const guest = world.guestOf(vm.uuid)
    for (const { target } of guest.workload.disks) {
      const place = target === 'sdc' ? granules[when] * 4096 : granules[when] * granuleBytes
      guest.write(target, place + 1234, text)
    }
  }
}

/** Without auto-recovery guests are frozen. */
export const jobPolicy = { ...defaultPolicy, autoRecovery: false, instant: 'set' } as const

/** A process that makes instants by jobs; just before each and before each look at a copy the guests write. */
export function jobProcess(host: Host, plan = new FaultPlan(), options: IncarnationOptions = {}): Incarnation {
  const enter = plan.enter.bind(plan)
  plan.enter = (call) => {
    if (/^hypervisor\.(begin|open)BackupJob/.test(call) && !plan.isDead) writeAt(host, 'during')
    return enter(call)
  }
  return new Incarnation(host, plan, { jobs: true, ...options })
}
