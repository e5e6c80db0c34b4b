/**
 * A recovery point as disk images with the VMs' configurations beside them (B7). Everything is written under a staged name,
 * proven, and takes its name at the very end: a directory holds a whole export or none of it. Existing files are refused.
 */
import { randomBytes } from 'node:crypto'
import { chmod, statfs } from 'node:fs/promises'
import { join } from 'node:path'
import type { Clock } from '../base/clock.ts'
import type { BlockSink } from '../disk/block-device.ts'
import { serveDisks } from '../disk/nbd-server.ts'
import { failure } from '../errors.ts'
import type { RecoveryPoint } from '../repository/repository.ts'
import { type ExportableDisk, type ExportableVm, exportableVms, openDisk } from './export-contents.ts'
import { type Progress, ProgressMeter } from './progress.ts'
import { removeAbandoned, StagedFiles } from './staged-files.ts'
import { writeOut } from './transfer.ts'

export const exportFormats = ['qcow2', 'raw', 'vhd', 'vhdx'] as const
export type ExportFormat = (typeof exportFormats)[number]

export interface ExportRequest {
  /** VMs by name or UUID; all when empty. */
  readonly names: readonly string[]
  readonly format: ExportFormat
  /** Exists, and is an absolute path. */
  readonly directory: string
  /** Whether the images are checked and compared with the recovery point. */
  readonly check: boolean
}

/** Formats are QEMU's own words here. */
export interface ExportEnvironment {
  readonly chunkSizeBytes: number
  /** Creates an image and opens it for writing. */
  readonly createImage: (path: string, format: string, sizeBytes: number) => Promise<BlockSink>
  /** The structure of an image is sound, as far as its format can be checked. EXPORT_CHECK_FAILED. */
  readonly checkImage: (path: string, format: string, signal: AbortSignal) => Promise<void>
  /** The image holds what the raw disk at `uri` holds. EXPORT_CHECK_FAILED. */
  readonly compareImage: (path: string, format: string, uri: string, signal: AbortSignal) => Promise<void>
  /** The configuration with its disks, by target, and its firmware variables at other places. */
  readonly rewrite: (configuration: string, places: ConfigurationPlaces) => string
  /** Private, and with a short path. */
  readonly socketDirectory: string
  readonly clock: Clock
  readonly signal: AbortSignal
  readonly onProgress?: (progress: Progress) => void
  readonly onStep?: (vm: string, step: string) => void
  /** What exports to the same directory left that were killed is removed. */
  readonly onAbandoned?: (paths: readonly string[]) => void
}

export interface ConfigurationPlaces {
  readonly disks: Readonly<Record<string, { readonly file: string; readonly format: string }>>
  readonly nvram?: string
}

export interface ExportedVm {
  readonly name: string
  readonly configuration: string
  readonly disks: readonly { readonly target: string; readonly path: string; readonly sizeBytes: number }[]
  readonly nvram?: string
  /** What one should know before the VM is defined elsewhere. */
  readonly notes: readonly string[]
}

export interface ExportResult {
  readonly recoveryPoint: string
  readonly format: ExportFormat
  readonly checked: boolean
  readonly vms: readonly ExportedVm[]
  readonly durationMs: number
}

/** QEMU's word for a format. */
const qemuFormats = { qcow2: 'qcow2', raw: 'raw', vhd: 'vpc', vhdx: 'vhdx' } as const
const sectorBytes = 512
const holdsSecret = /\bpasswd\s*=|<(?:auth|encryption|secret)\b/

/**
 * Exports the VMs. EXPORT_FILE_EXISTS, VSS_INSUFFICIENT_STORAGE before anything is written; EXPORT_CHECK_FAILED, and what
 * reading and writing say. On any failure, and when `signal` aborts, nothing of it stays behind; what it leaves when it is
 * killed the next export to the same directory removes.
 */
export async function exportPoint(
  point: RecoveryPoint,
  request: ExportRequest,
  environment: ExportEnvironment,
): Promise<ExportResult> {
  const { clock, signal } = environment
  const beganMs = clock.monotonicMs()
  const vms = await exportableVms(point, request.names)
  await using files = await StagedFiles.open()
  const abandoned = await removeAbandoned(request.directory)
  if (abandoned.length > 0) environment.onAbandoned?.(abandoned)
  const planned = vms.map((vm) => plan(vm, request))
  for (const { paths } of planned) for (const path of paths) await files.refuseExisting(path)
  await requireRoom(point, vms, request.directory, environment.chunkSizeBytes)

  for (const [index, vm] of vms.entries()) await stageVm(point, vm, planned[index] as PlannedVm, files, environment)
  if (request.check) for (const vm of planned) await proveVm(point, vm, files, environment)
  signal.throwIfAborted()
  await files.place(request.directory)
  return {
    recoveryPoint: point.id,
    format: request.format,
    checked: request.check,
    vms: planned.map(({ exported }) => exported),
    durationMs: Math.round(clock.monotonicMs() - beganMs),
  }
}

