/**
 * Overlays of the simulated hypervisor: made before, put on all or none, taken off one by one, shallow and idempotent.
 */
import { failure } from '../../src/errors.ts'
import type { DiskImage, OverlayInPlace, OverlayPlan } from '../../src/vm/hypervisor.ts'
import { type ConfiguredDisk, diskText, withDiskImage } from './sim-configuration.ts'
import { SimLayer, sameImage, storageKey } from './sim-disk.ts'
import { attachedCopies } from './sim-hot-add.ts'
import { nameOf, refused, type SimVm, topImage } from './sim-vm.ts'
import type { SimWorld } from './sim-world.ts'

const overlayImage = (overlay: string): DiskImage => ({ format: 'qcow2', storage: { file: overlay } })

/** Makes the overlay files, all or none; throws NoSpaceError or a refusal. Changes no VM. */
export function makeOverlays(world: SimWorld, vm: SimVm, plans: readonly OverlayPlan[]): void {
  const bases = plans.map((plan) => baseFor(vm, plan))
  for (const names of [plans.map(({ overlay }) => overlay), plans.map(({ target }) => target)])
    if (new Set(names).size < names.length) throw refused('snapshot', `named twice: ${names.join(', ')}`)
  for (const { target, overlay } of plans)
    if (world.files.has(overlay))
      throw refused('snapshot', `disk ${target}: external snapshot file ${overlay} already exists`)
  try {
    for (const [index, { overlay }] of plans.entries()) {
      const base = bases[index] as DiskImage
      world.files.createImage(overlayImage(overlay), world.files.disk(base).sizeBytes, base)
    }
  } catch (error) {
    dropOverlays(world, plans)
    throw error
  }
}

/** Deletes overlay files that are on no disk. */
export function dropOverlays(world: SimWorld, plans: readonly OverlayPlan[]): void {
  for (const { overlay } of plans) world.files.remove(overlay)
}

/** The instant: all disks named lie on their overlays, which have been made; or nothing has changed, and they are gone. */
export function putOverlaysOn(world: SimWorld, vm: SimVm, plans: readonly OverlayPlan[]): void {
  for (const plan of plans) {
    const file = world.files.get(plan.overlay)
    const beneath = file instanceof SimLayer ? file.backing : undefined
    if (beneath !== undefined && sameImage(beneath, baseFor(vm, plan))) continue
    dropOverlays(world, plans)
    throw refused('snapshot', `${plan.overlay} is no overlay of disk ${plan.target} as it is now`)
  }
  const requestor = world.requestorOf(vm.uuid)
  for (const { target, overlay } of plans) {
    const base = topImage(vm, target)?.image
    if (base !== undefined) world.frozenSets.set(storageKey(base.storage), requestor.setsOn(target))
    vm.beneath.set(overlay, diskText(vm.configuration, target))
    changeDisk(vm, target, (xml) => withDiskImage(xml, target, overlayImage(overlay)))
  }
}

function baseFor(vm: SimVm, { target }: OverlayPlan): DiskImage {
  const disk: ConfiguredDisk | undefined = topImage(vm, target)
  const refuse = (reason: string) => refused('snapshot', `disk ${target}: ${reason}`)
  if (disk === undefined) throw refuse('there is no such disk')
  if (disk.image === undefined || disk.device !== 'disk') throw refuse(`${disk.device} is not supported`)
  if (disk.readOnly || disk.shareable) throw refuse('read-only and shared disks are not supported')
  return disk.image
}

export function mergeOverlay(world: SimWorld, vm: SimVm, { target, overlay, base }: OverlayInPlace): void {
  const refuse = (reason: string) => failure('MERGE_REFUSED', { vm: nameOf(vm), overlay, reason })
  const top = topImage(vm, target)?.image
  if (top === undefined) throw refuse(`${target} is no disk of the VM`)
  if (sameImage(top, base)) {
    dropUnused(world, overlay, base, refuse)
    return
  }
  if (storageKey(top.storage) !== overlay) throw refuse(`${target} lies on ${storageKey(top.storage)}`)
  const disk = world.files.disk(top)
  const beneath = disk.top.backing
  if (beneath === undefined || !sameImage(beneath, base))
    throw refuse(`beneath it lies ${beneath === undefined ? 'nothing' : storageKey(beneath.storage)}`)
  const key = storageKey(base.storage)
  const copies = attachedCopies(vm).map(({ image }) => (image === undefined ? undefined : world.files.findDisk(image)))
  if (world.readersOf(key, vm.uuid).length > 0 || copies.some((copy) => copy?.keys.includes(key)))
    throw refuse(`Failed to get "write" lock: is another process using the image [${key}]?`)
  disk.mergeDown()
  world.frozenSets.delete(key)
  const before = vm.beneath.get(overlay)
  changeDisk(vm, target, (xml) =>
    before === undefined ? withDiskImage(xml, target, base) : xml.replace(diskText(xml, target), () => before),
  )
  vm.beneath.delete(overlay)
  world.files.remove(overlay)
}

/** The VM is on its base already: the overlay was never used, or is merged. */
function dropUnused(world: SimWorld, overlay: string, base: DiskImage, refuse: (reason: string) => Error): void {
  const file = world.files.get(overlay)
  if (file === undefined) return
  if (!(file instanceof SimLayer) || file.backing === undefined || !sameImage(file.backing, base))
    throw refuse('the file is no overlay of that disk')
  const users = world.readersOf(overlay)
  if (users.length > 0) throw refuse(`it is used by ${users.join(', ')}`)
  world.files.remove(overlay)
}

/** In what runs or is saved, and in what will run next when both name the same disk. */
function changeDisk(vm: SimVm, target: string, change: (xml: string) => string): void {
  const before = diskText(vm.configuration, target)
  const now = vm.live ?? vm.managedSave
  if (now === undefined || diskText(now.configuration, target) === before) vm.configuration = change(vm.configuration)
  if (vm.live !== undefined) vm.live.configuration = change(vm.live.configuration)
  if (vm.managedSave !== undefined && diskText(vm.managedSave.configuration, target) === before)
    vm.managedSave = { ...vm.managedSave, configuration: change(vm.managedSave.configuration) }
}
