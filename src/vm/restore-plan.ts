/**
 * What restoring a VM will do: a pure function of what was stored, what is on this host and what the user said.
 * Source: "Restoring the Virtual Machines", steps 1 to 6; the parity table in docs/restore.md.
 */
import { basename, dirname, extname, join } from 'node:path'
import type { RestoreRequest, RestoreTarget } from '../vss/restore-plan.ts'
import type { ConfigurationEdit, NetworkFacts, NicConnection, VmFacts } from './hypervisor.ts'

/** The network for interfaces whose own network is gone: isolated, so that a VM is never connected by accident. */
export const unconnectedNetwork = 'umbra-unconnected'

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
  readonly nvram?: string
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
  const nvramPath = vm.nvram === undefined ? undefined : placeNvram(vm.nvram, name, request)
  const memory = memoryPlan(vm, copy, here, warnings)

  const targets: RestoreTarget[] = disks.map(({ target, path, format, sizeBytes }) => ({
    source: { stream: `disks/${target}`, sizeBytes },
    staged: `${path}.umbra-new-${here.token}`,
    path,
    format,
  }))
  if (nvramPath !== undefined) {
    targets.push({
      source: { document: 'nvram' },
      staged: `${nvramPath}.umbra-new-${here.token}`,
      path: nvramPath,
      format: 'file',
    })
  }
  if (memory !== undefined) {
    const source = { stream: 'memory', sizeBytes: vm.memoryBytes ?? 0 }
    targets.push({ source, staged: `${memory}.new`, path: memory, format: 'file' })
  }
  obstacles.push(...placeObstacles(targets, disks, copy, here))
  const asides = targets
    .filter(({ path }) => here.pathKind(path) === 'file')
    .map(({ path }) => ({ path, aside: `${path}.umbra-aside-${here.token}` }))
  const links = planLinks(disks, request, here, warnings)
  const nics = planNics(vm, request, copy, here, warnings)
  const edit = {
    ...(copy ? { name, uuid } : {}),
    disks: Object.fromEntries([
      ...disks.map(({ target, path, format }) => [target, { file: path, format }] as const),
      ...(copy ? vm.excluded.map(({ target }) => [target, 'remove'] as const) : []),
    ]),
    nics: nics.edits,
    ...(nvramPath === undefined ? {} : { nvram: nvramPath }),
  }
  for (const { target, reason } of vm.excluded) {
    warnings.push(
      copy
        ? `${target} is left out of the copy (${reason})`
        : `${target} was not backed up (${reason}); it is not restored`,
    )
  }
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

/** The original file, or a file of the same name in --to; a copy gets names of its own. */
function placeDisk(disk: { target: string; location: string; format?: string }, { as, to }: RestoreRequest): string {
  const directory = to ?? dirname(disk.location)
  if (as === undefined) return join(directory, basename(disk.location))
  const known = { raw: '.raw', qcow2: '.qcow2', vpc: '.vhd', vhdx: '.vhdx' }[disk.format ?? 'raw']
  return join(directory, `${as}-${disk.target}${known ?? extname(disk.location)}`)
}

function placeNvram(path: string, name: string, { as, to }: RestoreRequest): string {
  return join(to ?? dirname(path), as === undefined ? basename(path) : `${name}_VARS.fd`)
}

/** Memory belongs to one identity: a copy starts from its disks, as after a power cut at that instant. */
function memoryPlan(vm: StoredVm, copy: boolean, here: RestoreSurroundings, warnings: string[]): string | undefined {
  if (vm.memoryBytes === undefined) return undefined
  if (copy) {
    warnings.push('its memory is left out: a copy has another identity and starts from its disks, as after a power cut')
    return undefined
  }
  return join(here.workDirectory, `${vm.uuid}-${here.token}.memory`)
}

function placeObstacles(
  targets: readonly RestoreTarget[],
  disks: readonly { target: string; location: string; path: string }[],
  copy: boolean,
  here: RestoreSurroundings,
): string[] {
  const obstacles: string[] = []
  for (const { target, location, path } of disks) {
    if (!path.startsWith('/'))
      obstacles.push(`${target} was not a file (${location}): say with --to where it is to be put`)
    else if (here.pathKind(path) === 'other') {
      obstacles.push(`${target}: ${path} is not a regular file and can not be set aside: restore to files with --to`)
    }
  }
  for (const { path } of targets) {
    if (copy && here.pathKind(path) !== 'absent') obstacles.push(`${path} exists already: choose another --as or --to`)
  }
  const paths = targets.map(({ path }) => path)
  const twice = paths.filter((path, index) => paths.indexOf(path) !== index)
  for (const path of new Set(twice))
    obstacles.push(`two disks would both become ${path}: restore to the original place, or with --as`)
  return obstacles
}

/** "If the VM is restored to a nondefault location, a symbolic link is created in the default location." */
function planLinks(
  disks: readonly { location: string; path: string }[],
  { as, to }: RestoreRequest,
  here: RestoreSurroundings,
  warnings: string[],
): { path: string; to: string }[] {
  if (as !== undefined || to === undefined) return []
  return disks.flatMap(({ location, path }) => {
    if (location === path || !location.startsWith('/')) return []
    if (here.pathKind(dirname(location)) === 'absent') return []
    if (here.pathKind(location) === 'absent') return [{ path: location, to: path }]
    warnings.push(`${location} stays as it is and is not used any more`)
    return []
  })
}

interface NicPlan {
  edits: NonNullable<ConfigurationEdit['nics']>
  steps: string[]
  needsUnconnected: boolean
}

/** "If the virtual switches that the VM was connected to still exist, new ports are created and connected to the VM." */
function planNics(
  vm: StoredVm,
  request: RestoreRequest,
  copy: boolean,
  here: RestoreSurroundings,
  warnings: string[],
): NicPlan {
  const edits: Record<string, { mac?: string; connect?: NicConnection }> = {}
  const steps: string[] = []
  let needsUnconnected = false
  for (const nic of vm.nics) {
    const mac = copy ? { mac: here.newMac() } : {}
    const mapped = nic.source === undefined ? undefined : request.networks[nic.source]
    const wanted = mapped ?? nic.source
    const found = here.networks.find(({ name }) => name === wanted)
    if (wanted === undefined) {
      edits[nic.mac] = mac
    } else if (found !== undefined) {
      edits[nic.mac] = mapped === undefined ? mac : { ...mac, connect: connectionTo(found) }
      steps.push(`connect ${mac.mac ?? nic.mac} to ${found.kind} ${found.name}`)
    } else {
      needsUnconnected = true
      edits[nic.mac] = { ...mac, connect: { network: unconnectedNetwork } }
      warnings.push(
        `${nic.type} ${wanted} does not exist here: ${mac.mac ?? nic.mac} is put on the isolated network ${unconnectedNetwork} (see --network)`,
      )
    }
  }
  return { edits, steps, needsUnconnected }
}

const connectionTo = ({ kind, name }: NetworkFacts): NicConnection =>
  kind === 'bridge' ? { bridge: name } : { network: name }

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
