/**
 * Single disks of a VM that is still here: it is turned off, these files are replaced where they lie now, and it is
 * registered again with the configuration it has. Everything else of it stays as it is.
 */
import type { RestoreRequest, RestoreTarget } from '../vss/restore-plan.ts'
import type { VmFacts } from './hypervisor.ts'
import { foreignFiles, makeWay } from './restore-identity.ts'
import { asidesOf, baseOf, tellDisk } from './restore-places.ts'
import type { RestoreSurroundings, StoredVm, VmRestorePlan } from './restore-plan.ts'

export function planSingleDisks(
  vm: StoredVm,
  request: RestoreRequest,
  here: RestoreSurroundings,
  only: readonly string[],
): VmRestorePlan {
  const { former, obstacles } = makeWay(vm, request, here)
  obstacles.push(...singleObstacles(vm, request, former))
  const targets: RestoreTarget[] = []
  const steps: string[] = []
  for (const target of new Set(only)) {
    const stored = vm.disks.find((disk) => disk.target === target)
    const storage = former?.disks.find((disk) => disk.target === target)?.image
    if (stored === undefined) {
      const known = vm.disks.map((disk) => disk.target).join(', ')
      obstacles.push(`there is no disk ${target} in the recovery point: ${known}`)
    } else if (former !== undefined && (storage === undefined || !('file' in storage.storage))) {
      obstacles.push(`${former.name} has no disk ${target} that is an image file`)
    } else if (storage !== undefined && 'file' in storage.storage) {
      const { sizeBytes } = stored
      const path = here.realPath?.(storage.storage.file) ?? storage.storage.file
      const owner = vm.owners[target]
      const place = { path, format: storage.format, staged: `${path}.umbra-new-${here.token}` }
      const source = { stream: `disks/${target}`, sizeBytes }
      const base = baseOf(target, path, storage.format, former, here)
      targets.push({ source, ...place, ...base, ...(owner === undefined ? {} : { owner }) })
      steps.push(tellDisk({ target, path, format: storage.format, sizeBytes }, base.base))
    }
  }
  const paths = targets.map(({ path }) => path)
  obstacles.push(...foreignFiles(paths, vm, former, request, here))
  const asides = asidesOf(targets, here)
  return {
    uuid: former?.uuid ?? vm.uuid,
    name: former?.name ?? vm.name,
    ...(former === undefined ? {} : { former }),
    keepsConfiguration: true,
    edit: {},
    targets,
    asides,
    links: [],
    needsUnconnected: false,
    steps: [
      ...steps,
      ...(former === undefined || former.power === 'off' ? [] : [`turn off ${former.name}`]),
      ...asides.map(({ path }) => `keep ${path} aside until all has succeeded`),
      'register it again with the configuration it has',
      ...(asides.length === 0 ? [] : ['delete what was kept aside']),
      request.start ? `start ${vm.name}` : `leave ${vm.name} off`,
    ],
    warnings: singleWarnings(vm, only),
    obstacles,
  }
}

function singleObstacles(vm: StoredVm, request: RestoreRequest, former: VmFacts | undefined): string[] {
  if (former === undefined) return [`${vm.name} is not on this host: only all of it can be restored`]
  const obstacles: string[] = []
  if (!former.persistent) obstacles.push(`${former.name} has no stored configuration to be registered with again`)
  if (
    request.as !== undefined ||
    request.to !== undefined ||
    request.disks !== undefined ||
    request.format !== undefined
  )
    obstacles.push('single disks are restored where they are, in the format they have')
  return obstacles
}

function singleWarnings(vm: StoredVm, only: readonly string[]): string[] {
  const others = vm.disks.map(({ target }) => target).filter((target) => !only.includes(target))
  return [
    ...(others.length === 0 ? [] : [`${others.join(', ')} stay as they are now: the VM gets disks of different times`]),
    ...(vm.memoryBytes === undefined ? [] : ['its memory is left out: it belongs to all disks of that instant']),
  ]
}
