/**
 * The ports through which the Virtual Machine writer and the restore see the world: a hypervisor, its VMs, and the
 * integration service inside a guest. src/libvirt implements them for real, test/sim for faults and speed; both pass
 * test/contract/hypervisor.contract.ts. Every call is bounded in time by the implementation and rejects with a coded
 * Failure; every call that changes something is idempotent where its comment says so.
 */

import type { BackupJobs } from './backup-job.ts'
import type { ClusterFacts } from './cluster.ts'
import type { GuestRequestor } from './guest-requestor.ts'
import type { HostFacts, MachineNeeds } from './machine-needs.ts'

/** `saved`: the hypervisor itself holds a memory image, and the next start resumes from it. */
export type PowerState = 'running' | 'paused' | 'saved' | 'off'

/** What a disk's bytes lie on, precise enough to open it without guessing. A `raw` disk is never probed. */
export interface DiskImage {
  readonly format: 'raw' | 'qcow2' | 'vpc' | 'vhdx' | 'vmdk' | 'vdi' | 'qed'
  readonly storage: DiskStorage
}

export type NbdStorage = { readonly exportName: string } & (
  | { readonly socketPath: string; readonly host?: undefined; readonly port?: undefined }
  | { readonly socketPath?: undefined; readonly host: string; readonly port: number }
)

export interface RbdStorage {
  readonly pool: string
  readonly image: string
  readonly monitors: readonly { readonly host: string; readonly port: number }[]
  readonly user?: string
  readonly namespace?: string
  readonly snapshot?: string
  /** A ceph.conf; without it QEMU looks for the host's. */
  readonly configFile?: string
  /** A file with the user's key in base64. */
  readonly keyFile?: string
}

export type DiskStorage =
  | { readonly file: string }
  | { readonly blockDevice: string }
  | { readonly nbd: NbdStorage }
  | { readonly rbd: RbdStorage }

/** One disk of a VM as the hypervisor describes it. */
export interface VirtualDisk {
  /** The hypervisor's name for it (sda, vdb); stable for the VM, says nothing about names inside the guest. */
  readonly target: string
  readonly bus: string
  readonly device: 'disk' | 'lun' | 'cdrom' | 'floppy'
  readonly serial?: string
  readonly readOnly: boolean
  readonly shareable: boolean
  readonly transient: boolean
  /** What kind of source the configuration names: file, block, network, volume, dir, nvme, vhostuser. */
  readonly sourceType: string
  /** Network protocol (nbd, rbd, iscsi …) when sourceType is network. */
  readonly protocol?: string
  /** For people: the path, or protocol and name. Empty for an empty drive. */
  readonly location: string
  /** How to open it; undefined when Umbra can not (iSCSI, host devices, empty drives). */
  readonly image?: DiskImage
  /** Virtual size in bytes as the guest sees it; undefined when it could not be told. */
  readonly sizeBytes?: number
  /** Locations of the images beneath (templates), nearest first. */
  readonly backing: readonly string[]
  /** True for a controller-less SCSI host device or PCI device that carries a disk: never backed up. */
  readonly passThrough: boolean
}

/** A file of the VM on the host besides its disks. */
export interface HostFile {
  readonly role: 'nvram' | 'tpm'
  readonly path: string
}

export interface VirtualNic {
  readonly mac: string
  readonly type: string
  /** Name of the network or bridge it is connected to; undefined for user-mode and others. */
  readonly source?: string
}

/** Everything the method choice looks at; read in one go, without disturbing the VM. */
export interface VmFacts {
  readonly name: string
  /** Lower-case with hyphens. */
  readonly uuid: string
  readonly power: PowerState
  /** Only when off: true if the guest shut itself down, false if it was cut off or nobody knows. */
  readonly shutDownCleanly?: boolean
  readonly persistent: boolean
  readonly agent: 'connected' | 'disconnected' | 'none'
  readonly disks: readonly VirtualDisk[]
  readonly hostFiles: readonly HostFile[]
  readonly nics: readonly VirtualNic[]
  /** Whether disks can be hot-added over SCSI: the VM has a virtio-scsi controller. */
  readonly hotAddsScsi: boolean
  /** A job (backup, block copy, migration …) that already occupies the VM, in words. */
  readonly busy?: string
  /** True when the hypervisor keeps snapshots of its own for this VM. */
  readonly hasHypervisorSnapshots: boolean
  /** The configuration that would be used at the next start, verbatim, secrets included. */
  readonly configuration: string
  /** Present when a failover cluster looks after it. */
  readonly cluster?: ClusterFacts
}

export interface HypervisorFacts {
  readonly hypervisor: string
  readonly version: string
  readonly libraryVersion: string
  readonly hostname: string
}

export interface NetworkFacts {
  readonly name: string
  readonly kind: 'network' | 'bridge'
  readonly active: boolean
}

/** One overlay to put on a disk: `overlay` catches the writes from now on, what is beneath stays as it is. */
export interface OverlayPlan {
  readonly target: string
  /** Path of the qcow2 file on the host; must not exist. */
  readonly overlay: string
}

