/**
 * Instant restores: a VM runs at once on overlays above the disks of a recovery point, which are served out of the
 * repository, and is finished (its disks pulled in) or dropped later. A record stands before anything is done (law 1) and
 * is removed last; each step is idempotent, so that after a crash whoever comes next goes on by the record: `recover`
 * restarts what is gone, `finish` and `drop` may be called again.
 */
import { randomBytes } from 'node:crypto'
import { chmod, chown, open, rm } from 'node:fs/promises'
import { hostname } from 'node:os'
import { dirname } from 'node:path'
import { systemClock } from '../base/clock.ts'
import { describeError, Failure } from '../base/failure.ts'
import { makeDirectory } from '../base/make-directory.ts'
import type { OwnProcess } from '../base/own-programs.ts'
import { failure } from '../errors.ts'
import type { RecoveryPoint, Repository } from '../repository/repository.ts'
import { noteMaxLength } from '../repository/retention/pins.ts'
import type { PullOptions, RunningDisk } from '../vss/instant-disk.ts'
import type { FileOwner, RestoreRequest, StoredComponent } from '../vss/restore-plan.ts'
import { tryLock } from './host-lock.ts'
import { lastFailure } from './instant-failures.ts'
import {
  findRecord,
  forgetRecord,
  type InstantPlaces,
  type InstantRecord,
  listRecords,
  placesOf,
  socketsOf,
  writeRecord,
} from './instant-record.ts'
import type { InstantServers, ServerKey } from './instant-server.ts'
import { findStored, readStored } from './stored-components.ts'

export interface InstantPlan {
  readonly name: string
  readonly uuid: string
  readonly disks: readonly InstantRecord['disks'][number][]
  readonly files: readonly { readonly document: string; readonly path: string; readonly owner?: FileOwner }[]
  readonly steps: readonly string[]
  readonly warnings: readonly string[]
  readonly obstacles: readonly string[]
  /** Makes the VM known to its hypervisor, on its overlays. */
  readonly register: (places: InstantPlaces) => Promise<void>
}

/** The VM's side; the requester does not know what a VM is. */
export interface InstantMachine {
  readonly uri: string
  plan(stored: StoredComponent, request: RestoreRequest & { readonly as: string }): Promise<InstantPlan>
  makeOverlay(disk: RunningDisk, places: InstantPlaces): Promise<void>
  /** False when it is open. */
  openGate(record: InstantRecord, places: InstantPlaces): Promise<boolean>
  closeGate(record: InstantRecord, places: InstantPlaces): Promise<void>
  start(uuid: string): Promise<void>
  power(uuid: string): Promise<'running' | 'paused' | 'saved' | 'off' | 'gone'>
  remove(uuid: string): Promise<void>
  isPulled(uuid: string, disk: RunningDisk): Promise<boolean>
  /** True when the overlay holds nothing that was written to it. */
  isUnused(disk: RunningDisk): Promise<boolean>
  /** Begins to pull what can be pulled now; false when the VM does not run. */
  beginPulls(uuid: string, disks: readonly RunningDisk[]): Promise<boolean>
  pull(uuid: string, disk: RunningDisk, options: PullOptions): Promise<void>
  /** After the server was away: a VM that its hypervisor stopped for that reason goes on. */
  resume(uuid: string): Promise<void>
}

export interface InstantEnvironment {
  readonly stateDirectory: string
  readonly machine: InstantMachine
  readonly servers: InstantServers
}

/** What the repository is opened with for the server, and the repository itself. */
export interface OpenedRepository {
  readonly repository: Repository
  readonly key: ServerKey
}

export interface PlannedInstant {
  readonly plan: InstantPlan
  readonly component: string
  readonly stored: StoredComponent
}

/** Touches nothing. */
export async function planInstantRestore(
  point: RecoveryPoint,
  vms: readonly string[],
  request: RestoreRequest & { readonly as: string },
  { machine, stateDirectory }: InstantEnvironment,
): Promise<PlannedInstant> {
  const found = await findStored(point, vms)
  const [one] = found
  if (one === undefined || found.length > 1)
    throw failure('USAGE', { reason: 'the recovery point holds several VMs: choose one with --vm' })
  if ((await findRecord(stateDirectory, request.as)) !== undefined) throw failure('INSTANT_EXISTS', { vm: request.as })
  const stored = await readStored(point, one)
  return { plan: await machine.plan(stored, request), component: one.component.name, stored }
}

export interface BegunInstant {
  readonly name: string
  readonly uuid: string
  readonly recoveryPoint: string
  readonly disks: readonly string[]
  readonly warnings: readonly string[]
}

