/**
 * A simulated host with a requester on it that can be killed. `Host` is what outlives a process: the world, the state
 * directory, the repository. `Incarnation` is one process: faulty ports, locks that the kernel takes from the dead, a
 * watchdog that outlives it. Everything else is the product: session, journal, writer, provider, repository, restore.
 */
import { accessSync, constants, mkdirSync, mkdtempSync } from 'node:fs'
import { readFile, rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import { runUndo, type UndoHandlers } from '../../src/base/cleanup.ts'
import type { Clock } from '../../src/base/clock.ts'
import type { BlockSink } from '../../src/disk/block-device.ts'
import { BackupJobProvider } from '../../src/libvirt/backup-job-provider.ts'
import { backupJobUndoHandlers } from '../../src/libvirt/backup-job-undo.ts'
import { domainXmlEditor } from '../../src/libvirt/configuration-editor.ts'
import { OverlayProvider } from '../../src/libvirt/overlay-provider.ts'
import { createRepository, openRepository } from '../../src/repository/repository.ts'
import { type BackupResult, backup } from '../../src/requester/backup.ts'
import { tryLock } from '../../src/requester/host-lock.ts'
import { type Recovered, readJournal, recoverInterrupted } from '../../src/requester/journal.ts'
import { type RestoreResult, restore } from '../../src/requester/restore.ts'
import { journalDirectory, type SessionOptions, workDirectory } from '../../src/requester/session.ts'
import { followSession, linesOf, type Watchdog } from '../../src/requester/watchdog.ts'
import type { DiskImage, Hypervisor } from '../../src/vm/hypervisor.ts'
import { type BackupPolicy, defaultPolicy } from '../../src/vm/method.ts'
import { type OpenAutoRecovery, openAutoRecovery } from '../../src/vm/recovery-ways.ts'
import { VmRestore } from '../../src/vm/restore.ts'
import { VmRestorePlanner } from '../../src/vm/restore-planner.ts'
import { vmUndoHandlers } from '../../src/vm/undo.ts'
import { VmWriter } from '../../src/vm/vm-writer.ts'
import type { RestoreRequest } from '../../src/vss/restore-plan.ts'
import { defaultLimits, type SessionEvent } from '../../src/vss/vocabulary.ts'
import { FaultPlan, faulty } from '../sim/faulty.ts'
import { simRecoveryTools } from '../sim/sim-recovery.ts'
import { type SimVmSpec, type SimWorld, simulatedWorld } from '../sim/sim-world.ts'
import { FaultClock, idle, stuck } from './fault-clock.ts'
import { closeFilesOf, withFaultyFiles } from './faulty-files.ts'

export const everyVm = { names: [], all: true, except: [] } as const
export const inPlace: RestoreRequest = { networks: {}, start: false }

/** Beyond the window; the watchdog's own. */
const graceMs = 2000

let directoryOfProcess: string | undefined

export class Host implements AsyncDisposable {
  readonly directory: string
  readonly repository: string
  readonly clock = new FaultClock()
  readonly world: SimWorld
  /** The longest that any guest has been frozen. */
  longestFreezeMs = 0
  readonly #frozenSince = new Map<string, number>()
  #lastMs = 0

  private constructor(directory: string, vms: Readonly<Record<string, SimVmSpec>>) {
    this.directory = directory
    this.repository = join(directory, 'repository')
    this.world = simulatedWorld(vms, { directory: join(directory, 'host'), clock: this.clock })
    this.clock.onMoved = (nowMs) => this.#look(nowMs)
  }

  static async create(vms: Readonly<Record<string, SimVmSpec>>): Promise<Host> {
    // The same for every host of this process, one after the other: what a world has read of its paths stays read.
    directoryOfProcess ??= mkdtempSync(join(fastDirectory(), 'umbra-fault-'))
    const directory = directoryOfProcess
    await rm(directory, { recursive: true, force: true })
    mkdirSync(join(directory, 'host'), { recursive: true })
    const host = new Host(directory, vms)
    await using _ = await createRepository(host.repository, { chunkSizeBytes: 64 * 1024, encryption: 'none' })
    return host
  }

  get stateDirectory(): string {
    return this.world.path('/state')
  }

  /** A guest that is frozen when time moves was frozen at the latest when it moved before. */
  #look(nowMs: number): void {
    for (const uuid of this.world.vms.keys()) {
      const guest = this.world.guestOf(uuid)
      if (!guest.isFrozen) {
        this.#frozenSince.delete(uuid)
        continue
      }
      const sinceMs = this.#frozenSince.get(uuid) ?? this.#lastMs
      this.#frozenSince.set(uuid, sinceMs)
      this.longestFreezeMs = Math.max(this.longestFreezeMs, nowMs - sinceMs)
    }
    this.#lastMs = nowMs
  }

  /** What `umbra recover`, or the watchdog of a killed session, does. */
  async recoverAll(): Promise<Recovered[]> {
    const outcome = await new Incarnation(this).recover()
    if (outcome.ended === 'failed') throw outcome.error
    if (outcome.ended !== 'done') throw new Error('recovery hangs')
    return outcome.value
  }

  handlers(hypervisor: Hypervisor, clock: Clock): UndoHandlers {
    return {
      ...vmUndoHandlers(hypervisor, clock),
      ...backupJobUndoHandlers(hypervisor),
      // By its own path: the dead incarnation's, a link, is known to this process as one that writes.
      'discard-point': async ({ point }) => {
        await using repository = await openRepository(this.repository)
        await repository.discardUnfinished(String(point))
      },
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.directory, { recursive: true, force: true })
  }
}

