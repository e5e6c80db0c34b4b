/**
 * What an instant restore will do, as a value: the plan of a copy (restore-plan.ts), but with an empty overlay for each
 * disk, above an export that is served out of the repository. Pure.
 */
import type { FileOwner, StoredComponent } from '../vss/restore-plan.ts'
import type { ConfigurationEdit, ServedBacking } from './hypervisor.ts'
import type { VmRestorePlan } from './restore-plan.ts'

export interface InstantDisk {
  readonly target: string
  /** Of the component in the recovery point: disks/TARGET. */
  readonly stream: string
  /** Where the overlay will be, which catches all writes and is the VM's disk in the end. */
  readonly overlay: string
  readonly sizeBytes: number
}

/** A small file that comes out of the recovery point at once: firmware variables, TPM state. */
export interface InstantFile {
  readonly document: string
  readonly path: string
  readonly owner?: FileOwner
}

export interface InstantVmPlan {
  readonly name: string
  readonly uuid: string
  readonly disks: readonly InstantDisk[]
  readonly files: readonly InstantFile[]
  readonly needsUnconnected: boolean
  readonly edit: ConfigurationEdit
  readonly steps: readonly string[]
  readonly warnings: readonly string[]
  readonly obstacles: readonly string[]
}

/** The same VM with qcow2 disks, because overlays are what it will have; for the plan of the copy. */
export function asOverlays(stored: StoredComponent): StoredComponent {
  const { disks, ...rest } = stored.metadata
  if (!Array.isArray(disks)) return stored // the planner says what is wrong with it
  return { ...stored, metadata: { ...rest, disks: disks.map((disk) => ({ ...disk, format: 'qcow2' })) } }
}

export function planInstant(copy: VmRestorePlan): InstantVmPlan {
  const disks: InstantDisk[] = []
  const files: InstantFile[] = []
  for (const { source, path, owner } of copy.targets) {
    if ('document' in source) files.push({ document: source.document, path, ...(owner === undefined ? {} : { owner }) })
    else if (source.stream.startsWith('disks/')) {
      const target = source.stream.slice('disks/'.length)
      disks.push({ target, stream: source.stream, overlay: path, sizeBytes: source.sizeBytes })
    }
  }
  const { name, uuid, needsUnconnected, edit, warnings } = copy
  const obstacles = [...copy.obstacles]
  if (disks.length === 0) obstacles.push('the recovery point has no disk of it')
  for (const { target, sizeBytes } of disks) {
    if (sizeBytes === 0 || sizeBytes % 512 !== 0) obstacles.push(`${target} has no whole number of sectors`)
  }
  return { name, uuid, needsUnconnected, edit, warnings, obstacles, disks, files, steps: tell(copy, disks, files) }
}

function tell({ name, steps }: VmRestorePlan, disks: readonly InstantDisk[], files: readonly InstantFile[]): string[] {
  return [
    'pin the recovery point until the VM does not need it any more',
    'serve its disks out of the repository',
    ...disks.map(({ target, overlay, sizeBytes }) => `make the overlay ${overlay} for ${target} (${sizeBytes} bytes)`),
    ...files.map(({ path }) => `write ${path}`),
    ...steps.filter((step) => /^(register|connect) /.test(step)),
    `start ${name}`,
  ]
}

/** The edit that puts each disk on its overlay, above what `backingOf` says. */
export function editOf(
  { edit, disks }: Pick<InstantVmPlan, 'edit' | 'disks'>,
  backingOf: (target: string) => ServedBacking,
): ConfigurationEdit {
  const onOverlays = disks.map(({ target, overlay: file }) => {
    return [target, { file, format: 'qcow2', backing: backingOf(target) }] as const
  })
  return { ...edit, disks: { ...edit.disks, ...Object.fromEntries(onOverlays) } }
}
