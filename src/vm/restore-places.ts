/**
 * Where the files of a restored VM go: its disks, its small files, its memory; what makes way for them, and the links that
 * lead from the original place to another one.
 */
import { basename, dirname, extname, join } from 'node:path'
import type { RestoreRequest, RestoreTarget } from '../vss/restore-plan.ts'
import type { StoredHostFile } from './host-files.ts'
import type { RestoreSurroundings, StoredVm } from './restore-plan.ts'

/** A disk with its place and format after the restore. */
export interface PlacedDisk {
  readonly target: string
  readonly location: string
  readonly path: string
  readonly format: string
  readonly sizeBytes: number
}

export interface PlacedFiles {
  readonly targets: readonly RestoreTarget[]
  /** Firmware variables, where the configuration must name them. */
  readonly nvram?: string
}

/** One target for each file, each staged beside its place. */
export function planTargets(
  vm: StoredVm,
  disks: readonly PlacedDisk[],
  identity: { readonly name: string; readonly uuid: string },
  memory: string | undefined,
  request: RestoreRequest,
  here: RestoreSurroundings,
): PlacedFiles {
  const staged = (path: string) => `${path}.umbra-new-${here.token}`
  const copy = request.as === undefined ? undefined : { ...identity, from: vm.uuid }
  const targets: RestoreTarget[] = disks.map(({ target, path, format, sizeBytes }) => {
    const owner = vm.owners[target]
    const source = { stream: `disks/${target}`, sizeBytes }
    return { source, staged: staged(path), path, format, ...(owner === undefined ? {} : { owner }) }
  })
  let nvram: string | undefined
  for (const file of vm.hostFiles) {
    const path = placeHostFile(file, copy, request.to)
    if (file.role === 'nvram') nvram = path
    targets.push({ source: { document: file.document }, staged: staged(path), path, format: 'file', owner: file.owner })
  }
  if (memory !== undefined) {
    const source = { stream: 'memory', sizeBytes: vm.memoryBytes ?? 0 }
    targets.push({ source, staged: staged(memory), path: memory, format: 'file' })
  }
  return { targets, ...(nvram === undefined ? {} : { nvram }) }
}

/** The original file, or a file of the same name in --to; a copy gets names of its own. */
export function placeDisk(
  disk: { target: string; location: string; format?: string },
  { as, to }: RestoreRequest,
): string {
  const directory = to ?? dirname(disk.location)
  if (as === undefined) return join(directory, basename(disk.location))
  const known = { raw: '.raw', qcow2: '.qcow2', vpc: '.vhd', vhdx: '.vhdx' }[disk.format ?? 'raw']
  return join(directory, `${as}-${disk.target}${known ?? extname(disk.location)}`)
}

/** The original place; a copy's firmware variables get its name, its TPM state its UUID. */
function placeHostFile(
  { role, path }: StoredHostFile,
  copy: { name: string; from: string; uuid: string } | undefined,
  to: string | undefined,
): string {
  if (role === 'tpm') return copy === undefined ? path : path.replace(copy.from, copy.uuid)
  return join(to ?? dirname(path), copy === undefined ? basename(path) : `${copy.name}_VARS.fd`)
}

/** Memory belongs to one identity: a copy starts from its disks, as after a power cut at that instant. */
export function memoryPlan(
  vm: StoredVm,
  copy: boolean,
  here: RestoreSurroundings,
  warnings: string[],
): string | undefined {
  if (vm.memoryBytes === undefined) return undefined
  if (copy) {
    warnings.push('its memory is left out: a copy has another identity and starts from its disks, as after a power cut')
    return undefined
  }
  return join(here.workDirectory, `${vm.uuid}-${here.token}.memory`)
}

export function placeObstacles(
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
export function planLinks(
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
