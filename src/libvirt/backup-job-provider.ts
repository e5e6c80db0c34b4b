/**
 * The hypervisor's backup jobs as a provider: the VM writes on to its own disks, what a write replaces goes into a scratch
 * file first, and the copies are read from QEMU itself until the job is ended. It records what changes from the instant on,
 * and tells what has changed since an earlier one. Everything slow (points that nobody needs, space, scratch files, undo
 * records) happens before Freeze; the commit is one call per VM. All disks of a VM go into one job.
 */
import { statfs } from 'node:fs/promises'
import { join } from 'node:path'
import { mapLimit, settleAll, withDeadline } from '../base/async.ts'
import type { UndoStep } from '../base/cleanup.ts'
import { type Clock, systemClock } from '../base/clock.ts'
import { describeError, Failure } from '../base/failure.ts'
import type { Range } from '../disk/extents.ts'
import { failure } from '../errors.ts'
import type { BackupJobCopy, BackupJobDisk, BackupJobPlan, ChangeTracking } from '../vm/backup-job.ts'
import type { Hypervisor } from '../vm/hypervisor.ts'
import type { BackupStamps, Changes } from '../vss/change-tracking.ts'
import type { Instant, Provider, ProviderSession, ShadowCopy, Volume } from '../vss/provider.ts'
import { scratchForecast } from './backup-job-forecast.ts'
import { endJobRecord, removeStampRecord } from './backup-job-undo.ts'
import { BackupJobWatch } from './backup-job-watch.ts'
import { type BitmapDecision, decide, isOwnedBy, pointNameOf, surplusPoints } from './bitmap-state.ts'

export interface BackupJobProviderOptions {
  readonly hypervisor: Hypervisor
  /** Where scratch files go; with room for what the guests write while they are backed up. */
  readonly scratchDirectory: string
  /** Short, because the path of a socket is. VMs' processes must be able to pass through it; each job has a directory in it. */
  readonly socketDirectory: string
  readonly clock?: Clock
  /** The backup gives up, before a guest meets a full disk, when less than this is left for scratch files. */
  readonly minimumFreeBytes?: number
  /** What a directory has free; of the host's file systems unless told. */
  readonly freeBytes?: (directory: string) => Promise<number>
}

interface JobDisk {
  readonly volume: Volume
  readonly scratch: string
  decision: BitmapDecision
  readonly track: boolean
}

interface VmJob {
  readonly vm: string
  readonly caption: string
  readonly disks: readonly JobDisk[]
  readonly socket: string
  readonly stamps: BackupStamps | undefined
  /** Name of the tracking point that is begun. */
  readonly point: string | undefined
  endStep?: UndoStep
  stampStep?: UndoStep
  kept: boolean
}

const leastFreeBytes = 64 * 1024 * 1024
const vmsAtOnce = 8

export class BackupJobProvider implements Provider {
  readonly id = 'c41f6d0a-6f0e-4a55-8f0e-3d1b7a9e5c02'
  readonly name = 'Umbra Backup Job Provider'
  readonly #options: BackupJobProviderOptions
  readonly #clock: Clock
  readonly #readers = new Set<BackupJobCopy>()
  readonly #tracking = new Map<string, Promise<ChangeTracking>>()
  #volumes: Volume[] = []
  #neededBytes = 0
  #jobs: VmJob[] = []
  #underWay: Promise<unknown>[] = []
  #watch: BackupJobWatch | undefined

  constructor(options: BackupJobProviderOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
  }

  supports({ properties }: Volume): number {
    return properties.kind === 'vm-disk' && properties.backupJob === true ? 20 : 0
  }

  async beginPrepareSnapshot(_session: ProviderSession, volume: Volume): Promise<void> {
    const tracking = await this.#trackingOf(vmOf(volume))
    this.#neededBytes += scratchForecast(tracking, volume.name, this.#clock.now())
    await this.#requireSpace(this.#neededBytes)
    this.#volumes.push(volume)
  }

