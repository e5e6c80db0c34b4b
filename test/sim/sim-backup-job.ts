/**
 * Backup jobs and change-tracking points of the simulated hypervisor. A job keeps what writes replace in scratch files,
 * which take room on the host as real ones do; a point is a bitmap of its name in the image of each disk.
 */
import { failure } from '../../src/errors.ts'
import type {
  BackupJobCopy,
  BackupJobInPlace,
  BackupJobPlan,
  BackupJobStatus,
  ChangeTracking,
  ImageMark,
  TrackableDisk,
  TrackedDisk,
} from '../../src/vm/backup-job.ts'
import { trackingPointName } from '../../src/vm/backup-job.ts'
import type { DiskImage } from '../../src/vm/hypervisor.ts'
import { granuleBytes, type SimBitmap } from './sim-bitmaps.ts'
import { type ConfiguredDisk, readConfiguration } from './sim-configuration.ts'
import { clusterBytes, type SimDisk, type SimLayer, storageKey } from './sim-disk.ts'
import { letRun, nameOf, powerOf, refused, type SimVm, topImage } from './sim-vm.ts'
import type { SimWorld } from './sim-world.ts'

/** A point as the hypervisor remembers it; the bitmaps are in the images. */
export interface SimPoint {
  readonly name: string
  readonly parent: string | undefined
  readonly createdMs: number
  readonly targets: readonly string[]
  readonly images: ReadonlyMap<string, ImageMark>
}

/** A job of a running VM; it ends with the VM's process. */
export interface SimBackupJob {
  readonly plan: BackupJobPlan
  readonly copies: ReadonlyMap<string, JobCopy>
}

interface JobCopy {
  readonly disk: SimDisk
  readonly scratch: SimDisk
  readonly saved: Set<number>
  readonly changes: readonly number[] | undefined
}

const scratchImage = (file: string): DiskImage => ({ format: 'qcow2', storage: { file } })

export function changeTracking(world: SimWorld, vm: SimVm): ChangeTracking {
  const disks = trackableDisks(world, vm)
  const known = new Set(vm.points.map(({ name }) => name))
  const inImages = disks.flatMap(({ target }) => layersOf(world, vm, target).flatMap((layer) => namesIn(layer)))
  return {
    points: vm.points.map((point) => ({
      name: point.name,
      ...(point.parent === undefined ? {} : { parent: point.parent }),
      createdMs: point.createdMs,
      disks: point.targets.map((target) => trackedDisk(world, vm, point, target)),
    })),
    disks,
    forgotten: [...new Set(inImages)].filter((name) => trackingPointName.test(name) && !known.has(name)).sort(),
  }
}

const namesIn = (layer: SimLayer): string[] => [...layer.watch.bitmaps.keys()]

function jobDisks(vm: SimVm): ConfiguredDisk[] {
  const { disks } = readConfiguration(vm.live?.configuration ?? vm.configuration)
  return disks.filter(({ device, image, readOnly }) => device === 'disk' && image !== undefined && !readOnly)
}

function trackableDisks(world: SimWorld, vm: SimVm): TrackableDisk[] {
  return jobDisks(vm).map(({ target, image }) => {
    const format = image?.format ?? 'unknown'
    const reason = `${format} disks have no bitmaps: read whole and compared (qcow2 would make it cheaper)`
    return {
      target,
      image: markOf(world, image),
      internalStates: vm.hasHypervisorSnapshots ? 1 : 0,
      ...(format === 'qcow2' ? {} : { untrackable: reason }),
    }
  })
}

const births = new WeakMap<SimLayer, number>()
let born = 0

function markOf(world: SimWorld, image: DiskImage | undefined): ImageMark {
  const disk = image === undefined ? undefined : world.files.findDisk(image)
  if (image === undefined || disk === undefined) return { location: '' }
  const birth = births.get(disk.top) ?? ++born
  births.set(disk.top, birth)
  return { location: storageKey(image.storage), sizeBytes: disk.sizeBytes, file: String(birth) }
}

/** Top first. */
function layersOf(world: SimWorld, vm: SimVm, target: string): readonly SimLayer[] {
  const image = topImage(vm, target)?.image
  return image === undefined ? [] : (world.files.findDisk(image)?.layers ?? [])
}

