/**
 * A whole host in memory: VMs with disks of real bytes, guests that write and freeze, files, networks and a clock.
 * `simulatedWorld` builds one from a few words; `world.hypervisor` is what the code under test gets.
 */
import { createHash } from 'node:crypto'
import type { Clock } from '../../src/base/clock.ts'
import type { BlockSink, BlockSource } from '../../src/disk/block-device.ts'
import type { DiskImage, DiskStorage, NetworkFacts, PowerState, VirtualNic } from '../../src/vm/hypervisor.ts'
import type { HostFacts } from '../../src/vm/machine-needs.ts'
import { HostFiles } from './host-files.ts'
import { remember, type WorldMemory } from './leftovers.ts'
import { ManualClock } from './manual-clock.ts'
import { RealFiles } from './real-files.ts'
import { breakBitmaps } from './sim-backup-job.ts'
import { type ConfiguredDisk, readConfiguration, uuidOf, writeConfiguration } from './sim-configuration.ts'
import { storageKey } from './sim-disk.ts'
import { type GuestBehaviour, SimGuest } from './sim-guest.ts'
import type { FrozenSets } from './sim-guest-sets.ts'
import { SimHypervisor } from './sim-hypervisor.ts'
import { type ImageHandle, openForReading, openForWriting } from './sim-open-image.ts'
import { type RequestorBehaviour, SimRequestor } from './sim-requestor.ts'
import { bringUp, halt, nameOf, type SimVm, stateOf, takeDown, topImage, writtenKeys } from './sim-vm.ts'

export interface SimDiskSpec {
  /** 1 MiB unless told. */
  readonly sizeBytes?: number
  readonly format?: DiskImage['format']
  /** At the start of the disk; without it some clusters of bytes that differ from disk to disk. */
  readonly content?: Uint8Array
  /** Where the image lies; world.path('/images/VM-TARGET.FORMAT') unless told. */
  readonly storage?: DiskStorage
  /** A template beneath; made when there is none, shared by those that name it. */
  readonly template?: string
  readonly bus?: string
  readonly device?: ConfiguredDisk['device']
  readonly serial?: string
  readonly readOnly?: boolean
  readonly shareable?: boolean
  readonly transient?: boolean
  /** Anything but file, block and the known network protocols can not be opened by Umbra. */
  readonly sourceType?: string
}

export interface SimVmSpec {
  readonly power?: PowerState
  /** Only when off. */
  readonly shutDownCleanly?: boolean
  readonly agent?: 'connected' | 'disconnected' | 'none'
  readonly disks?: Readonly<Record<string, SimDiskSpec>>
  readonly persistent?: boolean
  readonly nvram?: Uint8Array
  readonly tpm?: Uint8Array
  readonly nics?: readonly VirtualNic[]
  readonly busy?: string
  readonly hasHypervisorSnapshots?: boolean
  readonly guest?: Partial<GuestBehaviour>
  /** How its file systems lie on its disks, and what goes wrong with shadow copies inside. */
  readonly requestor?: Partial<RequestorBehaviour>
  /** A virtio-scsi controller; as soon as one disk is on SCSI unless told. */
  readonly virtioScsi?: boolean
}

export interface SimWorldOptions {
  readonly clock?: Clock
  /** How many steps every running guest's application does during each call; 1 unless told. */
  readonly stepsPerCall?: number
  readonly hostCapacityBytes?: number
  /** An empty directory: host files exist beneath it for real, for code that renames or removes them itself. */
  readonly directory?: string
  /** The files that there are; none, or those beneath `directory`, unless told. */
  readonly files?: HostFiles
}

export interface SimNetwork extends NetworkFacts {
  readonly isolated: boolean
}

