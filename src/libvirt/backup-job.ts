/**
 * Backup jobs on libvirt, in pull mode (API reference of libvirt: virDomainBackupBegin, virDomainAbortJob; libvirt docs,
 * "Efficient live full disk backup", "Incremental backup internals"). The scratch files are made beforehand, so that the
 * instant is a single call; with BEGIN_REUSE_EXTERNAL libvirt takes them as they are, and leaves their removal to us.
 */
import { chown, lstat, mkdir, rm, rmdir } from 'node:fs/promises'
import { dirname, isAbsolute } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { systemClock } from '../base/clock.ts'
import { Failure, invariant } from '../base/failure.ts'
import { connectNbd } from '../disk/nbd-client.ts'
import { failure } from '../errors.ts'
import type {
  BackupJobCopy,
  BackupJobDisk,
  BackupJobInPlace,
  BackupJobPlan,
  BackupJobStatus,
  ImageMark,
} from '../vm/backup-job.ts'
import { backupXml, changesBitmap, processOwner, readBackupSocket } from './backup-job-xml.ts'
import { jobDisks } from './checkpoints.ts'
import { imageMark } from './checkpoints-image.ts'
import { checkpointXml, describeImages } from './checkpoints-xml.ts'
import type { LibvirtConnection } from './connection.ts'
import { createImage } from './disk-image.ts'
import type { DomainCalls } from './domain-calls.ts'
import type { DomainDisk } from './domain-disks.ts'
import { readDomain } from './domain-xml.ts'
import { isFailure, libvirtCode } from './libvirt-errors.ts'
import { power, resumeAfterIoError } from './power.ts'
import {
  backupBeginFlags,
  backupBlockJob,
  backupOperation,
  domainStates,
  libvirtCodes,
  pausedByIoError,
} from './protocol.ts'

/** A job whose scratch files lie ready. */
export interface PreparedJob {
  readonly plan: BackupJobPlan
  readonly marks: ReadonlyMap<string, ImageMark>
  readonly targets: readonly string[]
}

/** How long a job may take to end, or a begin that nobody waits for any more to show itself. */
const endPatienceMs = 60_000
const beginPatienceMs = 40_000
const maximumSocketPathBytes = 107
const copyConnections = 2

export async function prepareBackupJob(domains: DomainCalls, uuid: string, plan: BackupJobPlan): Promise<PreparedJob> {
  const vm = domains.nameOf(uuid)
  checkPlan(plan)
  const state = await power(domains, uuid)
  if (state === 'gone') throw failure('VM_NOT_FOUND', { vm, known: 'others' })
  if (state !== 'running' && state !== 'paused')
    throw failure('VM_STATE', { vm, state, reason: 'only a VM that runs or is paused can have a backup job' })
  const xml = await domains.xml(uuid, 0)
  const { disks } = readDomain(xml, vm)
  const process = processOwner(xml, vm)
  const made: string[] = []
  const marks = new Map<string, ImageMark>()
  const directory = dirname(plan.socket)
  if (await exists(directory)) throw failure('VM_STATE', { vm, state, reason: `${directory} exists already` })
  try {
    await mkdir(directory, { mode: 0o700 })
    if (process !== undefined) await chown(directory, process.uid, process.gid)
    for (const one of plan.disks) {
      if (await exists(one.scratch)) throw failure('VM_STATE', { vm, state, reason: `${one.scratch} exists already` })
      const disk = diskOf(vm, disks, one)
      const sizeBytes = await domains.diskSize(uuid, one.target)
      made.push(one.scratch)
      await createImage(one.scratch, 'qcow2', sizeBytes) // as large as the disk, which QEMU demands
      if (process !== undefined) await chown(one.scratch, process.uid, process.gid)
      marks.set(one.target, await imageMark(disk, sizeBytes))
    }
  } catch (error) {
    await removeFiles({ socket: plan.socket, scratch: made })
    throw error
  }
  return { plan, marks, targets: disks.filter((disk) => !disk.passThrough).map(({ target }) => target) }
}

