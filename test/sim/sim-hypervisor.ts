/**
 * The hypervisor of the simulated world: every rule of the port, enforced as libvirt enforces it.
 * It passes test/contract/hypervisor.contract.ts, like the real adapter.
 */
import { failure } from '../../src/errors.ts'
import type {
  BackupJobCopy,
  BackupJobInPlace,
  BackupJobPlan,
  BackupJobStatus,
  ChangeTracking,
} from '../../src/vm/backup-job.ts'
import { trackingPointName } from '../../src/vm/backup-job.ts'
import type {
  AttachedCopy,
  Hypervisor,
  HypervisorFacts,
  NetworkFacts,
  OverlayInPlace,
  OverlayPlan,
  PowerState,
  VmFacts,
} from '../../src/vm/hypervisor.ts'
import type { HostFacts, MachineNeeds } from '../../src/vm/machine-needs.ts'
import { NoSpaceError } from './host-files.ts'
import * as backupJob from './sim-backup-job.ts'
import { readConfiguration, withDiskImage } from './sim-configuration.ts'
import { sameImage } from './sim-disk.ts'
import { factsOf, hostFactsOf } from './sim-facts.ts'
import type { SimGuest } from './sim-guest.ts'
import { attachCopy, detachCopy } from './sim-hot-add.ts'
import { dropOverlays, makeOverlays, mergeOverlay, putOverlaysOn } from './sim-overlays.ts'
import type { SimRequestor } from './sim-requestor.ts'
import { bringUp, halt, letRun, nameOf, powerOf, refused, type SimVm, stateOf, takeDown } from './sim-vm.ts'
import type { SimWorld } from './sim-world.ts'

export class SimHypervisor implements Hypervisor {
  readonly uri = 'sim:///system'
  readonly #world: SimWorld
  /** Overlay files made by this connection that are on no disk yet. */
  readonly #prepared = new Map<string, readonly OverlayPlan[]>()
  #open = true

  constructor(world: SimWorld) {
    this.#world = world
  }

  async about(): Promise<HypervisorFacts> {
    await this.#call()
    return { hypervisor: 'simulator', version: '1.0.0', libraryVersion: '1.0.0', hostname: 'sim-host' }
  }