export class SimWorld implements AsyncDisposable {
  readonly clock: Clock
  readonly files: HostFiles
  readonly vms = new Map<string, SimVm>()
  readonly networks = new Map<string, SimNetwork>()
  /** What is special about this host. */
  host: Partial<HostFacts> = {}
  /** Who has an image open besides the VMs. */
  readonly handles = new Set<ImageHandle>()
  readonly hypervisor: SimHypervisor
  /** Set it, and every call of the hypervisor fails with HYPERVISOR_UNREACHABLE. */
  hypervisorDown: string | undefined
  stepsPerCall: number
  /** How it was when `simulatedWorld` had built it; what `leftovers` compares with. */
  beginning: WorldMemory
  readonly #directory: string
  readonly #guests = new Map<string, SimGuest>()
  readonly #requestors = new Map<string, SimRequestor>()
  /** The guest's own snapshots that lie on a base, as they were when an overlay was put on it. */
  readonly frozenSets = new Map<string, FrozenSets>()
  /** Copies whose file system got another fsid inside a guest, with the one that is to be put back; by storage key. */
  readonly changedFsids = new Map<string, string>()

  constructor(options: SimWorldOptions = {}) {
    this.clock = options.clock ?? new ManualClock()
    this.#directory = options.directory ?? ''
    this.files =
      options.files ?? new HostFiles(options.directory === undefined ? undefined : new RealFiles(options.directory))
    this.stepsPerCall = options.stepsPerCall ?? 1
    this.files.capacityBytes = options.hostCapacityBytes ?? this.files.capacityBytes
    this.networks.set('default', { name: 'default', kind: 'network', active: true, isolated: false })
    this.hypervisor = this.connect()
    this.beginning = remember(this)
  }

  /** Where the host keeps something: the same path, beneath the directory if there is one. */
  path(path: string): string {
    return `${this.#directory}${path}`
  }

  /** Another connection to the same host, as a second incarnation of Umbra would make it. */
  connect(): SimHypervisor {
    return new SimHypervisor(this)
  }

  /** The record of a VM by its name. */
  vm(name: string): SimVm {
    const found = [...this.vms.values()].find((vm) => nameOf(vm) === name)
    if (found === undefined) throw new Error(`the simulated world has no VM ${name}`)
    return found
  }

  guest(name: string): SimGuest {
    return this.guestOf(this.vm(name).uuid)
  }

  guestOf(uuid: string): SimGuest {
    const guest = this.#guests.get(uuid) ?? new SimGuest(this, uuid)
    this.#guests.set(uuid, guest)
    return guest
  }

  requestorOf(uuid: string): SimRequestor {
    const requestor = this.#requestors.get(uuid) ?? new SimRequestor(this, uuid)
    this.#requestors.set(uuid, requestor)
    return requestor
  }

  /** The integration service of a VM that takes shadow copies inside; set its `behaviour`, or look at what it holds. */
  requestor(name: string): SimRequestor {
    return this.requestorOf(this.vm(name).uuid)
  }

  /** The applications of all running guests do `steps` steps. */
  tick(steps = 1): void {
    for (let step = 0; step < steps; step++) {
      for (const uuid of this.vms.keys()) this.guestOf(uuid).writeStep()
    }
  }

  /** Life goes on while somebody calls. Every call of every port begins with it. */
  async called(): Promise<void> {
    this.tick(this.stepsPerCall)
  }

  /** The image a disk has on top now. */
  image(name: string, target: string): DiskImage {
    const image = topImage(this.vm(name), target)?.image
    if (image === undefined) throw new Error(`${name} has no disk ${target} with an image`)
    return image
  }

  /** What a disk image contains, chain and all, whoever uses it. */
  imageBytes(image: DiskImage): Uint8Array {
    return this.files.disk(image).bytes()
  }

  /** What the guest would read from a disk now. */
  diskBytes(name: string, target: string): Uint8Array {
    return this.imageBytes(this.image(name, target))
  }

  openImage(image: DiskImage, options: { evenIfInUse?: boolean } = {}): BlockSource {
    return openForReading(this, image, options)
  }

  openImageForWriting(image: DiskImage): BlockSink {
    return openForWriting(this, image)
  }