/** An overlay that has been put on a disk, with what is beneath; enough to take it off again after a crash. */
export interface OverlayInPlace extends OverlayPlan {
  readonly base: DiskImage
}

/** How attached copies are told from a VM's own disks, whose serials are the user's business: `umbra-SET-TARGET`. */
export const copySerial = /^umbra-[0-9a-f]{8}-[0-9a-z]{1,5}$/

/** The copy of a disk next to its original, for auto-recovery inside the guest. */
export interface AttachedCopy {
  readonly serial: string
  readonly image: DiskImage
}

export interface Hypervisor extends AsyncDisposable, BackupJobs {
  readonly uri: string
  about(): Promise<HypervisorFacts>
  /** All VMs, persistent or not, by name. */
  listVms(): Promise<readonly VmFacts[]>
  /** By name or UUID. VM_NOT_FOUND names the VMs there are. */
  vm(nameOrUuid: string): Promise<VmFacts>
  /** Cheap: the power state only; 'gone' when there is no such VM. */
  power(uuid: string): Promise<PowerState | 'gone'>
  guest(uuid: string): GuestIntegration
  /** The guest's own snapshots; nothing is asked of the guest before the first call. */
  requestor(uuid: string): GuestRequestor

  /** Saves memory and device state to `file` (must not exist); the VM is off when it resolves. */
  save(uuid: string, file: string): Promise<void>
  /** Brings a VM back, paused, from a file that `save` made; `configuration` replaces the one in the file. The file stays. */
  restoreSaved(file: string, configuration?: string): Promise<void>
  /** Idempotent. */
  resume(uuid: string): Promise<void>
  /** Idempotent. */
  suspend(uuid: string): Promise<void>
  /** Resumes a VM that the hypervisor stopped because a disk was full, and only such a one. Answers whether it did. */
  resumeAfterIoError(uuid: string): Promise<boolean>
  start(uuid: string): Promise<void>
  /** Cuts the power. Idempotent. */
  turnOff(uuid: string): Promise<void>
  /** Puts a paused or running VM into the hypervisor's own saved state; the next start leads to `next`. */
  keepSaved(uuid: string, next: 'running' | 'paused'): Promise<void>

  /** Makes `createOverlays` with the same plans a single short call. Takes its time; changes no VM. */
  prepareOverlays(uuid: string, overlays: readonly OverlayPlan[]): Promise<void>
  /**
   * The instant: one transaction over all disks named, all or none, for a VM that is running, paused or off.
   * Disks not named stay untouched.
   */
  createOverlays(uuid: string, overlays: readonly OverlayPlan[]): Promise<void>
  /**
   * Takes an overlay off again: what it caught goes into the image directly beneath and never further, the VM runs on
   * that image, the overlay file is deleted. Idempotent, whatever state a crash left: overlay never used, used, already
   * merged, VM running, paused, saved or off. Rejects with MERGE_REFUSED when what lies
   * beneath is not `base`, and for an overlay that holds data but is not under the VM: that data is never thrown away.
   */
  mergeOverlay(uuid: string, overlay: OverlayInPlace): Promise<void>

  /**
   * Hot-adds an image, read-write, to a running VM on its virtio-scsi controller, under a serial of the form
   * `copySerial`. The stored configuration stays as it is.
   */
  attachCopy(uuid: string, copy: AttachedCopy): Promise<void>
  /** Hot-removes what has that serial; resolves when the VM has let go of the image. Idempotent, whatever runs or is off. */
  detachCopy(uuid: string, serial: string): Promise<void>

  /** Registers a VM, or replaces its configuration. Answers with its UUID. */
  define(configuration: string): Promise<string>
  /**
   * Removes the registration of a VM that is off. Disks, NVRAM and TPM files stay. Idempotent. A VM in the hypervisor's own
   * saved state is refused, unless that state is to go with it. With `discardFirmware` its NVRAM and TPM files go too.
   */
  undefine(
    uuid: string,
    options?: { readonly discardSaved?: boolean; readonly discardFirmware?: boolean },
  ): Promise<void>
  networks(): Promise<readonly NetworkFacts[]>
  /** What this host has for a VM with such needs. Changes nothing; a kind of VM that it can not run at all has no emulator. */
  hostFacts(needs: MachineNeeds): Promise<HostFacts>
  /** Makes sure that an isolated network without any uplink exists and is active. Idempotent. */
  ensureIsolatedNetwork(name: string): Promise<void>
  /**
   * Makes an isolated network that is not kept: it goes with a restart of the host. With a `subnet` (three numbers,
   * 198.18.7) the host has its address 1 and guests are given addresses of it; without, the host has none. Rejects when
   * there is a network of that name.
   */
  createIsolatedNetwork(name: string, subnet?: string): Promise<void>
  /** Removes what `createIsolatedNetwork` made. Idempotent. A network with a way out is refused. */
  removeIsolatedNetwork(name: string): Promise<void>
  /** What the first screen of a running VM shows, as a PNG or PPM; undefined when it has none. */
  screenshot(uuid: string): Promise<Uint8Array | undefined>
}