function trackedDisk(world: SimWorld, vm: SimVm, point: SimPoint, target: string): TrackedDisk {
  const image = point.images.get(target)
  const common = { target, ...(image === undefined ? {} : { image }) }
  if (vm.live === undefined) return { ...common, bitmap: 'unknown' }
  const granules = changedSince(world, vm, point.name, target)
  if (granules === undefined) return { ...common, bitmap: 'broken' }
  return { ...common, bitmap: 'recording', changedBytes: granules.length * granuleBytes }
}

/** Granules written since the point, ascending; undefined when its bitmap is missing or broken. */
function changedSince(world: SimWorld, vm: SimVm, name: string, target: string): number[] | undefined {
  const granules = new Set<number>()
  for (const layer of layersOf(world, vm, target)) {
    const bitmap = layer.watch.bitmaps.get(name)
    if (bitmap?.broken === true) return undefined
    for (const granule of bitmap?.granules ?? []) granules.add(granule)
    if (bitmap !== undefined) return [...granules].sort((a, b) => a - b)
    // An overlay that was put on since: all that it caught.
    for (const cluster of layer.clusters.keys()) granules.add(Math.floor((cluster * clusterBytes) / granuleBytes))
  }
  return undefined
}

/** Makes the scratch files, all or none; may throw NoSpaceError. */
export function prepareBackupJob(world: SimWorld, vm: SimVm, { disks }: BackupJobPlan): void {
  if (vm.live === undefined)
    throw failure('VM_STATE', { vm: nameOf(vm), state: powerOf(vm), reason: 'only a running VM can have a backup job' })
  const made: string[] = []
  try {
    for (const { target, scratch } of disks) {
      const image = jobDisks(vm).find((disk) => disk.target === target)?.image
      const wrong = image === undefined ? `it has no disk ${target} to copy` : `${scratch} exists already`
      if (image === undefined || world.files.has(scratch))
        throw failure('VM_STATE', { vm: nameOf(vm), state: powerOf(vm), reason: wrong })
      world.files.createImage(scratchImage(scratch), world.files.disk(image).sizeBytes)
      made.push(scratch)
    }
  } catch (error) {
    for (const path of made) world.files.remove(path)
    throw error
  }
}

/** The instant: all disks or none. */
export function beginBackupJob(world: SimWorld, vm: SimVm, plan: BackupJobPlan): void {
  const { live } = vm
  if (live === undefined) throw refused('backup', 'cannot perform disk backup for inactive domain')
  const copies = new Map(plan.disks.map((disk) => [disk.target, copyOf(world, vm, disk)]))
  const tracked = plan.disks.filter(({ track }) => track).map(({ target }) => target)
  if (plan.point !== undefined && tracked.length > 0) beginPoint(world, vm, plan.point, tracked)
  const job: SimBackupJob = { plan, copies }
  live.backupJob = job
  for (const copy of copies.values()) {
    const { watch } = copy.disk.top
    const save = (cluster: number) => {
      if (vm.live?.backupJob === job) saveCluster(copy, cluster)
      else watch.before.delete(save)
    }
    watch.before.add(save)
  }
}

function copyOf(world: SimWorld, vm: SimVm, { target, scratch, since }: BackupJobPlan['disks'][number]): JobCopy {
  const image = jobDisks(vm).find((disk) => disk.target === target)?.image
  if (image === undefined || !world.files.has(scratch)) throw refused('backup', `${target} is not prepared`)
  const changes = since === undefined ? undefined : changedSince(world, vm, since, target)
  const known = since === undefined || vm.points.some(({ name }) => name === since)
  if (since !== undefined && (changes === undefined || !known)) {
    const reason = `missing or broken bitmap '${since}' for disk '${target}'`
    throw failure('TRACKING_DOUBTFUL', { vm: nameOf(vm), point: since, reason, target })
  }
  const disk = world.files.disk(image)
  return { disk, scratch: world.files.disk(scratchImage(scratch)), saved: new Set(), changes }
}

function beginPoint(world: SimWorld, vm: SimVm, name: string, targets: readonly string[]): void {
  const tops = targets.map((target) => layersOf(world, vm, target)[0])
  for (const [index, top] of tops.entries()) {
    if (top?.format !== 'qcow2') throw refused('backup', `checkpoint for disk ${targets[index]} unsupported`)
    if (top.watch.bitmaps.has(name)) throw refused('backup', `Bitmap already exists: ${name}`)
  }
  for (const top of tops) top?.watch.bitmaps.set(name, { granules: new Set(), broken: false } satisfies SimBitmap)
  const images = new Map(targets.map((target) => [target, markOf(world, topImage(vm, target)?.image)]))
  const parent = vm.points.at(-1)?.name
  vm.points.push({ name, parent, createdMs: world.clock.now(), targets, images })
}