export type Outcome<T> =
  | { readonly ended: 'done'; readonly value: T }
  | { readonly ended: 'failed'; readonly error: unknown }
  /** `hung`: it would have waited for ever, and somebody killed it. */
  | { readonly ended: 'killed' | 'hung' }

let links = 0

export interface IncarnationOptions {
  /** Instants are backup jobs where they can be; overlays otherwise. */
  readonly jobs?: boolean
  /** The caller's cancellation; the plan's unless told. */
  readonly signal?: AbortSignal
}

/** One process of Umbra, on a host. */
export class Incarnation {
  readonly host: Host
  readonly plan: FaultPlan
  readonly hypervisor: Hypervisor
  readonly events: SessionEvent[] = []
  readonly #locks: AsyncDisposable[] = []
  readonly #clock: Clock
  readonly #options: IncarnationOptions
  readonly #foreignHandles: ReadonlySet<unknown>
  readonly #watchdogs: PassThrough[] = []

  constructor(host: Host, plan = new FaultPlan(), options: IncarnationOptions = {}) {
    this.host = host
    this.plan = plan
    this.#options = options
    this.hypervisor = faulty<Hypervisor>(host.world.connect(), plan, 'hypervisor')
    this.#foreignHandles = new Set(host.world.handles)
    const { clock } = host
    this.#clock = {
      now: () => clock.now(),
      monotonicMs: () => clock.monotonicMs(),
      sleep: async (ms, signal) => {
        await clock.sleep(ms, signal)
        if (plan.isDead) await Promise.withResolvers<never>().promise
      },
      timer: (ms, callback) => clock.timer(ms, () => (plan.isDead ? undefined : callback())),
    }
  }

  backup(policy: BackupPolicy, limits = defaultLimits): Promise<Outcome<BackupResult>> {
    return this.#live(async (repositoryDirectory) => {
      await using repository = await openRepository(repositoryDirectory)
      const { hypervisor, host } = this
      return await backup(everyVm, {
        writers: [
          new VmWriter({
            hypervisor,
            policy,
            workDirectory: this.#work,
            clock: this.#clock,
            limits,
            openAutoRecovery: () => this.#openAutoRecovery(),
          }),
        ],
        providers: [
          ...(this.#options.jobs === true ? [this.#backupJobs()] : []),
          new OverlayProvider({
            hypervisor,
            openImages: (images) => this.#openImages(images),
            makeLayer: (path, base, sizeBytes) => this.#layers().make(path, base, sizeBytes),
            overlayDirectory: join(host.stateDirectory, 'overlays'),
            minimumFreeBytes: 1,
            clock: this.#clock,
          }),
        ],
        limits,
        clock: this.#clock,
        repository,
        session: this.#session('backup'),
        onEvent: (event) => this.events.push(event),
      })
    })
  }

  #backupJobs(): BackupJobProvider {
    const clock = this.#clock
    return new BackupJobProvider({
      hypervisor: this.hypervisor,
      scratchDirectory: join(this.host.stateDirectory, 'scratch'),
      socketDirectory: this.host.world.path('/s'),
      freeBytes: async () => Number.MAX_SAFE_INTEGER,
      // A job is looked at rarely: else a read that hangs would be two hours of looks.
      clock: { ...clock, timer: (ms, callback) => clock.timer(ms === 1000 ? 1200_000 : ms, callback) },
    })
  }

  restore(pointId: string, names: readonly string[], request: RestoreRequest): Promise<Outcome<RestoreResult>> {
    return this.#live(async (repositoryDirectory) => {
      await using repository = await openRepository(repositoryDirectory)
      const { hypervisor } = this
      const vmRestore = new VmRestore(hypervisor, domainXmlEditor)
      const point = await repository.point(pointId)
      return await restore(point, names, request, {
        repository,
        writers: [
          new VmWriter({
            hypervisor,
            policy: defaultPolicy,
            workDirectory: this.#work,
            restore: vmRestore,
            clock: this.#clock,
          }),
        ],
        planner: new VmRestorePlanner(hypervisor, vmRestore, this.#work),
        createImage: (path, format, sizeBytes) => this.#createImage(path, format, sizeBytes),
        clock: this.#clock,
        session: this.#session('restore'),
        onEvent: (event) => this.events.push(event),
      })
    })
  }

  recover(): Promise<Outcome<Recovered[]>> {
    return this.#live(() =>
      recoverInterrupted(journalDirectory(this.host.stateDirectory), {
        handlersFor: async () => this.host.handlers(this.hypervisor, this.#clock),
        urgent: ['thaw-guest'],
        clock: this.#clock,
        tryLock: (scope, name) => this.#tryLock(scope, name),
      }),
    )
  }

  get #work(): string {
    return workDirectory(this.host.stateDirectory)
  }

  /** Runs to the end, whichever it is; afterwards nothing of a dead process acts any more. */
  async #live<T>(work: (repositoryDirectory: string) => Promise<T>): Promise<Outcome<T>> {
    const { plan, host } = this
    const link = `${host.repository}-${++links}`
    await symlink(host.repository, link)
    const running = withFaultyFiles(plan, () => work(link)).then(
      (value): Outcome<T> => ({ ended: 'done', value }),
      (error): Outcome<T> => ({ ended: 'failed', error }),
    )
    const killed = plan.killed.then((): Outcome<T> => ({ ended: 'killed' }))
    let outcome = await host.clock.drive(Promise.race([running, killed]), () => (plan.hit === undefined ? 5000 : 30))
    if (outcome === stuck) {
      plan.kill('killed because it hung')
      outcome = { ended: 'hung' }
    }
    if (plan.isDead) await this.end()
    return outcome
  }

  /** The kernel's part at the end of a process: locks, files, open images and the pipe to the watchdog end with it. */
  async end(): Promise<void> {
    await idle()
    await closeFilesOf(this.plan)
    for (const lock of this.#locks) await lock[Symbol.asyncDispose]()
    const { handles } = this.host.world
    for (const handle of handles) if (!this.#foreignHandles.has(handle)) handles.delete(handle)
    for (const pipe of this.#watchdogs) pipe.destroy()
  }

  #session(what: SessionOptions['what']): SessionOptions {
    const { host, plan } = this
    return {
      what,
      stateDirectory: host.stateDirectory,
      uri: this.hypervisor.uri,
      handlers: host.handlers(this.hypervisor, this.#clock),
      clock: this.#clock,
      signal: this.#options.signal ?? plan.signal,
      startWatchdog: (journal) => this.#startWatchdog(journal),
      tryLock: (scope, name) => this.#tryLock(scope, name),
    }
  }

  async #tryLock(scope: string, name: string): Promise<AsyncDisposable | undefined> {
    const lock = await tryLock(scope, name)
    if (lock !== undefined) this.#locks.push(lock)
    return lock
  }

  /** The watchdog's own code on a pipe of this process; it has a connection and a clock of its own. */
  async #startWatchdog(journal: string): Promise<Watchdog> {
    const { host } = this
    const pipe = new PassThrough()
    this.#watchdogs.push(pipe)
    const hypervisor = host.world.connect()
    const followed = followSession(linesOf(pipe), host.clock, async () => {
      const { left } = readJournal(await readFile(journal, 'utf8'))
      const handlers = host.handlers(hypervisor, host.clock)
      for (const record of left) if (record.undo === 'thaw-guest') await runUndo(record, handlers, host.clock, 20_000)
    }).catch(() => undefined)
    return {
      pid: 0,
      hold: (windowMs) => void pipe.write(`hold ${windowMs + graceMs}\n`),
      release: () => void pipe.write('release\n'),
      async [Symbol.asyncDispose]() {
        pipe.end('end\n')
        await followed
      },
    }
  }

  async #openImages(images: readonly { name: string; image: DiskImage }[]) {
    const { world } = this.host
    const open = new Map(images.map(({ name, image }) => [name, world.openImage(image)]))
    const port = {
      open: async (name: string) => {
        const source = open.get(name)
        if (source === undefined) throw new Error(`no image ${name}`)
        // The reader lives until the server ends, as qemu-storage-daemon does.
        return { ...source, [Symbol.asyncDispose]: async () => undefined }
      },
      [Symbol.asyncDispose]: async () => {
        for (const source of open.values()) await source[Symbol.asyncDispose]()
      },
    }
    return faulty(port, this.plan, 'images')
  }

  #layers() {
    const { world } = this.host
    return faulty({ make: world.makeWritableCopy.bind(world) }, this.plan, 'layers')
  }

  #openAutoRecovery(): OpenAutoRecovery {
    const tools = faulty(simRecoveryTools(this.host.world), this.plan, 'recovery')
    return openAutoRecovery({ ...tools, hypervisor: this.hypervisor, clock: this.#clock })
  }

  async #createImage(path: string, format: string, sizeBytes: number): Promise<BlockSink> {
    const { world } = this.host
    const port = {
      create: async () => {
        const image = { format, storage: { file: path } } as DiskImage
        world.createImage(image, sizeBytes)
        return world.openImageForWriting(image)
      },
    }
    return faulty(port, this.plan, 'images').create()
  }
}

/** Every record of a journal is synced: in memory that costs nothing. */
function fastDirectory(): string {
  try {
    accessSync('/dev/shm', constants.W_OK)
    return '/dev/shm'
  } catch {
    return tmpdir()
  }
}