  /** An empty layer on a base that may be in use, as src/libvirt/overlay-file.ts makes one. Refuses a path that is taken. */
  async makeWritableCopy(path: string, base: DiskImage, sizeBytes: number | undefined): Promise<void> {
    await this.called()
    const image = { format: 'qcow2', storage: { file: path } } as const
    this.files.createImage(image, sizeBytes ?? this.files.disk(base).sizeBytes, base)
  }

  createImage(image: DiskImage, sizeBytes: number, backing?: DiskImage): void {
    this.files.createImage(image, sizeBytes, backing)
  }

  /** The QEMU process of a VM dies, as by kill -9. */
  killVm(name: string): void {
    breakBitmaps(this, this.vm(name))
    takeDown(this, this.vm(name))
  }

  /** The guest shuts itself down. */
  shutDown(name: string): void {
    takeDown(this, this.vm(name), true)
  }

  /** Why an image can not be opened, in QEMU's words; undefined when it can. */
  lockProblem(image: DiskImage, wanted: { writes: boolean; shareable?: boolean; except?: string }): string | undefined {
    const [top, ...lower] = this.#chain(image)
    if (top === undefined) return `Cannot access storage file '${storageKey(image.storage)}': No such file or directory`
    const others = [...this.vms.values()].filter((vm) => vm.uuid !== wanted.except)
    const written = (key: string) =>
      others.some((vm) => writtenKeys(vm).includes(key)) ||
      [...this.handles].some(({ mode, keys }) => mode === 'write' && keys[0] === key)
    if (lower.some(written) || (written(top) && wanted.shareable !== true))
      return `Failed to get shared "write" lock: is another process using the image [${top}]?`
    if (wanted.writes && wanted.shareable !== true && this.readersOf(top, wanted.except).length > 0)
      return `Failed to get "write" lock: is another process using the image [${top}]?`
    return undefined
  }

  /** Who reads an image, or lies on it: handles, and VMs other than the one named. */
  readersOf(key: string, except?: string): string[] {
    const handles = [...this.handles].filter(({ keys }) => keys.includes(key)).map(({ keys }) => `reader of ${keys[0]}`)
    const vms = [...this.vms.values()].filter((vm) => vm.uuid !== except && this.#openKeys(vm).includes(key))
    return [...handles, ...vms.map(nameOf)]
  }

  /** Every image a running VM has open. */
  #openKeys(vm: SimVm): string[] {
    if (vm.live === undefined) return []
    return readConfiguration(vm.live.configuration).disks.flatMap(({ image }) =>
      image === undefined ? [] : this.#chain(image),
    )
  }

  #chain(image: DiskImage): string[] {
    return [...(this.files.findDisk(image)?.keys ?? [])]
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.hypervisor[Symbol.asyncDispose]()
  }
}

export { uuidOf } from './sim-configuration.ts'

/** A world with these VMs. A VM of which nothing is said runs, has two raw disks (sda, sdb) and an agent. */
export function simulatedWorld(vms: Readonly<Record<string, SimVmSpec>>, options: SimWorldOptions = {}): SimWorld {
  const world = new SimWorld(options)
  for (const [name, spec] of Object.entries(vms)) addVm(world, name, spec)
  world.beginning = remember(world)
  return world
}

