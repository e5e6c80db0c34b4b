/**
 * Backup jobs and tracking points of one test of the contract: planned with fresh paths, and all gone at its end.
 */
import assert from 'node:assert/strict'
import type { BackupJobDisk, BackupJobInPlace, BackupJobPlan, TrackedDisk } from '../../src/vm/backup-job.ts'
import type { HypervisorScene } from './hypervisor-scene.ts'

let points = 0

export class Jobs implements AsyncDisposable {
  readonly #scene: HypervisorScene
  readonly #planned: BackupJobPlan[] = []
  #trackable: readonly string[] = []

  constructor(scene: HypervisorScene) {
    this.#scene = scene
  }

  name(owner = '01234567'): string {
    return `umbra-${owner}-20260101T000000Z-${String(++points).padStart(4, '0')}`
  }

  tracking() {
    return this.#scene.hypervisor.changeTracking(this.#scene.running.uuid)
  }

  async names(): Promise<string[]> {
    return (await this.tracking()).points.map(({ name }) => name)
  }

  /** What all points tell of one disk, oldest first. */
  async tracked(target: string): Promise<TrackedDisk[]> {
    const all = (await this.tracking()).points.flatMap(({ disks }) => disks)
    return all.filter((disk) => disk.target === target)
  }

  async trackable(): Promise<readonly [string, ...string[]]> {
    const { disks } = await this.tracking()
    const able = disks.filter(({ untrackable }) => untrackable === undefined).map(({ target }) => target)
    const [first, ...others] = this.#scene.targets.filter((target) => able.includes(target))
    assert.ok(first !== undefined, 'the world needs a disk whose changes can be tracked')
    this.#trackable = [first, ...others]
    return [first, ...others]
  }

  /** All of the scene's disks; those that can be tracked are, when a point is begun. */
  plan({ point, since }: { point?: string; since?: string | undefined } = {}): BackupJobPlan {
    const disks = this.#scene.targets.map((target): BackupJobDisk => {
      const track = point !== undefined && this.#trackable.includes(target)
      const builds = since !== undefined && this.#trackable.includes(target)
      return { target, scratch: this.#scene.path(`scratch-${target}`), track, ...(builds ? { since } : {}) }
    })
    const plan = { socket: `${this.#scene.path('job')}/s`, disks, ...(point === undefined ? {} : { point }) }
    this.#planned.push(plan)
    return plan
  }

  async begin(how: { point?: string; since?: string | undefined } = {}): Promise<BackupJobPlan> {
    if (this.#trackable.length === 0) await this.trackable()
    const plan = this.plan(how)
    await this.#scene.hypervisor.prepareBackupJob(this.#scene.running.uuid, plan)
    await this.#scene.hypervisor.beginBackupJob(this.#scene.running.uuid, plan)
    return plan
  }

  #inPlace({ socket, disks }: BackupJobPlan): BackupJobInPlace {
    return { socket, scratch: disks.map(({ scratch }) => scratch) }
  }

  status(plan: BackupJobPlan) {
    return this.#scene.hypervisor.backupJobStatus(this.#scene.running.uuid, this.#inPlace(plan))
  }

  async end(plan: BackupJobPlan): Promise<void> {
    await this.#scene.hypervisor.endBackupJob(this.#scene.running.uuid, this.#inPlace(plan))
  }

  async remove(point: string | undefined): Promise<void> {
    await this.#scene.hypervisor.removeTrackingPoint(this.#scene.running.uuid, point ?? '')
  }

  /** The whole of a copy. */
  async read(plan: BackupJobPlan, target: string): Promise<Buffer> {
    await using copy = await this.#scene.hypervisor.openBackupJob(this.#scene.running.uuid, plan, target)
    const bytes = Buffer.alloc(copy.sizeBytes)
    await copy.read(0, bytes)
    return bytes
  }

  /** Puts what has changed in a copy into `bytes`; answers how much that was. */
  async patch(plan: BackupJobPlan, target: string, bytes: Buffer): Promise<{ length: number }> {
    await using copy = await this.#scene.hypervisor.openBackupJob(this.#scene.running.uuid, plan, target)
    let length = 0
    let reached = 0
    for await (const range of copy.changes()) {
      assert.ok(range.offset >= reached && range.length > 0, 'changes ascend')
      reached = range.offset + range.length
      length += range.length
      await copy.read(range.offset, bytes.subarray(range.offset, reached))
    }
    assert.ok(reached <= copy.sizeBytes)
    return { length }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const { hypervisor, running } = this.#scene
    for (const plan of this.#planned) await this.end(plan)
    if ((await hypervisor.power(running.uuid)) === 'off') {
      // Bitmaps can only be reached while the VM runs.
      await hypervisor.start(running.uuid)
      await this.#scene.agentAnswers()
    }
    const { points: left, forgotten } = await this.tracking()
    for (const name of [...left.map(({ name }) => name), ...forgotten]) await this.remove(name)
  }
}