/** The VM has been started when it resolves. Whatever fails before is taken back: INSTANT_NOT_STARTED. */
export async function beginInstant(
  point: RecoveryPoint,
  planned: PlannedInstant,
  { repository, key }: OpenedRepository,
  environment: InstantEnvironment,
  early?: { readonly token: string; readonly server: OwnProcess },
): Promise<BegunInstant> {
  const { stateDirectory, machine } = environment
  const { plan } = planned
  const { name, uuid, obstacles } = plan
  if (obstacles.length > 0) throw failure('VSS_WRITER_VETO', { event: 'instant', done: 'restored', reasons: obstacles })
  await using _lock = await lockInstant(stateDirectory, name)
  if ((await findRecord(stateDirectory, name)) !== undefined) throw failure('INSTANT_EXISTS', { vm: name })
  let record: InstantRecord = {
    version: 1,
    ...{ name, uuid, uri: machine.uri, repository: repository.location, point: point.id, component: planned.component },
    token: early?.token ?? newToken(),
    startedAt: new Date(systemClock.now()).toISOString(),
    stage: 'preparing',
    disks: [...plan.disks],
    files: plan.files.map(({ path }) => path),
  }
  await makeDirectory(socketsOf(stateDirectory), 0o711)
  await writeRecord(stateDirectory, record)
  const made: string[] = []
  try {
    const places = placesOf(stateDirectory, record)
    await keepPinned(stateDirectory, repository, record)
    const serving = serve(environment, record, key, early?.server)
    const both = await Promise.allSettled([serving, makeFiles(planned, machine, places, made)])
    for (const one of both) if (one.status === 'rejected') throw one.reason // when neither is at work any more
    await plan.register(places)
    await machine.start(uuid)
    record = { ...record, stage: 'running' }
    await writeRecord(stateDirectory, record)
  } catch (error) {
    // Only what was made here is removed: a file that was in the way is somebody's.
    const own = { ...record, disks: record.disks.filter(({ overlay }) => made.includes(overlay)) }
    const files = record.files.filter((path) => made.includes(path))
    const left = await takeBack(environment, { ...own, files }, repository).then(() => '', describeError)
    const reason =
      left === '' ? describeError(error) : `${describeError(error)} (and not all could be removed: ${left})`
    throw failure('INSTANT_NOT_STARTED', { vm: name, reason }, error)
  }
  const disks = record.disks.map(({ overlay }) => overlay)
  return { name, uuid, recoveryPoint: point.id, disks, warnings: plan.warnings }
}

export const newToken = (): string => randomBytes(4).toString('hex')

/** One command at a time for each name. */
export async function lockInstant(stateDirectory: string, name: string): Promise<AsyncDisposable> {
  const lock = await tryLock(stateDirectory, `instant ${name}`)
  if (lock === undefined) throw failure('VM_BUSY', { vm: name, reason: 'another command is at work on it' })
  return lock
}

async function makeFiles(
  { plan, stored }: PlannedInstant,
  machine: InstantMachine,
  places: InstantPlaces,
  made: string[],
): Promise<void> {
  for (const disk of plan.disks) {
    await makeDirectory(dirname(disk.overlay))
    await machine.makeOverlay(disk, places)
    made.push(disk.overlay)
  }
  for (const { document, path, owner } of plan.files) {
    await makeDirectory(dirname(path))
    await using file = await open(path, 'wx', 0o600)
    made.push(path)
    await file.writeFile(stored.documents[document] ?? new Uint8Array())
    await file.sync()
    await chmod(path, owner?.mode ?? 0o600)
    if (owner !== undefined && process.getuid?.() === 0) await chown(path, owner.uid, owner.gid)
  }
}

/** The server and the gate are there when it resolves. Idempotent. */
async function serve(
  { stateDirectory, machine, servers }: InstantEnvironment,
  record: InstantRecord,
  key: ServerKey,
  early?: OwnProcess,
): Promise<string[]> {
  const done: string[] = []
  if (!(await servers.lives(record))) {
    await servers.start(record, key, early)
    done.push(`serve the disks of ${record.name}`)
  }
  if (await machine.openGate(record, placesOf(stateDirectory, record))) done.push(`let ${record.name} to them`)
  return done
}

export interface FinishOptions {
  readonly signal: AbortSignal
  readonly onProgress?: (disk: string, doneBytes: number, totalBytes: number) => void
}

/**
 * Pulls all disks in and forgets the instant restore; the VM is one like any other then. INSTANT_NOT_PULLED when a disk
 * could not be: the VM goes on as before, and so does what serves it.
 */
export async function finishInstant(
  record: InstantRecord,
  { repository, key }: OpenedRepository,
  environment: InstantEnvironment,
  { signal, onProgress }: FinishOptions,
): Promise<void> {
  const { stateDirectory, machine } = environment
  await using _lock = await lockInstant(stateDirectory, record.name)
  const places = placesOf(stateDirectory, record)
  await writeRecord(stateDirectory, { ...record, stage: 'finishing' })
  const left: InstantRecord['disks'] = []
  for (const disk of record.disks) if (!(await machine.isPulled(record.uuid, disk))) left.push(disk)
  if (left.length > 0) await serve(environment, record, key)
  const failures: string[] = []
  for (const disk of record.disks) {
    try {
      const { target } = disk
      await rm(places.failures, { force: true })
      await machine.pull(record.uuid, disk, { signal, onProgress: (done, total) => onProgress?.(target, done, total) })
    } catch (error) {
      signal.throwIfAborted()
      failures.push(await whyNotPulled(error, disk.target, places))
    }
  }
  if (failures.length > 0) {
    throw failure('INSTANT_NOT_PULLED', { vm: record.name, reason: failures })
  }
  await end(environment, record, repository)
}

