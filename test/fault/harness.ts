/**
 * A simulated host with a requester on it that can be killed. `Host` is what outlives a process: the world, the state
 * directory, the repository. `Incarnation` is one process: faulty ports, locks that the kernel takes from the dead, a
 * watchdog that outlives it. Everything else is the product: session, journal, writer, provider, repository, restore.
 */
import { accessSync, constants, mkdirSync, mkdtempSync } from 'node:fs'
import { rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { PassThrough } from 'node:stream'
import type { UndoHandlers } from '../../src/base/cleanup.ts'
import type { Clock } from '../../src/base/clock.ts'
import type { BlockSink } from '../../src/disk/block-device.ts'
import { BackupJobProvider } from '../../src/libvirt/backup-job-provider.ts'
import { backupJobUndoHandlers } from '../../src/libvirt/backup-job-undo.ts'
import { domainXmlEditor } from '../../src/libvirt/configuration-editor.ts'
import { OverlayProvider } from '../../src/libvirt/overlay-provider.ts'
import { createRepository, openRepository } from '../../src/repository/repository.ts'
import { type BackupResult, backup } from '../../src/requester/backup.ts'
import { tryLock } from '../../src/requester/host-lock.ts'
import { type Recovered, recoverInterrupted } from '../../src/requester/journal.ts'
import { type RestoreResult, restore } from '../../src/requester/restore.ts'
import { journalDirectory, type SessionOptions, workDirectory } from '../../src/requester/session.ts'
import type { Watchdog } from '../../src/requester/watchdog.ts'
import type { DiskImage, Hypervisor } from '../../src/vm/hypervisor.ts'
import { type BackupPolicy, defaultPolicy } from '../../src/vm/method.ts'
import { type OpenAutoRecovery, openAutoRecovery } from '../../src/vm/recovery-ways.ts'
import { VmRestore } from '../../src/vm/restore.ts'
import { VmRestorePlanner } from '../../src/vm/restore-planner.ts'
import { vmThawSteps, vmUndoHandlers } from '../../src/vm/undo.ts'
import { VmWriter } from '../../src/vm/vm-writer.ts'
import type { RestoreRequest } from '../../src/vss/restore-plan.ts'
import { defaultLimits, type SessionEvent } from '../../src/vss/vocabulary.ts'
import { FaultPlan, faulty } from '../sim/faulty.ts'
import { simRecoveryTools } from '../sim/sim-recovery.ts'
import { type SimVmSpec, type SimWorld, simulatedWorld } from '../sim/sim-world.ts'
import { keepWorld } from '../sim/world-copy.ts'
import { FaultClock, idle, stuck } from './fault-clock.ts'
import { closeFilesOf, withFaultyFiles } from './faulty-files.ts'
import { keepFiles } from './kept-files.ts'
import { Watchdogs } from './watchdogs.ts'

export const everyVm = { names: [], all: true, except: [] } as const
export const inPlace: RestoreRequest = { networks: {}, start: false }

let directoryOfProcess: string | undefined

export class Host implements AsyncDisposable {
  readonly directory: string
  readonly repository: string
  readonly clock: FaultClock
  readonly world: SimWorld
  readonly watchdogs: Watchdogs
  /** The longest that any guest has been frozen. */
  longestFreezeMs = 0
  readonly #frozenSince = new Map<string, number>()
  #lastMs = 0

  private constructor(directory: string, clock: FaultClock, world: SimWorld, waits: Watchdogs['waits'] = []) {
    this.directory = directory
    this.repository = join(directory, 'repository')
    this.clock = clock
    this.world = world
    this.watchdogs = new Watchdogs(clock, this.handlers(world.connect(), clock), waits)
    this.clock.onMoved = (nowMs) => this.#look(nowMs)
  }

  static async create(vms: Readonly<Record<string, SimVmSpec>>): Promise<Host> {
    const directory = await emptyDirectory()
    mkdirSync(join(directory, 'host'))
    const clock = new FaultClock()
    const host = new Host(directory, clock, simulatedWorld(vms, { directory: join(directory, 'host'), clock }))
    await using _ = await createRepository(host.repository, { chunkSizeBytes: 64 * 1024, encryption: 'none' })
    return host
  }

  /** Keeps how it is now, with no process alive on it. Each call of the answer makes a host like it, instead of this one. */
  keep(): () => Promise<Host> {
    const { directory } = this
    const [files, world, nowMs] = [keepFiles(directory), keepWorld(this.world), this.clock.monotonicMs()]
    const { waits } = this.watchdogs
    const frozen = { longestMs: this.longestFreezeMs, since: [...this.#frozenSince], lastMs: this.#lastMs }
    return async () => {
      await emptyDirectory()
      files.putBack()
      const clock = new FaultClock(nowMs)
      const host = new Host(directory, clock, world(clock), waits)
      host.longestFreezeMs = frozen.longestMs
      for (const [uuid, sinceMs] of frozen.since) host.#frozenSince.set(uuid, sinceMs)
      host.#lastMs = frozen.lastMs
      return host
    }
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

/** The same for every host of this process, one after the other: what a world has read of its paths stays read. */
async function emptyDirectory(): Promise<string> {
  directoryOfProcess ??= mkdtempSync(join(fastDirectory(), 'umbra-fault-'))
  await rm(directoryOfProcess, { recursive: true, force: true })
  mkdirSync(directoryOfProcess)
  return directoryOfProcess
}

/** What `prepare` makes, made once and copied for each call. */
export function preparedOnce<H extends { readonly host: Host }>(prepare: () => Promise<H>): () => Promise<H> {
  let first: Promise<{ prepared: H; again: () => Promise<Host> }> | undefined
  return async () => {
    first ??= prepare().then((prepared) => ({ prepared, again: prepared.host.keep() }))
    const { prepared, again } = await first
    return { ...prepared, host: await again() }
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
  /** To the watchdogs. */
  readonly #pipes: PassThrough[] = []

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
        urgent: vmThawSteps,
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
    for (const pipe of this.#pipes) pipe.destroy()
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

  async #startWatchdog(journal: string): Promise<Watchdog> {
    const { watchdog, pipe } = this.host.watchdogs.start(journal)
    this.#pipes.push(pipe)
    return watchdog
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
