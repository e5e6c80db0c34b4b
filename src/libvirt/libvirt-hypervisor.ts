/**
 * The Hypervisor port on libvirt: each call is one line that leads to the file that does it
 * (API reference of libvirt, modules libvirt-host and libvirt-domain).
 */
import { inSlot, openSlots, type Slots } from '../base/slots.ts'
import { failure } from '../errors.ts'
import type {
  BackupJobCopy,
  BackupJobInPlace,
  BackupJobPlan,
  BackupJobStatus,
  ChangeTracking,
} from '../vm/backup-job.ts'
import type { GuestRequestor } from '../vm/guest-requestor.ts'
import type {
  AttachedCopy,
  DiskPulls,
  Hypervisor,
  HypervisorFacts,
  OverlayInPlace,
  OverlayPlan,
  PowerState,
  VmFacts,
} from '../vm/hypervisor.ts'
import type { HostFacts, MachineNeeds } from '../vm/machine-needs.ts'
import * as backupJob from './backup-job.ts'
import { changeTracking, removeTrackingPoint } from './checkpoints.ts'
import { connectLibvirt, type LibvirtConnection } from './connection.ts'
import { DomainCalls } from './domain-calls.ts'
import { GuestAgent, type GuestLimits } from './guest-agent.ts'
import { hostFacts } from './host-facts.ts'
import { attachCopy, detachCopy } from './hot-add.ts'
import { isFailure, libvirtCode } from './libvirt-errors.ts'
import { mergeOverlay } from './merge-overlay.ts'
import { createIsolatedNetwork, ensureIsolatedNetwork, networks, removeIsolatedNetwork } from './networks.ts'
import { discardOverlays, type PreparedOverlays, prepareOverlays, putOverlaysOn } from './overlays.ts'
import * as power from './power.ts'
import { libvirtCodes, procedures, undefineFlags } from './protocol.ts'
import { beginPull, endPull, pullProgress, vmOwner } from './pull.ts'
import { UmbraGuest } from './umbra-guest.ts'
import { vmFacts } from './vm-facts.ts'

/** Disposal disconnects. */
export async function connectHypervisor(
  uri: string,
  options: { readonly guestLimits?: Partial<GuestLimits> } = {},
): Promise<LibvirtHypervisor> {
  return new LibvirtHypervisor(await connectLibvirt(uri), options.guestLimits)
}

export class LibvirtHypervisor implements Hypervisor, DiskPulls {
  readonly connection: LibvirtConnection
  readonly #domains: DomainCalls
  readonly #guests = new Map<string, GuestAgent>()
  readonly #requestors = new Map<string, UmbraGuest>()
  readonly #prepared = new Map<string, PreparedOverlays>()
  readonly #merging = new Map<string, Slots>()
  readonly #jobs = new Map<string, backupJob.PreparedJob>()

  readonly #guestLimits: Partial<GuestLimits>

  constructor(connection: LibvirtConnection, guestLimits: Partial<GuestLimits> = {}) {
    this.connection = connection
    this.#guestLimits = guestLimits
    this.#domains = new DomainCalls(connection)
  }

  get uri(): string {
    return this.connection.uri
  }

  async about(): Promise<HypervisorFacts> {
    const [type, version, library, hostname] = await Promise.all([
      this.connection.call(procedures.connectGetType),
      this.connection.call(procedures.connectGetVersion),
      this.connection.call(procedures.connectGetLibVersion),
      this.connection.call(procedures.connectGetHostname),
    ])
    return {
      hypervisor: type.string(),
      version: versionText(version.size()),
      libraryVersion: versionText(library.size()),
      hostname: hostname.string(),
    }
  }