function checkPlan({ socket, disks }: BackupJobPlan): void {
  for (const path of [socket, ...disks.map(({ scratch }) => scratch)])
    invariant(isAbsolute(path), `the paths of a backup job are absolute: ${path}`)
  invariant(disks.length > 0, 'a backup job has a disk')
  if (Buffer.byteLength(socket) <= maximumSocketPathBytes) return
  const reason = `the path of the socket is longer than ${maximumSocketPathBytes} bytes: ${socket}`
  throw failure('DISK_EXPORT_FAILED', { disks: disks.map(({ target }) => target), reason })
}

function diskOf(vm: string, disks: readonly DomainDisk[], { target }: BackupJobDisk): DomainDisk {
  const disk = jobDisks(disks).find((candidate) => candidate.target === target)
  if (disk !== undefined) return disk
  throw failure('VM_STATE', { vm, state: 'not what was planned for', reason: `it has no disk ${target} to copy` })
}

async function exists(path: string): Promise<boolean> {
  return await lstat(path).then(
    () => true,
    () => false,
  )
}

/** The instant. When it rejects, the scratch files are as they were. */
export async function beginBackupJob(domains: DomainCalls, uuid: string, prepared: PreparedJob): Promise<void> {
  const { plan, marks, targets } = prepared
  const others = targets.filter((target) => !plan.disks.some((disk) => disk.target === target))
  const tracked = plan.disks.filter(({ track }) => track).map(({ target }) => target)
  const described = new Map([...marks].filter(([target]) => tracked.includes(target)))
  const point =
    plan.point === undefined || tracked.length === 0
      ? undefined
      : checkpointXml(
          plan.point,
          targets.map((target) => ({ target, track: tracked.includes(target) })),
          describeImages(described),
        )
  try {
    await domains.backupBegin(uuid, backupXml(plan, others), point, backupBeginFlags.reuseExisting)
  } catch (error) {
    throw doubtful(domains.nameOf(uuid), plan, error) ?? error
  }
}

/** libvirt says "missing or broken bitmap 'X' for disk 'sda'", and the like of a checkpoint that it does not know. */
function doubtful(vm: string, plan: BackupJobPlan, error: unknown): Failure | undefined {
  const code = libvirtCode(error)
  if (code !== libvirtCodes.checkpointInconsistent && code !== libvirtCodes.noCheckpoint) return undefined
  const reason = error instanceof Failure ? String(error.context.reason ?? error.message) : ''
  const named = /disk '([^']{1,64})'/.exec(reason)?.[1]
  const disk = plan.disks.find(({ target }) => target === named)
  const point = disk?.since ?? plan.disks.find(({ since }) => since !== undefined)?.since ?? 'its point'
  return failure(
    'TRACKING_DOUBTFUL',
    { vm, point, reason, ...(disk === undefined ? {} : { target: disk.target }) },
    error,
  )
}

export async function openBackupJob(
  domains: DomainCalls,
  uuid: string,
  plan: BackupJobPlan,
  target: string,
): Promise<BackupJobCopy> {
  const disk = plan.disks.find((candidate) => candidate.target === target)
  const vm = domains.nameOf(uuid)
  if (disk === undefined) throw failure('VM_STATE', { vm, state: 'backed up', reason: `${target} is not in its job` })
  const { socket: socketPath } = plan
  const context = disk.since === undefined ? {} : { context: `qemu:dirty-bitmap:${changesBitmap}` }
  const device = await connectNbd({ socketPath, exportName: target, connections: copyConnections, ...context })
  return {
    sizeBytes: device.sizeBytes,
    read: (offset, bytes) => device.read(offset, bytes),
    extents: (offset, length) => device.extents(offset, length),
    changes: () => device.marked(0, device.sizeBytes),
    [Symbol.asyncDispose]: () => device[Symbol.asyncDispose](),
  }
}

/** The socket of the job that libvirt knows of; undefined when it knows of none. */
async function socketOfJob(domains: DomainCalls, uuid: string): Promise<string | undefined> {
  try {
    return readBackupSocket(await domains.backupXml(uuid), domains.nameOf(uuid)) ?? ''
  } catch (error) {
    const code = libvirtCode(error)
    if (code === libvirtCodes.noBackup || code === libvirtCodes.operationInvalid) return undefined
    if (isFailure(error, 'VM_NOT_FOUND')) return undefined
    throw error
  }
}

