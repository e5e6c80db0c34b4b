/**
 * What restoring a VM will do: a pure function of what was stored, what is on this host and what the user said.
 * Source: "Restoring the Virtual Machines", steps 1 to 6; the parity table in docs/restore.md.
 */
import type { FileOwner, RestoreRequest, RestoreTarget } from '../vss/restore-plan.ts'
import { removableMedium } from './exclusion.ts'
import type { StoredHostFile } from './host-files.ts'
import type { ConfigurationEdit, NetworkFacts, VmFacts } from './hypervisor.ts'
import { type NicPlan, planNics } from './restore-networks.ts'
import { memoryPlan, type PlacedDisk, placeDisk, placeObstacles, planLinks, planTargets } from './restore-places.ts'

/** What the writer stored about the VM (ComponentOutcome.metadata), as far as a restore needs it. */
export interface StoredVm {
  readonly name: string
  readonly uuid: string
  readonly power: string
  readonly disks: readonly {
    readonly target: string
    readonly location: string
    readonly format?: string
    readonly sizeBytes: number
  }[]
  readonly excluded: readonly { readonly target: string; readonly reason: string }[]
  readonly nics: readonly { readonly mac: string; readonly type: string; readonly source?: string }[]
  readonly hostFiles: readonly StoredHostFile[]
  /** Owner of each disk that was a file, by target. */
  readonly owners: Readonly<Record<string, FileOwner>>
  readonly memoryBytes?: number
}

/** What is on this host. */
export interface RestoreSurroundings {
  /** The VM with the stored UUID, if it is still there. */
  readonly former?: VmFacts
  /** Another VM that has the name the restored one would get. */
  readonly namesake?: VmFacts
  readonly networks: readonly NetworkFacts[]
  /** Which of the paths asked about exist, and what they are. */
  readonly pathKind: (path: string) => 'file' | 'other' | 'absent'
  readonly newUuid: string
  readonly newMac: () => string
  readonly token: string
  readonly workDirectory: string
}

export interface VmRestorePlan {
  readonly uuid: string
  readonly name: string
  /** The VM that makes way; never set for a copy. */
  readonly former?: VmFacts
  readonly edit: ConfigurationEdit
  readonly targets: readonly RestoreTarget[]
  /** Present files that make way: kept under `aside` until the restore has succeeded. */
  readonly asides: readonly { readonly path: string; readonly aside: string }[]
  readonly links: readonly { readonly path: string; readonly to: string }[]
  readonly needsUnconnected: boolean
  /** Where the memory image will lie when the VM comes back saved. */
  readonly memory?: string
  readonly steps: readonly string[]
  readonly warnings: readonly string[]
  readonly obstacles: readonly string[]
}

export function planVmRestore(vm: StoredVm, request: RestoreRequest, here: RestoreSurroundings): VmRestorePlan {
  const copy = request.as !== undefined
  const name = request.as ?? vm.name
  const uuid = copy ? here.newUuid : vm.uuid
  const former = copy ? undefined : here.former
  const warnings: string[] = []
  const obstacles = identityObstacles(name, former, here)
  const disks = vm.disks.map((disk) => ({ ...disk, path: placeDisk(disk, request), format: disk.format ?? 'raw' }))
  const memory = memoryPlan(vm, copy, here, warnings)
  const { targets, nvram } = planTargets(vm, disks, { name, uuid }, memory, request, here)
  obstacles.push(...placeObstacles(targets, disks, copy, here))
  const asides = targets
    .filter(({ path }) => here.pathKind(path) === 'file')
    .map(({ path }) => ({ path, aside: `${path}.umbra-aside-${here.token}` }))
  const links = planLinks(disks, request, here, warnings)
  const nics = planNics(vm, request, copy, here, warnings)
  const edit = {
    ...(copy ? { name, uuid } : {}),
    disks: { ...fileDisks(disks), ...(copy ? removedDisks(vm) : {}) },
    nics: nics.edits,
    ...(nvram === undefined ? {} : { nvram }),
  }
  warnings.push(...vm.excluded.map((exclusion) => tellExclusion(exclusion, copy)))
  const steps = tell(vm, name, request, former, disks, asides, links, nics, memory)
  const needsUnconnected = nics.needsUnconnected
  return {
    uuid,
    name,
    edit,
    targets,
    asides,
    links,
    needsUnconnected,
    ...(former === undefined ? {} : { former }),
    steps,
    warnings,
    obstacles,
    ...(memory === undefined ? {} : { memory }),
  }
}

const fileDisks = (disks: readonly PlacedDisk[]): ConfigurationEdit['disks'] =>
  Object.fromEntries(disks.map(({ target, path, format }) => [target, { file: path, format }]))

/** Nothing of a copy may point at disks that were not backed up, except for drives of removable media. */
const removedDisks = ({ excluded }: StoredVm): ConfigurationEdit['disks'] =>
  Object.fromEntries(
    excluded.filter(({ reason }) => reason !== removableMedium).map(({ target }) => [target, 'remove']),
  )

function tellExclusion({ target, reason }: StoredVm['excluded'][number], copy: boolean): string {
  if (reason === removableMedium) return `${target} keeps whatever medium it names`
  return copy
    ? `${target} is left out of the copy (${reason})`
    : `${target} was not backed up (${reason}); it is not restored`
}

function identityObstacles(name: string, former: VmFacts | undefined, here: RestoreSurroundings): string[] {
  const obstacles: string[] = []
  if (here.namesake !== undefined) {
    obstacles.push(`another VM is called ${name} on this host (${here.namesake.uuid}): choose a name with --as`)
  }
  if (former?.busy !== undefined) obstacles.push(`${former.name} is occupied by ${former.busy}`)
  if (former?.power === 'saved')
    obstacles.push(`${former.name} is in the hypervisor's saved state: start it or discard that state first`)
  if (former?.hasHypervisorSnapshots === true) {
    obstacles.push(
      `${former.name} has snapshots of the hypervisor, which a restore would lose: delete them first, or restore with --as`,
    )
  }
  return obstacles
}

function tell(
  vm: StoredVm,
  name: string,
  request: RestoreRequest,
  former: VmFacts | undefined,
  disks: readonly { target: string; path: string; format: string; sizeBytes: number }[],
  asides: readonly { path: string }[],
  links: readonly { path: string; to: string }[],
  nics: NicPlan,
  memory: string | undefined,
): string[] {
  const end = memory === undefined ? 'off' : 'saved, to go on where it was'
  return [
    ...disks.map(
      ({ target, path, format, sizeBytes }) =>
        `write ${target} to ${path} (${format}, ${sizeBytes} bytes), verifying every byte`,
    ),
    ...(former === undefined
      ? []
      : [`${former.power === 'off' ? '' : 'turn off and '}remove the VM ${former.name} that is here now`]),
    ...asides.map(({ path }) => `keep ${path} aside until all has succeeded`),
    ...(request.as === undefined
      ? [`register ${vm.name}`]
      : [`register ${name} with new identity: UUID, MAC addresses`]),
    ...links.map(({ path, to }) => `link ${path} to ${to}`),
    ...nics.steps,
    request.start ? `start ${name}` : `leave ${name} ${end}`,
  ]
}