interface PlannedVm {
  readonly exported: ExportedVm
  readonly format: string
  readonly disks: readonly { readonly disk: ExportableDisk; readonly path: string }[]
  readonly paths: readonly string[]
}

function plan(vm: ExportableVm, { format, directory }: ExportRequest): PlannedVm {
  const disks = vm.disks.map((disk) => ({ disk, path: join(directory, `${disk.fileName}.${format}`) }))
  const configuration = join(directory, `${vm.fileName}.xml`)
  const nvram = vm.nvram === undefined ? undefined : join(directory, `${vm.fileName}_VARS.fd`)
  const secrets =
    'its configuration has passwords or names secrets: they are as they were stored, and not exported apart'
  const exported = {
    name: vm.name,
    configuration,
    disks: disks.map(({ disk: { target, sizeBytes }, path }) => ({ target, path, sizeBytes })),
    ...(nvram === undefined ? {} : { nvram }),
    notes: [...vm.leftOut, ...(holdsSecret.test(vm.configuration) ? [secrets] : [])],
  }
  const paths = [...disks.map(({ path }) => path), configuration, ...(nvram === undefined ? [] : [nvram])]
  return { exported, format: qemuFormats[format], disks, paths }
}

async function stageVm(
  point: RecoveryPoint,
  vm: ExportableVm,
  { exported, format, disks }: PlannedVm,
  files: StagedFiles,
  environment: ExportEnvironment,
): Promise<void> {
  const { chunkSizeBytes, clock, createImage, onProgress, onStep, rewrite, signal } = environment
  const meter = new ProgressMeter(clock, onProgress)
  for (const { disk, path } of disks) {
    signal.throwIfAborted()
    await using source = await openDisk(point, disk)
    meter.begin(`${vm.name} ${disk.target}`, source.sizeBytes)
    const staged = files.stage(path)
    const sizeBytes = format === 'raw' ? source.sizeBytes : Math.ceil(source.sizeBytes / sectorBytes) * sectorBytes
    await using image = await createImage(staged, format, sizeBytes)
    await writeOut(source, image, { chunkSizeBytes, signal, onProgress: (bytes) => meter.advance(bytes) })
    await chmod(staged, 0o600)
    onStep?.(vm.name, `${path} written`)
  }
  const places = Object.fromEntries(disks.map(({ disk, path }) => [disk.target, { file: path, format }]))
  const { nvram } = exported
  const configuration = rewrite(vm.configuration, { disks: places, ...(nvram === undefined ? {} : { nvram }) })
  await files.write(exported.configuration, new TextEncoder().encode(configuration))
  if (nvram !== undefined && vm.nvram !== undefined) await files.write(nvram, vm.nvram)
}

/** Reads everything back: the image for what its format promises, and against the recovery point byte by byte. */
async function proveVm(
  point: RecoveryPoint,
  { exported, format, disks }: PlannedVm,
  files: StagedFiles,
  { checkImage, compareImage, onStep, signal, socketDirectory }: ExportEnvironment,
): Promise<void> {
  for (const { disk, path } of disks) {
    signal.throwIfAborted()
    const staged = files.stagedOf(path)
    await checkImage(staged, format, signal)
    await using source = await openDisk(point, disk)
    let unread: unknown
    await using server = await serveDisks([{ name: disk.target, source }], {
      socketPath: join(socketDirectory, `export-${randomBytes(4).toString('hex')}.sock`),
      onFailure: ({ error }) => {
        unread ??= error
      },
    })
    await compareImage(staged, format, server.uri(disk.target), signal).catch((error: unknown) => {
      throw unread ?? error
    })
    onStep?.(exported.name, `${path} compared with the recovery point`)
  }
}

/** What holds data in the recovery point needs room. */
async function requireRoom(
  point: RecoveryPoint,
  vms: readonly ExportableVm[],
  path: string,
  chunkSizeBytes: number,
): Promise<void> {
  const streams = new Set(vms.flatMap(({ disks }) => disks.map(({ stream }) => stream)))
  const neededBytes = point.streams
    .filter(({ name }) => streams.has(name))
    .reduce((sum, { sizeBytes, zeroChunks }) => sum + Math.max(0, sizeBytes - zeroChunks * chunkSizeBytes), 0)
  const { bavail, bsize } = await statfs(path)
  const freeBytes = bavail * bsize
  if (freeBytes < neededBytes) throw failure('VSS_INSUFFICIENT_STORAGE', { path, freeBytes, neededBytes })
}
