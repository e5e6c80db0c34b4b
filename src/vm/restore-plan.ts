/**
 * What restoring a VM will do: a pure function of what was stored, what is on this host and what the user said.
 * Source: "Restoring the Virtual Machines", steps 1 to 6; the parity table in docs/restore.md.
 */
import { dirname, join } from 'node:path'
import type { FileOwner, RestoreRequest, RestoreTarget } from '../vss/restore-plan.ts'
import type { ClusterFacts } from './cluster.ts'
import { removableMedium } from './exclusion.ts'
import type { StoredHostFile } from './host-files.ts'
import type { ConfigurationEdit, NetworkFacts, VmFacts } from './hypervisor.ts'
import { type Fit, type FitPlan, planFit } from './restore-fit.ts'
import { foreignFiles, makeWay } from './restore-identity.ts'
import { planNics } from './restore-networks.ts'
import {
  asidesOf,
  memoryPlan,
  type PlacedDisk,
  placeDisks,
  placeObstacles,
  planLinks,
  planTargets,
  requestObstacles,
  tellDisk,
} from './restore-places.ts'
import { planSingleDisks } from './restore-single-disks.ts'

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
  /** A path with every link on the way to its last part followed; itself unless told. */
  readonly realPath?: (path: string) => string
  /** VMs that use a file as a disk, beneath one, or for their firmware; without it nobody is asked whose a file is. */
  readonly usersOf?: (path: string) => readonly { readonly name: string; readonly uuid: string }[]
  /** VMs that have an interface with that MAC address. */
  readonly macUsers?: (mac: string) => readonly { readonly name: string; readonly uuid: string }[]
  /** What the configuration needs, and what is here; without it nothing is compared. */
  readonly fit?: Fit
  /** What a copy can not have too (ConfigurationEditor.ties). */
  readonly ties?: readonly string[]
  readonly newGeneration?: string
}

export interface VmRestorePlan {
  readonly uuid: string
  readonly name: string
  /** The VM that makes way; never set for a copy. */
  readonly former?: VmFacts
  /** Its cluster, when it is restored in its own place: see cluster-restore.ts. */
  readonly cluster?: ClusterFacts
  /** The VM keeps the configuration that it has here; only files of it are replaced. */
  readonly keepsConfiguration?: true
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
  if (request.only !== undefined) return planSingleDisks(vm, request, here, request.only)
  const copy = request.as !== undefined
  const [name, uuid] = [request.as ?? vm.name, copy ? here.newUuid : vm.uuid]
  const warnings: string[] = []
  const { former, obstacles } = makeWay(vm, request, here)
  const disks = placeDisks(vm, request, here)
  const memory = memoryPlan(vm, copy, here, warnings)
  const { targets, nvram } = planTargets(vm, disks, { name, uuid }, memory, request, here)
  obstacles.push(...requestObstacles(vm, disks, request, here), ...placeObstacles(targets, disks, copy, here))
  if (!copy)
    obstacles.push(
      ...foreignFiles(
        targets.map(({ path }) => path),
        vm,
        former,
        request,
        here,
      ),
    )
  const asides = asidesOf(targets, here)
  const links = planLinks(disks, vm, request, here, warnings)
  const nics = planNics(vm, request, copy, here, warnings)
  const fit = fitOf(vm, request, memory, here)
  const edit = {
    ...(copy ? { name, uuid, separateFrom: { name: vm.name, uuid: vm.uuid } } : {}),
    disks: { ...fileDisks(disks), ...(copy ? removedDisks(vm) : {}) },
    nics: nics.edits,
    ...(nvram === undefined ? {} : { nvram }),
    ...fit.edit,
    // It goes back in time, which a guest may have to know; memory that goes on is given a new one by the hypervisor.
    ...(memory === undefined && here.newGeneration !== undefined ? { generation: here.newGeneration } : {}),
  }
  warnings.push(...vm.excluded.map((exclusion) => tellExclusion(exclusion, copy)), ...fit.warnings)
  if (copy) warnings.push(...(here.ties ?? []))
  warnings.push(...tellRealPlaces(vm, request, targets, here))
  return {
    uuid,
    name,
    edit,
    targets,
    asides,
    links,
    needsUnconnected: nics.needsUnconnected,
    ...(former === undefined ? {} : { former }),
    steps: tell(vm, name, request, former, disks, targets, asides, links, [...fit.steps, ...nics.steps], memory),
    warnings,
    obstacles: [...obstacles, ...nics.obstacles, ...fit.obstacles],
    ...(memory === undefined ? {} : { memory }),
  }
}

const noFit: FitPlan = { edit: {}, steps: [], warnings: [], obstacles: [] }

/** A drive that is left out needs no medium taken from it. */
function fitOf(
  _vm: StoredVm,
  { as, start }: RestoreRequest,
  memory: string | undefined,
  { fit }: RestoreSurroundings,
): FitPlan {
  if (fit === undefined) return noFit
  return planFit(fit, { memory: memory !== undefined, copy: as !== undefined, start })
}

const fileDisks = (disks: readonly PlacedDisk[]): ConfigurationEdit['disks'] =>
  Object.fromEntries(disks.map(({ target, named, format }) => [target, { file: named, format }]))

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

/** Where a link leads, so that nobody looks in the wrong place. */
function tellRealPlaces(
  vm: StoredVm,
  { to, disks }: RestoreRequest,
  targets: readonly RestoreTarget[],
  { realPath }: RestoreSurroundings,
): string[] {
  if (realPath === undefined) return []
  const asked = [
    ...(to === undefined ? [] : [to]),
    ...Object.values(disks ?? {}).flatMap(({ path }) => (path === undefined ? [] : [dirname(path)])),
    ...(to === undefined && disks === undefined ? vm.disks.map(({ location }) => dirname(location)) : []),
  ]
  return [...new Set(asked)].flatMap((directory) => {
    if (!directory.startsWith('/')) return []
    const real = dirname(realPath(join(directory, 'x')))
    const used = real !== directory && targets.some(({ path }) => dirname(path) === real)
    return used ? [`${directory} leads to ${real}: the files are written there`] : []
  })
}

function tell(
  vm: StoredVm,
  name: string,
  request: RestoreRequest,
  former: VmFacts | undefined,
  disks: readonly { target: string; path: string; format: string; sizeBytes: number }[],
  targets: readonly RestoreTarget[],
  asides: readonly { path: string }[],
  links: readonly { path: string; to: string }[],
  more: readonly string[],
  memory: string | undefined,
): string[] {
  const end = memory === undefined ? 'off' : 'saved, to go on where it was'
  return [
    ...disks.map((disk) => tellDisk(disk, targets.find(({ path }) => path === disk.path)?.base)),
    ...targets.flatMap(({ source, path }) => ('document' in source ? [`write ${source.document} to ${path}`] : [])),
    ...(former === undefined
      ? []
      : [`${former.power === 'off' ? '' : 'turn off and '}remove the VM ${former.name} that is here now`]),
    ...asides.map(({ path }) => `keep ${path} aside until all has succeeded`),
    ...(request.as === undefined
      ? [`register ${vm.name}`]
      : [`register ${name} with new identity: UUID, MAC addresses`]),
    ...links.map(({ path, to }) => `link ${path} to ${to}`),
    ...more,
    ...(asides.length === 0 ? [] : ['delete what was kept aside']),
    request.start ? `start ${name}` : `leave ${name} ${end}`,
  ]
}
