/**
 * What of a recovery point can leave it as files: of each VM its disks, its configuration, its firmware variables. Names
 * in a recovery point come from outside, and become names of files here.
 */
import type { LendingSource } from '../disk/block-device.ts'
import { failure } from '../errors.ts'
import type { RecoveryPoint } from '../repository/repository.ts'
import type { StoredComponent } from '../vss/restore-plan.ts'
import { hyperVWriterId } from '../vss/vocabulary.ts'
import { findStored, readStored } from './stored-components.ts'

export interface ExportableDisk {
  readonly target: string
  readonly sizeBytes: number
  /** Name of the stream in the recovery point. */
  readonly stream: string
  /** The beginning of its file's name, without directory and extension: VM-TARGET. */
  readonly fileName: string
}

export interface ExportableVm {
  readonly name: string
  /** The VM's name, fit to begin the name of a file. */
  readonly fileName: string
  readonly disks: readonly ExportableDisk[]
  readonly configuration: string
  readonly nvram?: Uint8Array
  /** What of the VM stays behind, one sentence each. */
  readonly leftOut: readonly string[]
}

const targetPattern = /^[A-Za-z0-9._-]{1,64}$/
const diskPrefix = 'disks/'
const fileNameMaxBytes = 180

/** The VMs of a point that are called `names`, by name or UUID; all when empty. VM_NOT_FOUND, USAGE for what is no VM. */
export async function exportableVms(point: RecoveryPoint, names: readonly string[]): Promise<ExportableVm[]> {
  const found = await findStored(point, names)
  const vms = found.filter(({ component }) => component.writerId === hyperVWriterId)
  if (vms.length === 0 || (names.length > 0 && vms.length < found.length))
    throw failure('USAGE', { reason: 'only VMs can be exported: files of the host come back with umbra restore' })
  const exportable: ExportableVm[] = []
  for (const vm of vms) exportable.push(exportableVm(await readStored(point, vm)))
  refuseTwins(exportable)
  return exportable
}

/** The disk, verified as it is read; dispose it. */
export function openDisk(point: RecoveryPoint, disk: ExportableDisk): Promise<LendingSource> {
  return point.openStream(disk.stream)
}

function exportableVm({ component, metadata, streams, documents }: StoredComponent): ExportableVm {
  const name = typeof metadata.name === 'string' && metadata.name !== '' ? metadata.name : component.name
  const fileName = nameOfFile(name)
  const disks = Object.entries(streams).flatMap(([stream, sizeBytes]) => {
    const target = stream.startsWith(diskPrefix) ? stream.slice(diskPrefix.length) : ''
    if (!targetPattern.test(target)) return []
    return [{ target, sizeBytes, stream: `${component.name}/${stream}`, fileName: `${fileName}-${target}` }]
  })
  const { 'configuration.xml': configuration, nvram } = documents
  if (configuration === undefined)
    throw failure('VM_CONFIGURATION_INVALID', { vm: name, reason: 'the recovery point does not hold it' })
  return {
    name,
    fileName,
    disks,
    configuration: new TextDecoder().decode(configuration),
    ...(nvram === undefined ? {} : { nvram }),
    leftOut: [
      ...('memory' in streams ? ['its memory is left out: it starts from its disks, as after a power cut'] : []),
      ...(Object.keys(documents).some((document) => document.startsWith('tpm'))
        ? ['the state of its TPM is left out: what the guest has sealed with it can not be opened elsewhere']
        : []),
      ...excludedDisks(metadata.excluded),
    ],
  }
}

function excludedDisks(excluded: unknown): string[] {
  if (!Array.isArray(excluded)) return []
  return excluded.map((one: { target?: unknown }) => `${String(one?.target)} was not backed up and stays as it was`)
}

/** No separators, nothing that hides it, and short enough for what is appended. */
function nameOfFile(name: string): string {
  const plain = name.replace(/[\p{Cc}/]/gu, '_').replace(/^\./, '_')
  let short = plain
  while (Buffer.byteLength(short) > fileNameMaxBytes) short = short.slice(0, -1)
  return short
}

function refuseTwins(vms: readonly ExportableVm[]): void {
  const names = vms.map(({ fileName }) => fileName)
  const twice = names.find((name, index) => names.indexOf(name) !== index)
  if (twice !== undefined)
    throw failure('USAGE', { reason: `several VMs would become ${twice}: choose one by its UUID with --vm` })
}
