/**
 * What a hypervisor brings to its contract, and the scene every test plays in: whatever a test did, the VMs are as they
 * were when it ends, so that one pair of real VMs can serve all tests.
 */
import assert from 'node:assert/strict'
import { setTimeout } from 'node:timers/promises'
import { Failure } from '../../src/base/failure.ts'
import type {
  AttachedCopy,
  DiskImage,
  Hypervisor,
  OverlayInPlace,
  OverlayPlan,
  PowerState,
  VmFacts,
} from '../../src/vm/hypervisor.ts'

export interface HypervisorContractWorld extends AsyncDisposable {
  readonly hypervisor: Hypervisor
  /** Running, two disks that can carry overlays, an agent that answers. */
  readonly twoDisks: { readonly name: string; readonly targets: readonly [string, string] }
  /** Off, with at least one disk that can carry an overlay. */
  readonly off: { readonly name: string; readonly target: string }
  /** A path of the host at which there is nothing, where the hypervisor may write. */
  freshPath(name: string): string
  fileExists(path: string): Promise<boolean>
  createFile(path: string): Promise<void>
  removeFile(path: string): Promise<void>
  /** Writes the marker to a disk from inside the running VM, synced when it resolves. */
  writeInside(vm: string, target: string, marker: string): Promise<void>
  /** Whether an image with all that lies beneath contains the marker, also while a VM uses it. */
  contains(image: DiskImage, marker: string): Promise<boolean>
  /** Something that is another one after every boot of the guest, and the same after a saved state. */
  bootOf(vm: string): Promise<string>
  /** An empty layer above an image that is in use. */
  makeWritableCopy(path: string, base: DiskImage): Promise<void>
  /** Writes the marker, from inside the running VM, to the attached copy with that serial; synced when it resolves. */
  writeToCopy(vm: string, serial: string, marker: string): Promise<void>

  /** How long a guest may take until its agent answers. */
  readonly agentMs?: number
  /** Programs in the guest; /bin/echo, /bin/false unless told. `flood` writes more than 1 MiB. */
  readonly programs?: {
    readonly echo?: string
    readonly fail?: string
    readonly flood?: { readonly path: string; readonly args: readonly string[] }
  }
  /** Puts a fresh overlay file on the host that no VM uses, as a crash before the transaction leaves it. */
  strayOverlay?(path: string, base: DiskImage): Promise<void>
  /** Opens an image from outside; while it is open nobody can write to it. */
  openReader?(image: DiskImage): Promise<AsyncDisposable>
  /** What the two logs of a workload say that writes to both disks in turn, in two images. */
  verifyRecords?(a: DiskImage, b: DiskImage): Promise<{ crossConsistent: boolean; quiesced: boolean }>
  /** The next freeze fails, and freezes `afterMs` later. */
  loseNextFreeze?(vm: string, afterMs: number): Promise<void>
  /** The guest thaws by itself `afterMs` after a freeze. */
  thawBySelf?(vm: string, afterMs: number): Promise<AsyncDisposable>
  /** The agent does not answer until disposal. */
  silenceAgent?(vm: string): Promise<AsyncDisposable>
  /** Lets the VM meet a full disk on its next write to an overlay; disposal makes room again. */
  fillHost?(vm: string): Promise<AsyncDisposable>
  /** kill -9 for the process of the running VM; it is off when it resolves. */
  kill?(vm: string): Promise<void>
  removeNetwork?(name: string): Promise<void>
  /** A running VM without a virtio-scsi controller. */
  readonly withoutScsi?: string
  /** Attached copies do not go until disposal. */
  hangDetach?(vm: string): Promise<AsyncDisposable>
  /** Whether the guest of the running VM can take shadow copies of all its volumes on the two disks. */
  readonly takesShadowCopies?: boolean
}

let markers = 0

/** Rejects with one of these codes. */
export async function rejectsWith(work: Promise<unknown>, ...codes: string[]): Promise<Failure> {
  const error = await work.then(
    () => assert.fail(`resolved; expected ${codes.join(' or ')}`),
    (thrown: unknown) => thrown,
  )
  assert.ok(error instanceof Failure, `not a coded failure: ${String(error)}`)
  if (codes.length > 0) assert.ok(codes.includes(error.code), `${error.code}: ${error.message}`)
  return error
}

export class HypervisorScene implements AsyncDisposable {
  readonly world: HypervisorContractWorld
  readonly hypervisor: Hypervisor
  /** The running VM, as it was at the beginning. */
  readonly running: VmFacts
  /** The VM that is off. */
  readonly off: VmFacts
  readonly targets: readonly [string, string]
  #overlays: { uuid: string; overlay: OverlayInPlace }[] = []
  readonly #files: string[] = []
  readonly #attached = new Set<string>()