/** May throw NoSpaceError: then the guest's write does not happen. */
function saveCluster({ disk, scratch, saved }: JobCopy, cluster: number): void {
  if (saved.has(cluster)) return
  const offset = cluster * clusterBytes
  const old = new Uint8Array(Math.min(clusterBytes, disk.sizeBytes - offset))
  disk.read(offset, old)
  scratch.write(offset, old)
  saved.add(cluster)
}

export function openBackupJob(world: SimWorld, vm: SimVm, plan: BackupJobPlan, target: string): BackupJobCopy {
  const job = vm.live?.backupJob
  const copy = job?.plan.socket === plan.socket ? job.copies.get(target) : undefined
  const closed = (offset: number, reason: string) => failure('DISK_READ_FAILED', { disk: target, offset, reason })
  if (copy === undefined) throw failure('NBD_CONNECT_FAILED', { address: plan.socket, reason: 'there is no such job' })
  let open = true
  const check = async (offset: number) => {
    await world.called()
    if (!open) throw closed(offset, 'the disk is closed')
    if (vm.live?.backupJob !== job) throw closed(offset, 'the backup job has ended')
  }
  return {
    sizeBytes: copy.disk.sizeBytes,
    async read(offset, bytes) {
      await check(offset)
      readCopy(copy, offset, bytes)
    },
    async *extents(offset, length) {
      await check(offset)
      yield* copyExtents(copy, offset, length)
    },
    async *changes() {
      await check(0)
      if (copy.changes === undefined) throw closed(0, 'the plan named no point since which changes are wanted')
      for (const granule of copy.changes) {
        const offset = granule * granuleBytes
        yield { offset, length: Math.min(granuleBytes, copy.disk.sizeBytes - offset) }
      }
    },
    async [Symbol.asyncDispose]() {
      open = false
    },
  }
}

function readCopy({ disk, scratch, saved }: JobCopy, offset: number, bytes: Uint8Array): void {
  disk.read(offset, bytes)
  const end = offset + bytes.length
  for (const cluster of saved) {
    const start = Math.max(cluster * clusterBytes, offset)
    const stop = Math.min((cluster + 1) * clusterBytes, end)
    if (start < stop) scratch.read(start, bytes.subarray(start - offset, stop - offset))
  }
}

/** What was saved counts as data, whatever it holds. */
function* copyExtents({ disk, saved }: JobCopy, offset: number, length: number) {
  for (let at = offset; at < offset + length; ) {
    const cluster = Math.floor(at / clusterBytes)
    const part = Math.min((cluster + 1) * clusterBytes, offset + length) - at
    const [extent] = disk.extents(at, part)
    yield { offset: at, length: part, data: saved.has(cluster) || extent?.data === true }
    at += part
  }
}

export function backupJobStatus(vm: SimVm, { socket }: BackupJobInPlace): BackupJobStatus {
  const job = vm.live?.backupJob
  const pausedByIoError = vm.live?.ioError === true
  if (job?.plan.socket !== socket) return { state: 'ended', scratchBytes: 0, pausedByIoError }
  const saved = [...job.copies.values()].reduce((sum, copy) => sum + copy.saved.size, 0)
  return { state: 'running', scratchBytes: saved * clusterBytes, pausedByIoError }
}

export function endBackupJob(world: SimWorld, vm: SimVm | undefined, { socket, scratch }: BackupJobInPlace): void {
  const left = scratch.some((path) => world.files.has(path))
  const ours = vm?.live?.backupJob?.plan.socket === socket
  if (vm?.live !== undefined && ours) vm.live.backupJob = undefined
  for (const path of [...scratch, socket]) world.files.remove(path)
  if (vm?.live?.ioError === true && (left || ours)) letRun(world, vm)
}

export function removeTrackingPoint(world: SimWorld, vm: SimVm, name: string): void {
  vm.points = vm.points.filter((point) => point.name !== name)
  if (vm.live === undefined) return
  for (const { target } of jobDisks(vm))
    for (const layer of layersOf(world, vm, target)) layer.watch.bitmaps.delete(name)
}

/** The VM's process dies: what it had not stored of its bitmaps is lost. */
export function breakBitmaps(world: SimWorld, vm: SimVm): void {
  for (const { target } of jobDisks(vm)) layersOf(world, vm, target)[0]?.watch.break()
}