  /** One look for all disks of a VM. */
  #trackingOf(vm: string): Promise<ChangeTracking> {
    const known = this.#tracking.get(vm) ?? this.#options.hypervisor.changeTracking(vm)
    this.#tracking.set(vm, known)
    return known
  }

  async endPrepareSnapshots(session: ProviderSession): Promise<void> {
    this.#volumes.sort((a, b) => a.id.localeCompare(b.id)) // they were prepared all at once
    const vms = [...new Set(this.#volumes.map(vmOf))]
    const preparing = mapLimit(vms, vmsAtOnce, (vm) => this.#prepare(session, vm))
    this.#underWay.push(preparing)
    await preparing
  }

  async #prepare(session: ProviderSession, vm: string): Promise<void> {
    const { hypervisor } = this.#options
    // Once more: PrepareForSnapshot lies between.
    const tracking = await hypervisor.changeTracking(vm)
    const job = this.#jobOf(session, vm, tracking)
    await this.#removeSurplus(session, job, tracking)
    this.#jobs.push(job)
    const plan = planOf(job)
    if (plan.point !== undefined)
      job.stampStep = await session.undo.defer(removeStampRecord(vm, job.caption, plan.point))
    job.endStep = await session.undo.defer(endJobRecord(vm, job.caption, inPlace(job)))
    await hypervisor.prepareBackupJob(vm, plan)
  }

  #jobOf({ snapshotSetId, stamps }: ProviderSession, vm: string, tracking: ChangeTracking): VmJob {
    const { scratchDirectory, socketDirectory } = this.#options
    const set = snapshotSetId.slice(0, 8)
    const volumes = this.#volumes.filter((volume) => vmOf(volume) === vm)
    const disks = volumes.map((volume): JobDisk => {
      const { untrackable } = tracking.disks.find(({ target }) => target === volume.name) ?? { untrackable: 'unknown' }
      return {
        volume,
        scratch: join(scratchDirectory, `${vm}-${volume.name}.umbra-${set}`),
        decision: decisionFor(tracking, volume, stamps),
        track: stamps !== undefined && untrackable === undefined,
      }
    })
    const point = stamps !== undefined && disks.some(({ track }) => track)
    return {
      vm,
      caption: volumes[0]?.caption ?? vm,
      disks,
      socket: join(socketDirectory, `${set}-${vm.slice(0, 8)}${vm.slice(-4)}.job`, 's'),
      stamps,
      point: point ? pointNameOf(stamps.owner, stamps.next) : undefined,
      kept: false,
    }
  }

  /** What earlier sessions left and nobody builds upon; it harms nobody if it stays until the next backup. */
  async #removeSurplus({ emit }: ProviderSession, job: VmJob, tracking: ChangeTracking): Promise<void> {
    const { stamps, vm, caption, disks } = job
    if (stamps === undefined) return
    const builtUpon = disks.flatMap(({ decision }) => (decision.state === 'recording' ? [decision.point] : []))
    const previous = disks.flatMap(({ volume }) => stamps.previous(volume))
    const surplus = surplusPoints(tracking, stamps.owner, new Set(builtUpon), new Set(previous))
    for (const name of surplus.filter((each) => each !== job.point)) {
      try {
        await this.#options.hypervisor.removeTrackingPoint(vm, name)
      } catch (error) {
        emit({ event: 'TrackingPointLeft', vm: caption, detail: `${name}: ${describeError(error)}` })
      }
    }
  }

  async preCommitSnapshots(): Promise<void> {
    // Nothing: the jobs were planned and registered before Freeze.
  }

  async commitSnapshots(session: ProviderSession, volumes: readonly Volume[]): Promise<readonly Instant[]> {
    const jobs = this.#jobs.filter(({ disks }) => disks.some(({ volume }) => volumes.includes(volume)))
    const commits = settleAll(jobs, async (job) => {
      const beganMs = this.#clock.monotonicMs()
      await this.#begin(job)
      const endedMs = this.#clock.monotonicMs()
      session.emit({ event: 'Commit', vm: job.caption, detail: job.disks.map(({ volume }) => volume.name).join(', ') })
      this.#watchOf(session).add({ vm: job.vm, caption: job.caption, job: inPlace(job) })
      return { component: job.disks[0]?.volume.component ?? job.vm, beganMs, endedMs }
    })
    this.#underWay.push(commits)
    const settled = await commits
    const errors = settled.flatMap(({ outcome }) => (outcome.ok ? [] : [outcome.error]))
    if (errors.length > 0) throw failure('VSS_PROVIDER_VETO', { reasons: errors.map(describeError) }, errors[0])
    return settled.flatMap(({ outcome }) => (outcome.ok ? [outcome.value] : []))
  }

  /** A bitmap that is found broken only now costs its disk the changes, not the VM its backup. */
  async #begin(job: VmJob): Promise<void> {
    for (;;) {
      try {
        await this.#options.hypervisor.beginBackupJob(job.vm, planOf(job))
        return
      } catch (error) {
        const disk = doubtfulDisk(job, error)
        if (disk === undefined) throw error
        disk.decision = { state: 'lost', reason: describeError(error) }
      }
    }
  }

  async postCommitSnapshots(): Promise<void> {
    // Nothing: the call left nothing to finish.
  }

  async preFinalCommitSnapshots(session: ProviderSession): Promise<readonly ShadowCopy[]> {
    return this.#jobs.flatMap((job) => job.disks.map((disk) => this.#copyOf(session, job, disk)))
  }

  async postFinalCommitSnapshots(): Promise<void> {
    // The copies were never anything but read-only.
  }

  #copyOf({ snapshotSetId }: ProviderSession, job: VmJob, { volume, decision }: JobDisk): ShadowCopy {
    const changes: Changes =
      decision.state === 'recording'
        ? { since: decision.stamp, ranges: () => this.#changes(job, volume) }
        : { since: undefined, reason: decision.reason }
    return {
      id: `${snapshotSetId}/${volume.id}`,
      volume,
      provider: this.id,
      open: () => this.#open(job, volume),
      ...(job.stamps === undefined ? {} : { changes }),
    }
  }

  /** Its reader is closed with the set at the latest. */
  async #open(job: VmJob, { name }: Volume): Promise<BackupJobCopy> {
    const copy = await this.#options.hypervisor.openBackupJob(job.vm, planOf(job), name)
    this.#readers.add(copy)
    const dispose = async () => {
      if (this.#readers.delete(copy)) await copy[Symbol.asyncDispose]()
    }
    return {
      sizeBytes: copy.sizeBytes,
      read: (offset, target) => copy.read(offset, target),
      extents: (offset, length) => copy.extents(offset, length),
      changes: () => copy.changes(),
      [Symbol.asyncDispose]: dispose,
    }
  }

  async *#changes(job: VmJob, volume: Volume): AsyncGenerator<Range> {
    await using copy = await this.#open(job, volume)
    yield* copy.changes()
  }

  /** The new points stay. What is older of the same owner goes; if that fails, the next backup sees to it. */
  async keepStamps({ undo, emit }: ProviderSession): Promise<void> {
    await mapLimit(this.#jobs, vmsAtOnce, async (job) => {
      const { stamps, stampStep, point } = job
      if (stamps === undefined || job.kept) return
      job.kept = true
      if (stampStep !== undefined) undo.forget(stampStep)
      delete job.stampStep
      try {
        const { points } = await this.#options.hypervisor.changeTracking(job.vm)
        for (const { name } of points)
          if (isOwnedBy(stamps.owner, name) && name !== point)
            await this.#options.hypervisor.removeTrackingPoint(job.vm, name)
      } catch (error) {
        emit({ event: 'TrackingPointLeft', vm: job.caption, detail: describeError(error) })
      }
    })
  }

  /** Waits for a begin that is still on its way (law 8), then ends whatever it began. */
  async abortSnapshots(session: ProviderSession): Promise<void> {
    await this.deleteSnapshots(session)
  }

  async deleteSnapshots(session: ProviderSession): Promise<void> {
    const ended = Promise.allSettled(this.#underWay)
    await withDeadline(ended, { clock: this.#clock, limitMs: 60_000, what: 'the begin of a backup job' })
    await this.#watch?.[Symbol.asyncDispose]()
    this.#watch = undefined
    await Promise.all([...this.#readers].map((reader) => reader[Symbol.asyncDispose]()))
    this.#readers.clear()
    const errors = (await mapLimit(this.#jobs, vmsAtOnce, (job) => this.#end(session, job))).flat()
    if (errors.length > 0) throw failure('CLEANUP_INCOMPLETE', { steps: errors })
    this.#jobs = []
    this.#volumes = []
    this.#tracking.clear()
    this.#neededBytes = 0
  }

  /** Ends the job, then takes back a point that nobody keeps; answers what could not be done. */
  async #end({ undo, emit }: ProviderSession, job: VmJob): Promise<string[]> {
    const errors: string[] = []
    for (const step of ['endStep', 'stampStep'] as const) {
      const registered = job[step]
      if (registered === undefined) continue
      try {
        await undo.run(registered)
        delete job[step]
        if (step === 'endStep') emit({ event: 'EndBackupJob', vm: job.caption })
      } catch (error) {
        errors.push(describeError(error))
      }
    }
    return errors
  }

  #watchOf(session: ProviderSession): BackupJobWatch {
    this.#watch ??= new BackupJobWatch({
      hypervisor: this.#options.hypervisor,
      clock: this.#clock,
      requireSpace: () => this.#requireSpace(0),
      abandon: (reason) => session.abandon(reason),
    })
    return this.#watch
  }

  async #requireSpace(forecastBytes: number): Promise<void> {
    const { scratchDirectory: path, minimumFreeBytes = leastFreeBytes, freeBytes: look = freeOf } = this.#options
    const neededBytes = Math.max(minimumFreeBytes, forecastBytes)
    const freeBytes = await look(path)
    if (freeBytes < neededBytes) throw failure('VSS_INSUFFICIENT_STORAGE', { path, freeBytes, neededBytes })
  }
}

const vmOf = ({ properties }: Volume): string => String(properties.vm)

async function freeOf(directory: string): Promise<number> {
  const { bavail, bsize } = await statfs(directory)
  return bavail * bsize
}

const inPlace = ({ socket, disks }: VmJob) => ({ socket, scratch: disks.map(({ scratch }) => scratch) })

function planOf({ socket, disks, point }: VmJob): BackupJobPlan {
  const planned = disks.map(({ volume, scratch, decision, track }): BackupJobDisk => {
    const since = decision.state === 'recording' ? { since: decision.point } : {}
    return { target: volume.name, scratch, track, ...since }
  })
  return { socket, disks: planned, ...(point === undefined ? {} : { point }) }
}

function decisionFor(tracking: ChangeTracking, volume: Volume, stamps: BackupStamps | undefined): BitmapDecision {
  if (stamps === undefined) return { state: 'none', reason: 'nobody asked what has changed' }
  return decide(tracking, volume.name, stamps.owner, stamps.previous(volume))
}

/** The disk whose point can not be built upon, if the hypervisor named one that builds on a point. */
function doubtfulDisk({ disks }: VmJob, error: unknown): JobDisk | undefined {
  if (!(error instanceof Failure) || error.code !== 'TRACKING_DOUBTFUL') return undefined
  const { target } = error.context
  return disks.find(({ volume, decision }) => volume.name === target && decision.state === 'recording')
}