  async listVms(): Promise<readonly VmFacts[]> {
    await this.#call()
    return [...this.#world.vms.values()]
      .map((vm) => factsOf(this.#world, vm))
      .sort((one, other) => (one.name < other.name ? -1 : 1))
  }

  async vm(nameOrUuid: string): Promise<VmFacts> {
    await this.#call()
    return factsOf(this.#world, this.#find(nameOrUuid))
  }

  async power(uuid: string): Promise<PowerState | 'gone'> {
    await this.#call()
    const vm = this.#world.vms.get(uuid)
    return vm === undefined ? 'gone' : powerOf(vm)
  }

  guest(uuid: string): SimGuest {
    return this.#world.guestOf(uuid)
  }

  requestor(uuid: string): SimRequestor {
    return this.#world.requestorOf(uuid)
  }

  async save(uuid: string, file: string): Promise<void> {
    await this.#call()
    const vm = this.#change(uuid)
    if (vm.live === undefined) throw wrongState(vm, 'only a running or paused VM can be saved')
    if (this.#world.files.has(file)) throw wrongState(vm, `${file} exists already`)
    const saved = stateOf(this.#world, vm.live)
    fits('save', () => this.#world.files.put(file, { saved }))
    takeDown(this.#world, vm)
  }

  async restoreSaved(file: string, configuration?: string): Promise<void> {
    await this.#call()
    const content = this.#world.files.get(file)
    if (content === undefined || !('saved' in content)) throw refused('restore', `${file} is not a saved state`)
    const { saved } = content
    const was = readConfiguration(saved.configuration)
    const xml = configuration ?? onPresentDisks(saved.configuration, this.#world.vms.get(was.uuid ?? ''))
    const now = readConfiguration(xml)
    if (now.name !== was.name || now.uuid !== was.uuid || now.uuid === undefined)
      throw refused('restore', 'the configuration names another VM than the file')
    const registered = this.#world.vms.get(now.uuid)
    if (registered !== undefined && powerOf(registered) !== 'off') throw wrongState(registered, 'it has to be off')
    const vm = registered ?? newVm(now.uuid, xml, false)
    bringUp(this.#world, vm, { call: 'restore', power: 'paused', configuration: xml, memory: saved.memory })
    this.#world.vms.set(vm.uuid, vm)
  }

  async resume(uuid: string): Promise<void> {
    await this.#call()
    const vm = this.#change(uuid, 'also during a backup job')
    if (vm.live === undefined) throw wrongState(vm, 'only a paused VM can be resumed')
    if (vm.live.power === 'paused') letRun(this.#world, vm)
  }

  async suspend(uuid: string): Promise<void> {
    await this.#call()
    const vm = this.#change(uuid, 'also during a backup job')
    if (vm.live === undefined) throw wrongState(vm, 'only a running VM can be suspended')
    if (vm.live.power === 'running') halt(this.#world, vm)
  }

  async resumeAfterIoError(uuid: string): Promise<boolean> {
    await this.#call()
    const vm = this.#change(uuid, 'also during a backup job')
    if (vm.live?.ioError !== true) return false
    letRun(this.#world, vm)
    return true
  }

  async start(uuid: string): Promise<void> {
    await this.#call()
    const vm = this.#change(uuid)
    if (vm.live !== undefined) throw wrongState(vm, 'it runs already')
    const { managedSave, configuration } = vm
    if (managedSave === undefined) bringUp(this.#world, vm, { call: 'start', power: 'running', configuration })
    else {
      const { next, memory } = managedSave
      bringUp(this.#world, vm, { call: 'start', power: next, configuration: managedSave.configuration, memory })
    }
    vm.managedSave = undefined
  }

  async turnOff(uuid: string): Promise<void> {
    await this.#call()
    const vm = this.#world.vms.get(uuid)
    if (vm?.live !== undefined) takeDown(this.#world, vm)
  }

  async keepSaved(uuid: string, next: 'running' | 'paused'): Promise<void> {
    await this.#call()
    const vm = this.#change(uuid)
    if (vm.live === undefined) throw wrongState(vm, 'only a running or paused VM can be saved')
    if (!vm.persistent) throw refused('managed save', 'cannot do managed save for transient domain')
    vm.managedSave = { ...stateOf(this.#world, vm.live), next }
    takeDown(this.#world, vm)
  }

  async prepareOverlays(uuid: string, overlays: readonly OverlayPlan[]): Promise<void> {
    await this.#call()
    const vm = this.#forSnapshot(uuid)
    this.#forgetPrepared(uuid)
    fits('snapshot', () => makeOverlays(this.#world, vm, overlays))
    this.#prepared.set(uuid, overlays)
  }

  async createOverlays(uuid: string, overlays: readonly OverlayPlan[]): Promise<void> {
    await this.#call()
    const vm = this.#forSnapshot(uuid)
    if (!samePlans(this.#prepared.get(uuid) ?? [], overlays)) {
      this.#forgetPrepared(uuid)
      fits('snapshot', () => makeOverlays(this.#world, vm, overlays))
    }
    this.#prepared.delete(uuid)
    putOverlaysOn(this.#world, vm, overlays)
  }

  async mergeOverlay(uuid: string, overlay: OverlayInPlace): Promise<void> {
    await this.#call()
    const vm = this.#change(uuid)
    fits('block commit', () => mergeOverlay(this.#world, vm, overlay))
  }

  async changeTracking(uuid: string): Promise<ChangeTracking> {
    await this.#call()
    return backupJob.changeTracking(this.#world, this.#find(uuid))
  }

  async prepareBackupJob(uuid: string, plan: BackupJobPlan): Promise<void> {
    await this.#call()
    const vm = this.#change(uuid)
    fits('backup', () => backupJob.prepareBackupJob(this.#world, vm, plan))
  }

  async beginBackupJob(uuid: string, plan: BackupJobPlan): Promise<void> {
    await this.#call()
    backupJob.beginBackupJob(this.#world, this.#change(uuid), plan)
  }

  async openBackupJob(uuid: string, plan: BackupJobPlan, target: string): Promise<BackupJobCopy> {
    await this.#call()
    return backupJob.openBackupJob(this.#world, this.#find(uuid), plan, target)
  }

  async backupJobStatus(uuid: string, job: BackupJobInPlace): Promise<BackupJobStatus> {
    await this.#call()
    const vm = this.#world.vms.get(uuid)
    if (vm === undefined) return { state: 'ended', scratchBytes: 0, pausedByIoError: false }
    return backupJob.backupJobStatus(vm, job)
  }

  async watchBackupJob(): Promise<AsyncDisposable> {
    await this.#call()
    return { [Symbol.asyncDispose]: async () => undefined }
  }

  async endBackupJob(uuid: string, job: BackupJobInPlace): Promise<void> {
    await this.#call()
    backupJob.endBackupJob(this.#world, this.#world.vms.get(uuid), job)
  }

  async removeTrackingPoint(uuid: string, name: string): Promise<void> {
    await this.#call()
    if (!trackingPointName.test(name)) throw new Error(`${name} is no tracking point of ours`)
    const vm = this.#world.vms.get(uuid)
    if (vm !== undefined) backupJob.removeTrackingPoint(this.#world, vm, name)
  }

  async attachCopy(uuid: string, copy: AttachedCopy): Promise<void> {
    await this.#call()
    attachCopy(this.#world, this.#change(uuid), copy)
  }

  async detachCopy(uuid: string, serial: string): Promise<void> {
    await this.#call()
    const vm = this.#world.vms.get(uuid)
    if (vm !== undefined) await detachCopy(this.#world, this.#change(uuid), serial)
  }

  async define(configuration: string): Promise<string> {
    await this.#call()
    const { name, uuid = crypto.randomUUID() } = readConfiguration(configuration)
    const sameName = [...this.#world.vms.values()].find((vm) => nameOf(vm) === name)
    const registered = this.#world.vms.get(uuid)
    if (sameName !== undefined && sameName.uuid !== uuid)
      throw refused('define', `domain '${name}' already exists with uuid ${sameName.uuid}`)
    if (registered !== undefined && nameOf(registered) !== name)
      throw refused('define', `domain '${nameOf(registered)}' is already defined with uuid ${uuid}`)
    const vm = registered ?? newVm(uuid, configuration, true)
    vm.configuration = configuration
    vm.persistent = true
    this.#world.vms.set(uuid, vm)
    return uuid
  }

  async undefine(uuid: string, options: { discardSaved?: boolean } = {}): Promise<void> {
    await this.#call()
    const vm = this.#world.vms.get(uuid)
    if (vm === undefined) return
    this.#change(uuid)
    if (powerOf(vm) !== 'off' && !(powerOf(vm) === 'saved' && options.discardSaved))
      throw wrongState(vm, 'it has to be off')
    this.#world.vms.delete(uuid)
  }

  async networks(): Promise<readonly NetworkFacts[]> {
    await this.#call()
    return [...this.#world.networks.values()].map(({ name, kind, active }) => ({ name, kind, active }))
  }

  async hostFacts(needs: MachineNeeds): Promise<HostFacts> {
    await this.#call()
    return hostFactsOf(this.#world, needs)
  }

  async ensureIsolatedNetwork(name: string): Promise<void> {
    await this.#call()
    const network = this.#world.networks.get(name)
    if (network !== undefined && !network.isolated) throw refused('network', `${name} exists and is not isolated`)
    this.#world.networks.set(name, { name, kind: 'network', active: true, isolated: true })
  }

  async createIsolatedNetwork(name: string): Promise<void> {
    await this.#call()
    if (this.#world.networks.has(name)) throw refused('network', `${name} exists already`)
    this.#world.networks.set(name, { name, kind: 'network', active: true, isolated: true })
  }

  async removeIsolatedNetwork(name: string): Promise<void> {
    await this.#call()
    if (this.#world.networks.get(name)?.isolated === false) throw refused('network', `${name} is not isolated`)
    this.#world.networks.delete(name)
  }

  async screenshot(uuid: string): Promise<Uint8Array | undefined> {
    await this.#call()
    return this.#find(uuid).live === undefined ? undefined : Buffer.from('\x89PNG\r\n\x1a\n', 'latin1')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const uuid of [...this.#prepared.keys()]) this.#forgetPrepared(uuid)
    this.#open = false
  }

  #forgetPrepared(uuid: string): void {
    dropOverlays(this.#world, this.#prepared.get(uuid) ?? [])
    this.#prepared.delete(uuid)
  }

  #forSnapshot(uuid: string): SimVm {
    const vm = this.#change(uuid)
    if (powerOf(vm) === 'saved') throw wrongState(vm, 'its memory would go on with the disks beneath')
    return vm
  }

  async #call(): Promise<void> {
    const { hypervisorDown } = this.#world
    const reason = this.#open ? hypervisorDown : 'the connection is closed'
    if (reason !== undefined) throw failure('HYPERVISOR_UNREACHABLE', { uri: this.uri, reason })
    await this.#world.called()
  }

  #find(nameOrUuid: string): SimVm {
    const all = [...this.#world.vms.values()]
    const found = all.find((vm) => vm.uuid === nameOrUuid.toLowerCase() || nameOf(vm) === nameOrUuid)
    if (found !== undefined) return found
    throw failure('VM_NOT_FOUND', { vm: nameOrUuid, known: all.map(nameOf).sort() })
  }

  /** The VM of a call that changes it; one operation at a time. */
  #change(uuid: string, whenever?: 'also during a backup job'): SimVm {
    const vm = this.#find(uuid)
    if (vm.live?.backupJob !== undefined && whenever === undefined)
      throw failure('VM_BUSY', { vm: nameOf(vm), reason: 'cannot acquire state change lock (held by a backup job)' })
    if (vm.busy !== undefined) throw failure('VM_BUSY', { vm: nameOf(vm), reason: vm.busy })
    this.#world.guestOf(uuid).settle()
    return vm
  }
}

/** Without another configuration the disks are those registered now: there may be an overlay on them by now. */
function onPresentDisks(saved: string, vm: SimVm | undefined): string {
  const present = vm === undefined ? [] : readConfiguration(vm.configuration).disks
  return readConfiguration(saved).disks.reduce((xml, { target, image }) => {
    const now = present.find((disk) => disk.target === target)?.image
    if (image === undefined || now === undefined || sameImage(image, now)) return xml
    return withDiskImage(xml, target, now)
  }, saved)
}

const samePlans = (one: readonly OverlayPlan[], other: readonly OverlayPlan[]): boolean =>
  one.length === other.length &&
  one.every((plan) => other.some(({ target, overlay }) => target === plan.target && overlay === plan.overlay))

const newVm = (uuid: string, configuration: string, persistent: boolean): SimVm => ({
  uuid,
  configuration,
  persistent,
  live: undefined,
  managedSave: undefined,
  shutDownCleanly: false,
  busy: undefined,
  hasHypervisorSnapshots: false,
  beneath: new Map(),
  points: [],
})

const wrongState = (vm: SimVm, reason: string) => failure('VM_STATE', { vm: nameOf(vm), state: powerOf(vm), reason })

/** A full host is told by libvirt as a refusal. */
function fits(call: string, deed: () => void): void {
  try {
    deed()
  } catch (error) {
    if (error instanceof NoSpaceError) throw refused(call, error.message)
    throw error
  }
}
