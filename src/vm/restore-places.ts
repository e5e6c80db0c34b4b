/**
 * Where the files of a restored VM go: its disks, its small files, its memory; what makes way for them, and the links that
 * lead from the original place to another one.
 */
import { basename, dirname, extname, join } from 'node:path'
import type { RestoreRequest, RestoreTarget } from '../vss/restore-plan.ts'
import type { StoredHostFile } from './host-files.ts'
import type { VmFacts } from './hypervisor.ts'
import { imageName, imageSuffixes, suffixFormats } from './image-names.ts'
import type { RestoreSurroundings, StoredVm } from './restore-plan.ts'

/** A disk with its place and format after the restore. */
export interface PlacedDisk {
  readonly target: string
  readonly location: string
  /** Where it is written: no part of it but the last leads elsewhere. */
  readonly path: string
  /** How the configuration calls it: in its own place as it always did. */
  readonly named: string
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
    const base = baseOf(target, path, format, copy === undefined ? here.former : undefined, here)
    return { source, staged: staged(path), path, format, ...base, ...(owner === undefined ? {} : { owner }) }
  })
  let nvram: string | undefined
  for (const file of vm.hostFiles) {
    const named = placeHostFile(file, copy, request.to)
    const path = realPath(named, here)
    if (file.role === 'nvram') nvram = named === file.path ? named : path
    targets.push({ source: { document: file.document }, staged: staged(path), path, format: 'file', owner: file.owner })
  }
  if (memory !== undefined) {
    const source = { stream: 'memory', sizeBytes: vm.memoryBytes ?? 0 }
    targets.push({ source, staged: staged(memory), path: memory, format: 'file' })
  }
  return { targets, ...(nvram === undefined ? {} : { nvram }) }
}

/** The raw file that the VM here has for this disk, when the restored one takes its place. */
export function baseOf(
  target: string,
  path: string,
  format: string,
  former: VmFacts | undefined,
  here: RestoreSurroundings,
): { base?: string } {
  const image = former?.disks.find((disk) => disk.target === target)?.image
  if (format !== 'raw' || image?.format !== 'raw' || !('file' in image.storage)) return {}
  return realPath(image.storage.file, here) === path && here.pathKind(path) === 'file' ? { base: path } : {}
}

/** Every disk of the VM with its place and format after the restore. */
export function placeDisks(vm: StoredVm, request: RestoreRequest, here: RestoreSurroundings): PlacedDisk[] {
  return vm.disks.map((disk) => {
    const format = formatOf(disk, request)
    const wanted = placeDisk({ ...disk, to: format }, request)
    const path = realPath(wanted, here)
    return { ...disk, path, named: wanted === disk.location ? wanted : path, format }
  })
}

const realPath = (path: string, here: RestoreSurroundings): string =>
  path.startsWith('/') ? (here.realPath?.(path) ?? path) : path

/** As the user says, for this disk, for all, by the name that the file is to have; else as it was. */
function formatOf(
  { target, format }: { target: string; format?: string },
  { format: all, disks }: RestoreRequest,
): string {
  const own = disks?.[target]
  return own?.format ?? all ?? suffixFormats[extname(own?.path ?? '')] ?? format ?? 'raw'
}

/** The original file, or a file of the same name in another directory; a copy gets names of its own. */
function placeDisk(
  disk: { target: string; location: string; format?: string; to: string },
  { as, to, disks }: RestoreRequest,
): string {
  const own = disks?.[disk.target]?.path
  if (own !== undefined && !own.endsWith('/')) return own
  const directory = own ?? to ?? dirname(disk.location)
  const suffix = imageSuffixes[disk.to]
  if (as !== undefined) return join(directory, `${as}-${disk.target}${suffix ?? extname(disk.location)}`)
  const name = basename(disk.location)
  const converted = disk.to !== (disk.format ?? 'raw') && suffix !== undefined
  return join(directory, converted ? `${basename(name, extname(name))}${suffix}` : name)
}

/** QEMU's VHDs end at 2040 GiB (block/vpc.c, VHD_MAX_SECTORS). */
const largestVhdBytes = 2040 * 2 ** 30

/** What the user said about disks that can not be done. */
export function requestObstacles(
  vm: StoredVm,
  disks: readonly PlacedDisk[],
  request: RestoreRequest,
  here: RestoreSurroundings,
): string[] {
  const known = vm.disks.map(({ target }) => target)
  const unknown = Object.keys(request.disks ?? {}).filter((target) => !known.includes(target))
  const obstacles = unknown.map((target) => `there is no disk ${target} in the recovery point: ${known.join(', ')}`)
  const runs = here.fit?.host.diskFormats
  for (const { target, format, sizeBytes } of disks) {
    if (runs !== undefined && !runs.includes(format)) {
      const others = runs.filter((one) => one in imageSuffixes).map(imageName)
      obstacles.push(`${target}: no VM runs from ${imageName(format)} here: choose ${others.join(', ')}`)
    }
    if (format === 'vpc' && sizeBytes > largestVhdBytes) obstacles.push(`${target} is larger than a VHD can be`)
  }
  return obstacles
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
      obstacles.push(`${target} was not a file (${location}): say with --to or --disk where it is to be put`)
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
  disks: readonly { target: string; location: string; named: string; path: string; format: string }[],
  stored: StoredVm,
  { as }: RestoreRequest,
  here: RestoreSurroundings,
  warnings: string[],
): { path: string; to: string }[] {
  if (as !== undefined) return []
  return disks.flatMap(({ target, location, named, path, format }) => {
    if (location === named || location === path || !location.startsWith('/')) return []
    if (here.pathKind(dirname(location)) === 'absent') return []
    const was = stored.disks.find((one) => one.target === target)?.format ?? 'raw'
    // A link under a name that promises another format would mislead whoever follows it.
    if (here.pathKind(location) === 'absent') return was === format ? [{ path: location, to: path }] : []
    warnings.push(`${location} stays as it is and is not used any more`)
    return []
  })
}

/** The present files that make way. */
export const asidesOf = (
  targets: readonly RestoreTarget[],
  here: RestoreSurroundings,
): { path: string; aside: string }[] =>
  targets
    .filter(({ path }) => here.pathKind(path) === 'file')
    .map(({ path }) => ({ path, aside: `${path}.umbra-aside-${here.token}` }))

export const tellDisk = (
  { target, path, format, sizeBytes }: Omit<PlacedDisk, 'location' | 'named'>,
  base: string | undefined,
): string =>
  `write ${target} to ${path} (${imageName(format)}, ${sizeBytes} bytes), verifying every byte` +
  // Whether a clone can be made is known when it is tried.
  (base === undefined ? '' : '; only what is different, where the file system makes clones')
