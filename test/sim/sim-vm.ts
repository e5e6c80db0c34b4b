/**
 * One VM of the simulated host: its registration, what runs of it, and what brings it up and down.
 */
import { failure } from '../../src/errors.ts'
import type { PowerState } from '../../src/vm/hypervisor.ts'
import type { SavedState } from './host-files.ts'
import type { SimBackupJob, SimPoint } from './sim-backup-job.ts'
import { readConfiguration } from './sim-configuration.ts'
import { storageKey } from './sim-disk.ts'
import { freshMemory, type GuestMemory, packMemory, unpackMemory } from './sim-memory.ts'
import type { SimWorld } from './sim-world.ts'

/** A VM with a QEMU process. Its disks are those of the live configuration. */
export interface LiveVm {
  power: 'running' | 'paused'
  /** Paused by QEMU because a disk was full. */
  ioError: boolean
  configuration: string
  readonly memory: GuestMemory
  backupJob?: SimBackupJob | undefined
}

export interface SimVm {
  readonly uuid: string
  /** Of the next start. */
  configuration: string
  persistent: boolean
  live: LiveVm | undefined
  managedSave: (SavedState & { readonly next: 'running' | 'paused' }) | undefined
  shutDownCleanly: boolean
  /** A job of somebody else that occupies the VM; settable by tests. */
  busy: string | undefined
  hasHypervisorSnapshots: boolean
  /** How a disk was configured before an overlay was put on it, by the path of the overlay. */
  readonly beneath: Map<string, string>
  /** Change-tracking points, oldest first. */
  points: SimPoint[]
}

export const nameOf = (vm: SimVm): string => readConfiguration(vm.configuration).name

export const powerOf = (vm: SimVm): PowerState => vm.live?.power ?? (vm.managedSave === undefined ? 'off' : 'saved')

export const refused = (call: string, reason: string) => failure('HYPERVISOR_REFUSED', { call, reason })

/** Makes a QEMU process for the VM: cold, or from a saved state. All locks are taken, or nothing happens. */
export function bringUp(
  world: SimWorld,
  vm: SimVm,
  how: { call: string; power: LiveVm['power']; configuration: string; memory?: GuestMemory },
): void {
  const { disks, nics } = readConfiguration(how.configuration)
  for (const { image, readOnly, shareable } of disks) {
    if (image === undefined) continue
    const problem = world.lockProblem(image, { writes: !readOnly, shareable, except: vm.uuid })
    if (problem !== undefined) throw refused(how.call, problem)
  }
  for (const { type, source } of nics) {
    if (source !== undefined && world.networks.get(source)?.active !== true)
      throw refused(how.call, `${type === 'bridge' ? 'Cannot get interface' : 'Network not found'}: '${source}'`)
  }
  const nowMs = world.clock.monotonicMs()
  const memory = how.memory === undefined ? freshMemory() : unpackMemory(how.memory, nowMs)
  vm.live = { power: 'paused', ioError: false, configuration: how.configuration, memory }
  if (how.memory === undefined) {
    vm.live.power = 'running'
    world.guestOf(vm.uuid).workload.boot()
  }
  if (how.power === 'running') letRun(world, vm)
}

/** The vCPUs go on. */
export function letRun(world: SimWorld, vm: SimVm): void {
  if (vm.live === undefined) return
  const { memory } = vm.live
  if (memory.stoppedAtMs !== undefined) memory.clockLagMs += world.clock.now() - memory.stoppedAtMs
  memory.stoppedAtMs = undefined
  vm.live.power = 'running'
  vm.live.ioError = false
  world.guestOf(vm.uuid).settle()
}

/** The vCPUs stop. */
export function halt(world: SimWorld, vm: SimVm): void {
  if (vm.live === undefined) return
  world.guestOf(vm.uuid).settle()
  vm.live.power = 'paused'
  vm.live.memory.stoppedAtMs ??= world.clock.now()
}

/** The QEMU process ends; a VM that is not persistent is gone with it. */
export function takeDown(world: SimWorld, vm: SimVm, shutDownCleanly = false): void {
  vm.live = undefined
  vm.shutDownCleanly = shutDownCleanly
  if (!vm.persistent) world.vms.delete(vm.uuid)
}

/** The memory of a VM as it would go into a file. */
export function stateOf(world: SimWorld, { configuration, memory }: LiveVm): SavedState {
  const packed = packMemory(memory, world.clock.monotonicMs())
  return { configuration, memory: { ...packed, stoppedAtMs: packed.stoppedAtMs ?? world.clock.now() } }
}

/** The image a disk of the VM has on top now. */
export function topImage(vm: SimVm, target: string) {
  return readConfiguration(vm.live?.configuration ?? vm.configuration).disks.find((disk) => disk.target === target)
}

/** The images to which the VM's process writes now. */
export function writtenKeys(vm: SimVm): string[] {
  if (vm.live === undefined) return []
  return readConfiguration(vm.live.configuration).disks.flatMap(({ image, readOnly }) =>
    image === undefined || readOnly ? [] : [storageKey(image.storage)],
  )
}
