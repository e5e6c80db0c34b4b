/**
 * The VM of an instant restore: planned, registered, started, its disks pulled in while it runs or is off, and removed.
 * What takes QEMU's own tools comes in by `InstantTools`.
 */
import { type Clock, systemClock } from '../base/clock.ts'
import { invariant } from '../base/failure.ts'
import { failure } from '../errors.ts'
import type { PullOptions, RunningDisk } from '../vss/instant-disk.ts'
import type { RestoreRequest, StoredComponent } from '../vss/restore-plan.ts'
import type { ConfigurationEditor, DiskPulls, Hypervisor, PowerState, ServedBacking } from './hypervisor.ts'
import { asOverlays, editOf, type InstantVmPlan, planInstant } from './instant-plan.ts'
import { unconnectedNetwork } from './restore-networks.ts'
import type { VmRestorePlan } from './restore-plan.ts'
import { VmRestorePlanner } from './restore-planner.ts'

export interface InstantTools {
  readonly hypervisor: Hypervisor & DiskPulls
  readonly editor: ConfigurationEditor
  readonly workDirectory: string
  readonly hasBacking: (overlay: string) => Promise<boolean>
  readonly pullOffline: (overlay: string, signal: AbortSignal) => Promise<void>
  readonly clock?: Clock
}

const shortestPauseMs = 50
const longestPauseMs = 1000
/** What made a pull fail may have passed; that it fails again may not. */
const mostFailed = 1

export class InstantVm {
  readonly #tools: InstantTools
  readonly #clock: Clock

  constructor(tools: InstantTools) {
    this.#tools = tools
    this.#clock = tools.clock ?? systemClock
  }

  /** The plan, and the configuration it was made for. */
  async plan(
    stored: StoredComponent,
    request: Required<Pick<RestoreRequest, 'as'>> & RestoreRequest,
  ): Promise<{ plan: InstantVmPlan; configuration: string }> {
    const made: { plan: VmRestorePlan; configuration: string }[] = []
    const { hypervisor, workDirectory, editor } = this.#tools
    const collect = { editor, add: (_: unknown, planned: (typeof made)[number]) => void made.push(planned) }
    await new VmRestorePlanner(hypervisor, collect, workDirectory).planRestore(asOverlays(stored), request)
    const [only] = made
    invariant(only !== undefined, 'a planner hands over its plan')
    return { plan: planInstant(only.plan), configuration: only.configuration }
  }

  async register(
    { plan, configuration }: { plan: InstantVmPlan; configuration: string },
    backingOf: (target: string) => ServedBacking,
  ): Promise<void> {
    const { hypervisor, editor } = this.#tools
    if (plan.needsUnconnected) await hypervisor.ensureIsolatedNetwork(unconnectedNetwork)
    await hypervisor.define(editor.edit(configuration, editOf(plan, backingOf)))
  }

  start(uuid: string): Promise<void> {
    return this.#tools.hypervisor.start(uuid)
  }

  power(uuid: string): Promise<PowerState | 'gone'> {
    return this.#tools.hypervisor.power(uuid)
  }

  /** Turns it off and unregisters it. Idempotent. */
  async remove(uuid: string): Promise<void> {
    const { hypervisor } = this.#tools
    if ((await hypervisor.power(uuid)) === 'gone') return
    await hypervisor.turnOff(uuid)
    await hypervisor.undefine(uuid, { discardSaved: true })
  }

  /** True when nothing served lies beneath the disk any more: not now, not at the next start, not by the file itself. */
  async isPulled(uuid: string, { target, overlay }: RunningDisk): Promise<boolean> {
    if (await this.#tools.hasBacking(overlay)) return false
    if ((await this.#tools.hypervisor.power(uuid)) === 'gone') return true
    const { disks } = await this.#tools.hypervisor.vm(uuid)
    return disks.find((disk) => disk.target === target)?.backing.length === 0
  }

  /** Begins to pull the disks of a VM that runs; false for one that does not. */
  async beginPulls(uuid: string, disks: readonly RunningDisk[]): Promise<boolean> {
    for (const disk of disks) {
      const power = await this.power(uuid)
      if (power !== 'running' && power !== 'paused') return false
      if (!(await this.isPulled(uuid, disk))) await this.#tools.hypervisor.beginPull(uuid, disk.target)
    }
    return true
  }

  /**
   * Pulls one disk in; done when it is a disk of its own. Whether the VM runs may change meanwhile. Rejects with
   * INSTANT_NOT_PULLED when the hypervisor gave up; then what was written and pulled until then is all there.
   */
  async pull(uuid: string, disk: RunningDisk, options: PullOptions): Promise<void> {
    const { pullOffline, hypervisor } = this.#tools
    for (let failed = 0; ; ) {
      options.signal.throwIfAborted()
      const power = await hypervisor.power(uuid)
      if (power === 'saved') {
        const reason = 'its disks can not be pulled in while its memory is saved; start it'
        throw failure('VM_STATE', { vm: uuid, state: power, reason })
      }
      if (await this.isPulled(uuid, disk)) return await this.#forgetBacking(uuid, disk)
      if (failed > mostFailed) throw failure('INSTANT_NOT_PULLED', { vm: uuid, reason: 'the hypervisor gave up' })
      if (power === 'running' || power === 'paused') {
        if (!(await this.#pullLive(uuid, disk, options))) failed += 1
        continue
      }
      await pullOffline(disk.overlay, options.signal)
      await this.#forgetBacking(uuid, disk)
    }
  }

  /** True when the pull ended with the disk pulled in, or with the VM. */
  async #pullLive(uuid: string, disk: RunningDisk, { signal, onProgress }: PullOptions): Promise<boolean> {
    const { hypervisor } = this.#tools
    await hypervisor.beginPull(uuid, disk.target)
    for (let pauseMs = shortestPauseMs; ; pauseMs = Math.min(pauseMs * 1.5, longestPauseMs)) {
      const progress = await hypervisor.pullProgress(uuid, disk.target)
      if (progress === undefined) break
      onProgress(progress.doneBytes, progress.totalBytes)
      try {
        await this.#clock.sleep(pauseMs, signal)
      } catch (error) {
        await hypervisor.endPull(uuid, disk.target)
        throw error
      }
    }
    const power = await hypervisor.power(uuid)
    return power === 'off' || power === 'gone' || (await this.isPulled(uuid, disk))
  }

  /** The definition may still name what lay beneath: libvirt opens what it names, whatever the file itself says. */
  async #forgetBacking(uuid: string, { target, overlay }: RunningDisk): Promise<void> {
    const { hypervisor, editor } = this.#tools
    if ((await hypervisor.power(uuid)) === 'gone') return
    const { configuration } = await hypervisor.vm(uuid)
    const alone = editor.edit(configuration, { disks: { [target]: { file: overlay, format: 'qcow2' } } })
    if (alone !== editor.edit(configuration, {})) await hypervisor.define(alone)
  }
}