export async function backupJobStatus(
  domains: DomainCalls,
  uuid: string,
  { socket }: BackupJobInPlace,
): Promise<BackupJobStatus> {
  const ended = { state: 'ended', scratchBytes: 0, pausedByIoError: false } as const
  try {
    const { state, reason } = await domains.state(uuid)
    const stands = state === domainStates.paused && reason === pausedByIoError
    if (state === domainStates.off || (await socketOfJob(domains, uuid)) !== socket)
      return { ...ended, pausedByIoError: stands }
    const scratchBytes = (await domains.jobNumbers(uuid).catch(() => undefined))?.get('disk_temp_used') ?? 0
    return { state: 'running', scratchBytes, pausedByIoError: stands }
  } catch (error) {
    if (isFailure(error, 'VM_NOT_FOUND')) return ended
    throw error
  }
}

/** Of all VMs libvirt tells; only what is about this one is passed on. */
export async function watchBackupJob(
  connection: LibvirtConnection,
  uuid: string,
  look: () => void,
): Promise<AsyncDisposable> {
  const concerned = (event: { readonly uuid: string }) => {
    if (event.uuid === uuid) look()
  }
  const forget = [await connection.on('ioError', concerned), await connection.on('lifecycle', concerned)]
  return {
    async [Symbol.asyncDispose]() {
      for (const each of forget) each()
    },
  }
}

export async function endBackupJob(domains: DomainCalls, uuid: string, job: BackupJobInPlace): Promise<void> {
  const state = await power(domains, uuid)
  if (state === 'running' || state === 'paused') {
    const left = (await Promise.all(job.scratch.map(exists))).some((one) => one)
    if (left || (await socketOfJob(domains, uuid)) === job.socket) {
      await endJob(domains, uuid, job)
      await resumeAfterIoError(domains, uuid).catch(unlessGone)
    }
  }
  await removeFiles(job)
}

async function removeFiles({ socket, scratch }: BackupJobInPlace): Promise<void> {
  for (const path of [...scratch, socket]) await rm(path, { force: true })
  await rmdir(dirname(socket)).catch((error: unknown) => {
    if (!(error instanceof Error && 'code' in error && error.code === 'ENOENT')) throw error
  })
}

async function endJob(domains: DomainCalls, uuid: string, job: BackupJobInPlace): Promise<void> {
  try {
    await beginHasShownItself(domains, uuid)
    if ((await socketOfJob(domains, uuid)) === job.socket) await domains.abortJob(uuid)
    else await abortOrphans(domains, uuid)
  } catch (error) {
    // "No job is active": it ended by itself in between.
    if (libvirtCode(error) !== libvirtCodes.operationInvalid) unlessGone(error)
  }
  const giveUpAt = systemClock.monotonicMs() + endPatienceMs
  while ((await socketOfJob(domains, uuid)) === job.socket) {
    if (systemClock.monotonicMs() > giveUpAt)
      throw failure('DEADLINE_EXCEEDED', { what: 'the end of a backup job', limitMs: endPatienceMs })
    await sleep(20)
  }
}

function unlessGone(error: unknown): void {
  if (!isFailure(error, 'VM_NOT_FOUND') && libvirtCode(error) !== libvirtCodes.operationInvalid) throw error
}

/** Somebody else's begin may still be under way: the process that asked for it was killed, libvirt goes on. */
async function beginHasShownItself(domains: DomainCalls, uuid: string): Promise<void> {
  const giveUpAt = systemClock.monotonicMs() + beginPatienceMs
  while ((await socketOfJob(domains, uuid)) === undefined && systemClock.monotonicMs() < giveUpAt) {
    const numbers = await domains.jobNumbers(uuid).catch(() => undefined)
    if (numbers?.get('operation') !== backupOperation) return
    await sleep(100)
  }
}

/** When libvirt fails after QEMU has begun, it forgets the job while QEMU goes on. */
async function abortOrphans(domains: DomainCalls, uuid: string): Promise<void> {
  if ((await socketOfJob(domains, uuid)) !== undefined) return
  for (const { target } of jobDisks(readDomain(await domains.xml(uuid, 0)).disks)) {
    const job = await domains.blockJob(uuid, target)
    if (job?.type === backupBlockJob) await domains.blockJobAbort(uuid, target, 0)
  }
}