/** With the place that could not be read, as the server noted it. */
async function whyNotPulled(error: unknown, target: string, { failures }: InstantPlaces): Promise<string> {
  const failed = await lastFailure(failures, target)
  if (failed !== undefined) return `${target} at offset ${failed.offset}: ${failed.reason}`
  const notPulled = error instanceof Failure && error.code === 'INSTANT_NOT_PULLED'
  return `${target}: ${notPulled ? error.context.reason : describeError(error)}`
}

/** Gives the VM up, with all that was written in it. Without a repository, which may be gone for good, a pin in it stays. */
export async function dropInstant(
  record: InstantRecord,
  repository: Repository | undefined,
  environment: InstantEnvironment,
): Promise<void> {
  await using _lock = await lockInstant(environment.stateDirectory, record.name)
  await takeBack(environment, record, repository)
}

async function takeBack(
  environment: InstantEnvironment,
  record: InstantRecord,
  repository: Repository | undefined,
): Promise<void> {
  await environment.machine.remove(record.uuid)
  for (const path of [...record.disks.map(({ overlay }) => overlay), ...record.files]) await rm(path, { force: true })
  await end(environment, record, repository)
}

/** Nobody needs the served disks any more. */
async function end(
  { stateDirectory, machine, servers }: InstantEnvironment,
  record: InstantRecord,
  repository: Repository | undefined,
): Promise<void> {
  const places = placesOf(stateDirectory, record)
  await machine.closeGate(record, places)
  await servers.end(record)
  await rm(places.serverSocketPath, { force: true })
  await rm(places.failures, { force: true })
  const others = (await listRecords(stateDirectory)).records.filter(({ name }) => name !== record.name)
  if (repository !== undefined && !others.some(({ point }) => point === record.point)) {
    const pin = (await repository.pins()).get(record.point)
    if (pin?.note === pinNote(stateDirectory)) await repository.unpin(record.point)
  }
  await forgetRecord(stateDirectory, record)
  await servers.end(record) // one that was on its way up and had no number yet: see disk-server-main.ts
}

/** The same for all instant restores of this host: whoever ends the last one of a point knows that the pin is ours. */
const pinNote = (stateDirectory: string): string =>
  `an instant restore on ${hostname()} runs from it (${stateDirectory})`.slice(0, noteMaxLength)

async function keepPinned(stateDirectory: string, repository: Repository, { point }: InstantRecord): Promise<void> {
  await repository.pin(point, pinNote(stateDirectory))
}

export interface RecoveredInstant {
  readonly name: string
  readonly done: readonly string[]
  readonly failed: readonly string[]
}

/**
 * Goes on by the record after a crash: a VM that was never started is taken back; else what serves its disks runs again, and
 * a pull that was under way goes on. Undefined when there is nothing to do, or a command is at work on it.
 */
export async function recoverInstant(
  record: InstantRecord,
  openIt: (location: string) => Promise<OpenedRepository & AsyncDisposable>,
  environment: InstantEnvironment,
): Promise<RecoveredInstant | undefined> {
  const { stateDirectory, machine, servers } = environment
  const { name, uuid } = record
  await using lock = await tryLock(stateDirectory, `instant ${name}`)
  if (lock === undefined) return undefined
  const done: string[] = []
  try {
    const begun = record.stage !== 'preparing' || (await hasBegun(record, machine))
    const served = await servers.isServed(record)
    if (begun && served && record.stage === 'running') return undefined
    await using opened = await openIt(record.repository)
    if (!begun) {
      await takeBack(environment, record, opened.repository)
      return { name, done: [`${name} had not been started: what was made for it is removed`], failed: [] }
    }
    if (record.stage === 'preparing') await writeRecord(stateDirectory, { ...record, stage: 'running' })
    await keepPinned(stateDirectory, opened.repository, record)
    done.push(...(await serve(environment, record, opened.key)))
    await machine.resume(uuid)
    if (record.stage === 'finishing') {
      const how = (await machine.beginPulls(uuid, record.disks)) ? 'waits for the end' : 'pulls them in'
      done.push(`the disks of ${name} are not all pulled in: umbra instant finish ${name} ${how}`)
    }
    return { name, done, failed: [] }
  } catch (error) {
    return { name, done, failed: [describeError(error)] }
  }
}

/** Killed somewhere before the start was noted: it has begun when it runs, or when something was written. */
async function hasBegun({ uuid, disks }: InstantRecord, machine: InstantMachine): Promise<boolean> {
  const power = await machine.power(uuid)
  if (power !== 'off' && power !== 'gone') return true
  for (const disk of disks) if (!(await machine.isUnused(disk))) return true
  return false
}
