/**
 * Who makes way for a restored VM. The VM with its UUID and its name is the one that was backed up; whoever has only one of
 * both is somebody else's until the user names it. A file that no VM here is known to own is not ours to remove.
 */
import type { RestoreRequest } from '../vss/restore-plan.ts'
import type { VmFacts } from './hypervisor.ts'
import type { RestoreSurroundings, StoredVm } from './restore-plan.ts'

/** The VM that makes way, if any, and why it may not. */
export function makeWay(
  vm: Pick<StoredVm, 'name'>,
  request: RestoreRequest,
  here: RestoreSurroundings,
): { former: VmFacts | undefined; obstacles: string[] } {
  const name = request.as ?? vm.name
  const { former, namesake } = here
  const isNamed = (one: VmFacts) => (request.replace ?? []).some((word) => word === one.name || word === one.uuid)
  if (request.as !== undefined) {
    return { former: undefined, obstacles: namesake === undefined ? [] : [taken(name, namesake, '')] }
  }
  if (former !== undefined && namesake !== undefined) {
    return { former, obstacles: [taken(name, namesake, ''), ...formerObstacles(former)] }
  }
  if (namesake !== undefined) {
    const obstacles = isNamed(namesake) ? [] : [taken(name, namesake, `, or have it replaced with --replace ${name}`)]
    return { former: namesake, obstacles: [...obstacles, ...formerObstacles(namesake)] }
  }
  if (former === undefined) return { former, obstacles: [] }
  const renamed =
    former.name === vm.name || isNamed(former)
      ? []
      : [
          `the VM that has its UUID on this host is called ${former.name} and may be another one: ` +
            `restore with --as, or have it replaced with --replace ${former.name}`,
        ]
  return { former, obstacles: [...renamed, ...formerObstacles(former)] }
}

const taken = (name: string, namesake: VmFacts, more: string) =>
  `another VM is called ${name} on this host (${namesake.uuid}): choose a name with --as${more}`

/** What a restore would lose, or could not end. */
export function formerObstacles(former: VmFacts): string[] {
  const obstacles: string[] = []
  if (former.busy !== undefined) obstacles.push(`${former.name} is occupied by ${former.busy}`)
  if (former.power === 'saved')
    obstacles.push(`${former.name} is in the hypervisor's saved state: start it or discard that state first`)
  if (former.hasHypervisorSnapshots) {
    obstacles.push(
      `${former.name} has snapshots of the hypervisor, which a restore would lose: delete them first, or restore with --as`,
    )
  }
  return obstacles
}

/** Of the files that would make way: those that are another VM's, and those that may be anybody's. */
export function foreignFiles(
  paths: readonly string[],
  vm: { readonly uuid: string },
  former: VmFacts | undefined,
  request: RestoreRequest,
  here: RestoreSurroundings,
): string[] {
  const { usersOf } = here
  if (usersOf === undefined) return []
  const isNamed = (path: string) =>
    (request.replace ?? []).some((word) => word === path || here.realPath?.(word) === path)
  return paths.flatMap((path) => {
    if (here.pathKind(path) !== 'file') return []
    const users = usersOf(path)
    const others = users.filter(({ uuid }) => uuid !== former?.uuid && uuid !== vm.uuid)
    if (others.length > 0) return [`${path} belongs to the VM ${others.map(({ name }) => name).join(', ')}`]
    const isOurs = users.length > 0 || path.split('/').includes(vm.uuid)
    if (isOurs || isNamed(path)) return []
    return [`${path} exists and belongs to no VM here: move it away, or have it replaced with --replace ${path}`]
  })
}