/** Adds a VM to a world. */
export function addVm(world: SimWorld, name: string, spec: SimVmSpec = {}): SimVm {
  const uuid = uuidOf(name)
  const disks = Object.entries(spec.disks ?? { sda: {}, sdb: {} }).map(([target, disk]) =>
    addDisk(world, name, target, disk),
  )
  const nvram = spec.nvram === undefined ? undefined : world.path(`/var/lib/libvirt/qemu/nvram/${name}_VARS.fd`)
  if (nvram !== undefined && spec.nvram !== undefined) world.files.put(nvram, spec.nvram)
  if (spec.tpm !== undefined) world.files.put(world.path(tpmPath(uuid)), spec.tpm)
  const configuration = writeConfiguration({
    name,
    uuid,
    disks,
    nics: spec.nics ?? [{ mac: macOf(name), type: 'network', source: 'default' }],
    hasTpm: spec.tpm !== undefined,
    hasAgent: spec.agent !== 'none',
    hasVirtioScsi: spec.virtioScsi ?? disks.some(({ bus }) => bus === 'scsi'),
    ...(nvram === undefined ? {} : { nvram }),
  })
  const vm: SimVm = {
    uuid,
    configuration,
    persistent: spec.persistent ?? true,
    live: undefined,
    managedSave: undefined,
    shutDownCleanly: spec.shutDownCleanly ?? true,
    busy: spec.busy,
    hasHypervisorSnapshots: spec.hasHypervisorSnapshots ?? false,
    beneath: new Map(),
    points: [],
  }
  world.vms.set(uuid, vm)
  const guest = world.guestOf(uuid)
  guest.agentRuns = spec.agent !== 'disconnected'
  Object.assign(guest.behaviour, spec.guest)
  Object.assign(world.requestorOf(uuid).behaviour, spec.requestor)
  setPower(world, vm, spec.power ?? 'running')
  return vm
}

export const tpmPath = (uuid: string): string => `/var/lib/libvirt/swtpm/${uuid}`

function setPower(world: SimWorld, vm: SimVm, power: PowerState): void {
  if (power === 'off') return
  bringUp(world, vm, { call: 'start', power: 'running', configuration: vm.configuration })
  if (power !== 'running') halt(world, vm)
  if (power !== 'saved' || vm.live === undefined) return
  vm.managedSave = { ...stateOf(world, vm.live), next: 'running' }
  takeDown(world, vm)
}

function addDisk(world: SimWorld, name: string, target: string, spec: SimDiskSpec): ConfiguredDisk {
  const { sizeBytes = 1024 * 1024, readOnly = spec.device === 'cdrom', shareable = false, transient = false } = spec
  const format = spec.format ?? (spec.template === undefined ? 'raw' : 'qcow2')
  const storage = spec.storage ?? { file: world.path(`/images/${name}-${target}.${format}`) }
  const common = {
    target,
    bus: spec.bus ?? 'scsi',
    device: spec.device ?? 'disk',
    readOnly,
    shareable,
    transient,
    ...(spec.serial === undefined ? {} : { serial: spec.serial }),
  }
  if (spec.sourceType !== undefined) return { ...common, sourceType: spec.sourceType }
  const image = { format, storage }
  const fill = (of: DiskImage, content: Uint8Array) => world.files.disk(of).write(0, content)
  const template =
    spec.template === undefined ? undefined : ({ format: 'raw', storage: { file: spec.template } } as const)
  if (template !== undefined && !world.files.has(spec.template ?? '')) {
    world.files.createImage(template, sizeBytes)
    fill(template, someBytes(spec.template ?? ''))
  }
  if (!world.files.has(storageKey(storage))) {
    world.files.createImage(image, sizeBytes, template)
    const content = spec.content ?? (template === undefined ? someBytes(`${name} ${target}`) : undefined)
    if (content !== undefined) fill(image, content)
  }
  const network = 'nbd' in storage ? 'nbd' : 'rbd' in storage ? 'rbd' : undefined
  return {
    ...common,
    sourceType: network === undefined ? ('file' in storage ? 'file' : 'block') : 'network',
    image,
    ...(network === undefined ? {} : { protocol: network }),
  }
}

/** 16 KiB that differ from name to name. */
function someBytes(name: string): Uint8Array {
  return Uint8Array.from(
    createHash('shake256', { outputLength: 16 * 1024 })
      .update(name)
      .digest(),
  )
}

const macOf = (name: string): string =>
  `52:54:00:${createHash('sha256').update(name).digest('hex').slice(0, 6).match(/../g)?.join(':')}`
