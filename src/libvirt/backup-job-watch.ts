/**
 * Watches backup jobs while their copies are read. A guest must never stand still because it is being backed up: when the
 * room for scratch files runs out, or a VM has met an error on a disk, its job is ended at once and the session abandoned.
 */
import type { Clock } from '../base/clock.ts'
import { failure } from '../errors.ts'
import type { BackupJobInPlace } from '../vm/backup-job.ts'
import type { Hypervisor } from '../vm/hypervisor.ts'

export interface WatchedJob {
  readonly vm: string
  readonly caption: string
  readonly job: BackupJobInPlace
}

export interface BackupJobWatchOptions {
  readonly hypervisor: Hypervisor
  readonly clock: Clock
  /** Rejects when too little is left, saying where and how much. */
  readonly requireSpace: () => Promise<void>
  readonly abandon: (reason: Error) => void
}

const everyMs = 1000
/** Of many VMs only so many are looked at in one round; one of which the hypervisor tells something is looked at at once. */
const looksPerRound = 4

export class BackupJobWatch implements AsyncDisposable {
  readonly #options: BackupJobWatchOptions
  readonly #jobs: WatchedJob[] = []
  readonly #hints: Promise<AsyncDisposable | undefined>[] = []
  readonly #underWay = new Set<Promise<void>>()
  #timer: { cancel(): void } | undefined
  #next = 0
  #watches = true

  constructor(options: BackupJobWatchOptions) {
    this.#options = options
  }

  /** Watches one more. Touches nothing by itself: it may be called between Freeze and Thaw. */
  add(watched: WatchedJob): void {
    this.#jobs.push(watched)
    this.#timer ??= this.#options.clock.timer(everyMs, () => this.#start(this.#round()))
  }

  #start(work: Promise<void>): void {
    const done: Promise<void> = work.finally(() => this.#underWay.delete(done))
    this.#underWay.add(done)
  }

  async #round(): Promise<void> {
    const { clock, requireSpace } = this.#options
    for (const { vm } of this.#jobs.slice(this.#hints.length)) this.#hints.push(this.#listen(vm))
    try {
      await requireSpace()
    } catch (error) {
      await this.#breakOff(this.#jobs, error instanceof Error ? error : new Error(String(error)))
    }
    const count = Math.min(looksPerRound, this.#jobs.length)
    const turn = Array.from({ length: count }, (_, i) => this.#jobs[(this.#next + i) % this.#jobs.length])
    this.#next += count
    for (const watched of turn) if (watched !== undefined) await this.#look(watched)
    if (this.#watches) this.#timer = clock.timer(everyMs, () => this.#start(this.#round()))
  }

  async #listen(vm: string): Promise<AsyncDisposable | undefined> {
    const look = () => {
      const watched = this.#jobs.find((each) => each.vm === vm)
      if (watched !== undefined && this.#watches) this.#start(this.#look(watched))
    }
    return await this.#options.hypervisor.watchBackupJob(vm, look).catch(() => undefined)
  }

  async #look(watched: WatchedJob): Promise<void> {
    if (!this.#watches) return
    const { hypervisor, requireSpace } = this.#options
    const { vm, caption, job } = watched
    // Nobody there to ask: whoever reads the copies will notice.
    const status = await hypervisor.backupJobStatus(vm, job).catch(() => undefined)
    if (status === undefined || !this.#watches) return
    if (status.pausedByIoError) {
      const reason = 'the VM met an error on a disk, mostly a full one, and stood still'
      const told = failure('BACKUP_JOB_LOST', { vm: caption, reason })
      await this.#breakOff(
        [watched],
        await requireSpace().then(
          () => told,
          (full: Error) => full,
        ),
      )
    } else if (status.state === 'ended') {
      await this.#breakOff([], failure('BACKUP_JOB_LOST', { vm: caption, reason: 'the hypervisor does not know it' }))
    }
  }

  /** The jobs first, since a guest may be waiting; what is left of them is taken back with the set. */
  async #breakOff(jobs: readonly WatchedJob[], reason: Error): Promise<void> {
    if (!this.#watches) return
    this.#watches = false
    this.#options.abandon(reason)
    for (const { vm, job } of jobs) await this.#options.hypervisor.endBackupJob(vm, job).catch(() => undefined)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#watches = false
    this.#timer?.cancel()
    await Promise.allSettled(this.#underWay)
    this.#timer?.cancel()
    for (const hint of this.#hints) await (await hint)?.[Symbol.asyncDispose]()
  }
}