  constructor(world: HypervisorContractWorld, running: VmFacts, off: VmFacts) {
    this.world = world
    this.hypervisor = world.hypervisor
    this.running = running
    this.off = off
    this.targets = world.twoDisks.targets
  }

  static async begin(world: HypervisorContractWorld): Promise<HypervisorScene> {
    const running = await world.hypervisor.vm(world.twoDisks.name)
    const off = await world.hypervisor.vm(world.off.name)
    assert.equal(running.power, 'running', 'the world has to begin with a running VM')
    assert.equal(off.power, 'off', 'the world has to begin with a VM that is off')
    return new HypervisorScene(world, running, off)
  }

  get guest() {
    return this.hypervisor.guest(this.running.uuid)
  }

  power(): Promise<PowerState | 'gone'> {
    return this.hypervisor.power(this.running.uuid)
  }

  /** A path that is free now and after the test. */
  path(name: string): string {
    const path = this.world.freshPath(name)
    this.#files.push(path)
    return path
  }

  async image(target: string, uuid = this.running.uuid): Promise<DiskImage> {
    const { disks } = await this.hypervisor.vm(uuid)
    const image = disks.find((disk) => disk.target === target)?.image
    assert.ok(image, `${target} has no image`)
    return image
  }

  /** Overlays on these disks in one transaction, to be merged at the end whatever happens. */
  async overlay(
    targets: readonly string[] = this.targets,
    uuid = this.running.uuid,
    plans: readonly OverlayPlan[] = targets.map((target) => ({ target, overlay: this.path(`overlay-${target}`) })),
  ): Promise<OverlayInPlace[]> {
    const overlays: OverlayInPlace[] = []
    for (const plan of plans) overlays.push({ ...plan, base: await this.image(plan.target, uuid) })
    this.#overlays.push(...overlays.map((overlay) => ({ uuid, overlay })))
    await this.hypervisor.createOverlays(uuid, plans)
    return overlays
  }

  async merge(overlays: readonly OverlayInPlace[], uuid = this.running.uuid): Promise<void> {
    for (const overlay of overlays) {
      await this.hypervisor.mergeOverlay(uuid, overlay)
      this.#overlays = this.#overlays.filter((placed) => placed.overlay !== overlay)
    }
  }

  /** Attached to the running VM until the end at the latest. */
  async attach(copy: AttachedCopy): Promise<void> {
    this.#attached.add(copy.serial)
    await this.hypervisor.attachCopy(this.running.uuid, copy)
  }

  /** Writes something unmistakable from inside the running VM. */
  async mark(target: string = this.targets[0]): Promise<string> {
    const marker = `umbra-contract-${process.pid}-${++markers}`
    await this.world.writeInside(this.running.name, target, marker)
    return marker
  }

  contains(image: DiskImage, marker: string): Promise<boolean> {
    return this.world.contains(image, marker)
  }

  async isWhereItWas(): Promise<void> {
    const now = await this.hypervisor.vm(this.running.uuid)
    const places = ({ disks }: VmFacts) => disks.map(({ target, location, backing }) => ({ target, location, backing }))
    assert.deepEqual(places(now), places(this.running))
    assert.equal(now.configuration, this.running.configuration)
  }

  /** Waits until the agent answers, as after a boot. */
  async agentAnswers(): Promise<void> {
    const endMs = Date.now() + (this.world.agentMs ?? 60_000)
    for (;;) {
      try {
        await this.guest.ping()
        return
      } catch (error) {
        if (Date.now() > endMs) throw error
        await setTimeout(100)
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const { hypervisor } = this
    const { uuid, configuration } = this.running
    if ((await this.power()) === 'gone') await hypervisor.define(configuration)
    if (!(await hypervisor.vm(uuid)).persistent) await hypervisor.define(configuration)
    if ((await this.power()) === 'saved') await hypervisor.start(uuid)
    for (const serial of this.#attached) await hypervisor.detachCopy(uuid, serial)
    for (const placed of this.#overlays.reverse()) await hypervisor.mergeOverlay(placed.uuid, placed.overlay)
    if ((await this.power()) === 'off') await hypervisor.start(uuid)
    await hypervisor.resume(uuid)
    await this.agentAnswers()
    if ((await this.guest.freezeStatus()) === 'frozen') await this.guest.thaw()
    if ((await hypervisor.power(this.off.uuid)) === 'gone') await hypervisor.define(this.off.configuration)
    await hypervisor.turnOff(this.off.uuid)
    for (const file of this.#files) if (await this.world.fileExists(file)) await this.world.removeFile(file)
  }
}