  async listVms(): Promise<readonly VmFacts[]> {
    const facts = (await this.#domains.list()).map(({ uuid }) =>
      vmFacts(this.#domains, uuid).catch((error: unknown) => {
        // Undefined since the list was made.
        if (isFailure(error, 'VM_NOT_FOUND')) return undefined
        throw error
      }),
    )
    return (await Promise.all(facts)).filter((vm) => vm !== undefined)
  }

  async vm(nameOrUuid: string): Promise<VmFacts> {
    try {
      return await vmFacts(this.#domains, await this.#domains.lookup(nameOrUuid))
    } catch (error) {
      if (!isFailure(error, 'VM_NOT_FOUND')) throw error
      const known = (await this.#domains.list()).map(({ name }) => name)
      throw failure('VM_NOT_FOUND', { vm: nameOrUuid, known: known.length === 0 ? ['none'] : known }, error)
    }
  }

  power(uuid: string): Promise<PowerState | 'gone'> {
    return power.power(this.#domains, uuid)
  }

  /** The same object for the same VM: it remembers freezes whose end it has not seen. */
  guest(uuid: string): GuestAgent {
    const guest = this.#guests.get(uuid) ?? new GuestAgent(this.#domains, uuid, this.#guestLimits)
    this.#guests.set(uuid, guest)
    return guest
  }

  requestor(uuid: string): GuestRequestor {
    const requestor = this.#requestors.get(uuid) ?? new UmbraGuest(this.guest(uuid))
    this.#requestors.set(uuid, requestor)
    return requestor
  }

  save(uuid: string, file: string): Promise<void> {
    return power.save(this.#domains, uuid, file)
  }

  restoreSaved(file: string, configuration?: string): Promise<void> {
    return power.restoreSaved(this.#domains, file, configuration)
  }

  resume(uuid: string): Promise<void> {
    return power.resume(this.#domains, uuid)
  }

  suspend(uuid: string): Promise<void> {
    return power.suspend(this.#domains, uuid)
  }

  resumeAfterIoError(uuid: string): Promise<boolean> {
    return power.resumeAfterIoError(this.#domains, uuid)
  }

  start(uuid: string): Promise<void> {
    return power.start(this.#domains, uuid)
  }

  turnOff(uuid: string): Promise<void> {
    return power.turnOff(this.#domains, uuid)
  }

  keepSaved(uuid: string, next: 'running' | 'paused'): Promise<void> {
    return power.keepSaved(this.#domains, uuid, next)
  }

  /** Makes the overlay files, so that createOverlays with the same plans is a single call. Takes its time; changes no VM. */
  async prepareOverlays(uuid: string, overlays: readonly OverlayPlan[]): Promise<void> {
    await this.forgetPrepared(uuid)
    this.#prepared.set(uuid, await prepareOverlays(this.#domains, uuid, overlays))
  }

  /** Deletes prepared overlay files that were never put on. Idempotent. */
  async forgetPrepared(uuid: string): Promise<void> {
    const prepared = this.#prepared.get(uuid)
    this.#prepared.delete(uuid)
    if (prepared !== undefined) await discardOverlays(prepared)
  }

  async createOverlays(uuid: string, overlays: readonly OverlayPlan[]): Promise<void> {
    const ready = this.#prepared.get(uuid)
    if (ready !== undefined && samePlans(ready.plans, overlays)) {
      this.#prepared.delete(uuid)
      await putOverlaysOn(this.#domains, ready)
      return
    }
    await this.forgetPrepared(uuid)
    await putOverlaysOn(this.#domains, await prepareOverlays(this.#domains, uuid, overlays))
  }

  /** One at a time for each VM: a merge reads the definition and rewrites it, which two at once would undo for each other. */
  mergeOverlay(uuid: string, overlay: OverlayInPlace): Promise<void> {
    const merging = this.#merging.get(uuid) ?? openSlots(1)
    this.#merging.set(uuid, merging)
    return inSlot(merging, () => mergeOverlay(this.#domains, uuid, overlay))
  }

  beginPull(uuid: string, target: string): Promise<void> {
    return beginPull(this.#domains, uuid, target)
  }

  pullProgress(uuid: string, target: string) {
    return pullProgress(this.#domains, uuid, target)
  }

  endPull(uuid: string, target: string): Promise<void> {
    return endPull(this.#domains, uuid, target)
  }

  vmOwner() {
    return vmOwner(this.connection)
  }

  changeTracking(uuid: string): Promise<ChangeTracking> {
    return changeTracking(this.#domains, uuid)
  }

  async prepareBackupJob(uuid: string, plan: BackupJobPlan): Promise<void> {
    this.#jobs.set(uuid, await backupJob.prepareBackupJob(this.#domains, uuid, plan))
  }

  async beginBackupJob(uuid: string, plan: BackupJobPlan): Promise<void> {
    const prepared = this.#jobs.get(uuid)
    if (prepared?.plan.socket !== plan.socket)
      throw failure('VM_STATE', {
        vm: this.#domains.nameOf(uuid),
        state: 'unprepared',
        reason: 'no such job was prepared',
      })
    // The same files, perhaps with less to build upon.
    await backupJob.beginBackupJob(this.#domains, uuid, { ...prepared, plan })
    this.#jobs.delete(uuid)
  }

  openBackupJob(uuid: string, plan: BackupJobPlan, target: string): Promise<BackupJobCopy> {
    return backupJob.openBackupJob(this.#domains, uuid, plan, target)
  }

  backupJobStatus(uuid: string, job: BackupJobInPlace): Promise<BackupJobStatus> {
    return backupJob.backupJobStatus(this.#domains, uuid, job)
  }

  watchBackupJob(uuid: string, look: () => void): Promise<AsyncDisposable> {
    return backupJob.watchBackupJob(this.connection, uuid, look)
  }

  endBackupJob(uuid: string, job: BackupJobInPlace): Promise<void> {
    return backupJob.endBackupJob(this.#domains, uuid, job)
  }

  removeTrackingPoint(uuid: string, name: string): Promise<void> {
    return removeTrackingPoint(this.#domains, uuid, name)
  }

  attachCopy(uuid: string, copy: AttachedCopy): Promise<void> {
    return attachCopy(this.#domains, uuid, copy)
  }

  detachCopy(uuid: string, serial: string): Promise<void> {
    return detachCopy(this.#domains, uuid, serial)
  }

  define(configuration: string): Promise<string> {
    return this.#domains.define(configuration)
  }

  async undefine(uuid: string, options: { discardSaved?: boolean; discardFirmware?: boolean } = {}): Promise<void> {
    const state = await this.power(uuid)
    if (state === 'gone') return
    const vm = this.#domains.nameOf(uuid)
    if (state === 'saved' && !options.discardSaved)
      throw failure('VM_STATE', { vm, state, reason: 'its memory image would be lost' })
    if (state !== 'off' && state !== 'saved')
      throw failure('VM_STATE', { vm, state, reason: 'only a VM that is off can be removed' })
    const { managedSave, snapshotsMetadata, checkpointsMetadata } = undefineFlags
    const { discardFirmware = false } = options
    const nvram = discardFirmware ? undefineFlags.nvram : undefineFlags.keepNvram
    const flags = snapshotsMetadata | nvram | checkpointsMetadata | (options.discardSaved ? managedSave : 0)
    try {
      await this.#domains.undefine(uuid, flags | (discardFirmware ? undefineFlags.tpm : undefineFlags.keepTpm))
    } catch (error) {
      if (isFailure(error, 'VM_NOT_FOUND')) return
      // libvirt before 8.9 does not know KEEP_TPM, and keeps no TPM state when a VM is undefined: not without the owner.
      if (libvirtCode(error) !== libvirtCodes.invalidArgument) throw error
      const { hostFiles } = await vmFacts(this.#domains, uuid)
      if (!discardFirmware && hostFiles.some((file) => file.role === 'tpm')) throw error
      await this.#domains.undefine(uuid, flags)
    }
  }

  networks() {
    return networks(this.connection)
  }

  hostFacts(needs: MachineNeeds): Promise<HostFacts> {
    return hostFacts(this.connection, needs)
  }

  ensureIsolatedNetwork(name: string): Promise<void> {
    return ensureIsolatedNetwork(this.connection, name)
  }

  createIsolatedNetwork(name: string, subnet?: string): Promise<void> {
    return createIsolatedNetwork(this.connection, name, subnet)
  }

  removeIsolatedNetwork(name: string): Promise<void> {
    return removeIsolatedNetwork(this.connection, name)
  }

  /** A VM without a screen is refused by libvirt in several ways; none of them is worth more than that there is none. */
  async screenshot(uuid: string): Promise<Uint8Array | undefined> {
    try {
      return await this.#domains.screenshot(uuid)
    } catch (error) {
      if (isFailure(error, 'HYPERVISOR_REFUSED')) return undefined
      throw error
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const uuid of [...this.#prepared.keys()]) await this.forgetPrepared(uuid)
    await this.connection[Symbol.asyncDispose]()
  }
}

const versionText = (number: number): string =>
  [Math.floor(number / 1_000_000), Math.floor(number / 1000) % 1000, number % 1000].join('.')

const samePlans = (one: readonly OverlayPlan[], other: readonly OverlayPlan[]): boolean =>
  one.length === other.length &&
  one.every((plan) => other.some(({ target, overlay }) => target === plan.target && overlay === plan.overlay))
