/**
 * What is not as it was before: the judge of the fault matrix. Take `remember(world)` first; afterwards `leftovers`
 * names everything that somebody would have to put right. Contents of disks are not compared: the guests go on writing.
 */
import { readConfiguration } from './sim-configuration.ts'
import { SimLayer, storageKey } from './sim-disk.ts'
import { attachedCopies } from './sim-hot-add.ts'
import { nameOf, powerOf, type SimVm } from './sim-vm.ts'
import type { SimWorld } from './sim-world.ts'

interface VmMemory {
  readonly name: string
  readonly power: string
  readonly bootId: string | undefined
  readonly persistent: boolean
  readonly frozen: boolean
  readonly configuration: string
  readonly liveConfiguration: string | undefined
  readonly disks: ReadonlyMap<string, string>
}

/** How a world was. */
export interface WorldMemory {
  readonly vms: ReadonlyMap<string, VmMemory>
  readonly files: ReadonlySet<string>
  readonly networks: ReadonlySet<string>
}

export const remember = (world: SimWorld): WorldMemory => ({
  vms: new Map([...world.vms].map(([uuid, vm]) => [uuid, rememberVm(world, vm)])),
  files: new Set(world.files.paths()),
  networks: new Set(world.networks.keys()),
})

function rememberVm(world: SimWorld, vm: SimVm): VmMemory {
  const { disks } = readConfiguration(vm.live?.configuration ?? vm.configuration)
  return {
    name: nameOf(vm),
    power: powerOf(vm),
    bootId: vm.live?.memory.bootId ?? vm.managedSave?.memory.bootId,
    persistent: vm.persistent,
    frozen: world.guestOf(vm.uuid).isFrozen,
    configuration: vm.configuration,
    liveConfiguration: vm.live?.configuration,
    disks: new Map(disks.map(({ target, image }) => [target, image === undefined ? '' : storageKey(image.storage)])),
  }
}

/** Empty when everything is as before; `before` is the state after `simulatedWorld` unless given. */
export function leftovers(world: SimWorld, before: WorldMemory = world.beginning): string[] {
  const now = remember(world)
  const found: string[] = []
  for (const [uuid, was] of before.vms) {
    const is = now.vms.get(uuid)
    if (is === undefined) found.push(`${was.name} is gone`)
    else found.push(...differences(was, is))
  }
  for (const [uuid, { name, frozen }] of now.vms) {
    if (!before.vms.has(uuid)) found.push(`${name} is new`)
    if (frozen && before.vms.get(uuid)?.frozen !== true) found.push(`${name} is frozen`)
    const coming = world.guestOf(uuid).memory?.late.some(({ kind }) => kind === 'freeze')
    if (coming === true) found.push(`${name} will freeze later`)
    found.push(...ofRequestor(world, uuid, name))
  }
  for (const path of now.files) if (!before.files.has(path)) found.push(`stray ${kindOf(world, path)} ${path}`)
  for (const path of before.files) if (!now.files.has(path)) found.push(`${path} is missing`)
  for (const name of now.networks) if (!before.networks.has(name)) found.push(`network ${name} is new`)
  for (const { mode, keys } of world.handles) found.push(`${keys[0]} is still open to ${mode}`)
  return found
}

/** What the guest's own shadow copies, and copies of disks for it, have left. */
function* ofRequestor(world: SimWorld, uuid: string, name: string): Generator<string> {
  const { areas, sets, heldFor } = world.requestorOf(uuid)
  if (heldFor !== undefined) yield `${name} holds its writers for ${heldFor}`
  for (const set of areas.keys())
    yield sets.includes(set) ? `${name} keeps the set ${set}` : `${name} has areas of the set ${set} on its disks`
  const vm = world.vms.get(uuid)
  for (const { serial } of vm === undefined ? [] : attachedCopies(vm)) yield `${name} has the copy ${serial} attached`
}

function* differences(was: VmMemory, is: VmMemory): Generator<string> {
  const { name } = was
  if (is.power !== was.power) yield `${name} is ${is.power} and was ${was.power}`
  else if (is.bootId !== was.bootId) yield `${name} was restarted`
  if (is.persistent !== was.persistent) yield `${name} is ${is.persistent ? '' : 'not '}persistent`
  let moved = false
  for (const [target, location] of was.disks) {
    const now = is.disks.get(target)
    if (now === location) continue
    moved = true
    yield `${name} ${target} lies on ${now ?? 'nothing'} and lay on ${location}`
  }
  if (moved) return
  if (is.configuration !== was.configuration) yield `${name} has another configuration`
  if (is.power === was.power && is.liveConfiguration !== was.liveConfiguration)
    yield `${name} runs with another configuration`
}

function kindOf(world: SimWorld, path: string): string {
  const file = world.files.get(path)
  if (file instanceof SimLayer) return file.backing === undefined ? 'image' : 'overlay'
  return file !== undefined && 'saved' in file ? 'memory image' : 'file'
}