/** What a hypervisor can do besides, for a VM whose disks are overlays above served ones. */
export interface DiskPulls {
  /**
   * Begins to copy what lies beneath a disk's image into it, while the VM runs or is paused. A pull of that disk that is
   * under way already goes on. What an earlier one has copied is not copied again.
   */
  beginPull(uuid: string, target: string): Promise<void>
  /** Undefined when no pull of that disk is under way, whatever became of it. */
  pullProgress(
    uuid: string,
    target: string,
  ): Promise<{ readonly doneBytes: number; readonly totalBytes: number } | undefined>
  /** Gives a pull up without waiting for its end; what was copied stays copied. Idempotent. */
  endPull(uuid: string, target: string): Promise<void>
  /** As whom the VMs run, who therefore must be able to connect to sockets made for them; undefined when nobody says. */
  vmOwner(): Promise<{ readonly uid: number; readonly gid: number } | undefined>
}

/** Where a network interface is to be connected. */
export type NicConnection = { readonly network: string } | { readonly bridge: string }

/** A disk beneath an overlay that an NBD server on this host serves, read-only and raw. */
export interface ServedBacking {
  readonly socketPath: string
  readonly exportName: string
  /** How long requests wait for the server to come back before they fail, in seconds. */
  readonly reconnectDelaySeconds: number
}

/** The image file that takes the place of a disk's source and of its backing chain; `backing` is all that lies beneath it. */
export interface DiskFile {
  readonly file: string
  readonly format: string
  readonly backing?: ServedBacking
}

/** Makes it one that can run beside the original: no device of the host's or of others is left, no way out. */
export interface ConfigurationIsolation {
  /** Every interface, of whatever kind, is put on this network. */
  readonly network: string
  /** Targets of the disks that it keeps; any other goes. */
  readonly keptDisks: readonly string[]
  /** At most so much memory. */
  readonly memoryKiB?: number
}

/** Changes to a configuration; everything that is not named stays exactly as it is written. */
export interface ConfigurationEdit {
  readonly name?: string
  readonly uuid?: string
  /** By target; `remove` drops the disk. */
  readonly disks?: Readonly<Record<string, DiskFile | 'remove'>>
  /** By present MAC, lower case. */
  readonly nics?: Readonly<Record<string, { readonly mac?: string; readonly connect?: NicConnection }>>
  readonly nvram?: string
  readonly isolation?: ConfigurationIsolation
  readonly emulator?: string
  readonly machine?: string
  /** Path of the firmware. */
  readonly firmware?: string
  /** The identity by which guests notice that they went back in time (VM generation ID), for a VM that has one. */
  readonly generation?: string
  /** Targets of drives that lose their medium. */
  readonly eject?: readonly string[]
  /** Takes everything out that is the original's alone, whose name and UUID these are, as `ties` tells. */
  readonly separateFrom?: { readonly name: string; readonly uuid: string }
}

/** Reads and edits configurations without a hypervisor; pure. */
export interface ConfigurationEditor {
  edit(configuration: string, edit: ConfigurationEdit): string
  needs(configuration: string): MachineNeeds
  /** What of a configuration a copy of the VM can not have too, and what becomes of it, one sentence each. */
  ties(configuration: string, original: { readonly name: string; readonly uuid: string }): readonly string[]
}

export interface GuestOs {
  readonly id: string
  readonly name: string
  readonly version: string
}

export interface GuestFileSystem {
  readonly mountPoint: string
  readonly type: string
  /** What it is mounted from, as the guest calls it (sda1, dm-0); undefined when it does not tell. */
  readonly device?: string
  /** Targets of the VM's disks it lies on; matched by address or serial, never by a name inside the guest. */
  readonly targets: readonly string[]
}

export interface GuestExecResult {
  readonly exitCode: number
  readonly stdout: string
  readonly stderr: string
}

/** The integration service inside a guest. Every call is bounded in time and output: GUEST_NOT_RESPONDING, GUEST_REFUSED. */
export interface GuestIntegration {
  /** Answers if the service does. Also bounds every later call on this VM (the hypervisor's response timeout). */
  ping(): Promise<void>
  /**
   * Freezes all file systems, hooks included; answers how many. When it rejects, the guest may still freeze later:
   * the caller must thaw whatever this said (law 1).
   */
  freeze(): Promise<number>
  /**
   * Thaws; answers how many file systems were thawed. Returns only when the guest says it is thawed, also when a lost
   * freeze is still on its way. Fewer than were frozen means that the guest had thawed by itself.
   */
  thaw(): Promise<number>
  freezeStatus(): Promise<'frozen' | 'thawed'>
  fileSystems(): Promise<readonly GuestFileSystem[]>
  osInfo(): Promise<GuestOs>
  /** Runs a program in the guest, `input` being its standard input; output is cut at 1 MiB. Refused by a frozen guest. */
  exec(
    path: string,
    args: readonly string[],
    options?: { timeoutMs?: number; input?: string },
  ): Promise<GuestExecResult>
  /** IP addresses of the guest's interfaces, but for those that mean something on one link or host only. */
  addresses(): Promise<readonly string[]>
  /** Sets the guest's clock from its hardware clock, after it stood still. */
  syncClock(): Promise<void>
}
