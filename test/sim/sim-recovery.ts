/**
 * The host's side of auto-recovery in the simulated world: what the guest's set holds for each copy is written into the
 * copy, under the locks QEMU would take. The product's own ways of recovery work with it; wrapped with
 * `faulty(…, plan, 'recovery')` the fault matrix hits every step.
 */
import { describeError } from '../../src/base/failure.ts'
import { failure } from '../../src/errors.ts'
import type { DiskImage } from '../../src/vm/hypervisor.ts'
import type { HelperVm, RecoveryTools, WritableDevice, WritableImages } from '../../src/vm/recovery-ways.ts'
import { storageKey } from './sim-disk.ts'
import { changesTo, readSetOn } from './sim-guest-sets.ts'
import { openWritable } from './sim-open-image.ts'
import type { SimWorld } from './sim-world.ts'

/** An open copy; the simulator knows what lies beneath it. */
interface SimDevice extends WritableDevice {
  readonly image: DiskImage
}

/** The tools that touch the host; the hypervisor and the clock are the caller's. */
export function simRecoveryTools(world: SimWorld): Omit<RecoveryTools, 'hypervisor' | 'clock'> {
  return {
    openWritable: async (images) => openAll(world, images),

    async revertByReading(vm, set, disks) {
      const copies = disks.map(({ device }) => ({ device, image: imageOf(device) }))
      await revertAll(world, vm, set, copies)
    },

    async restoreFsid(device, fsid) {
      const key = storageKey(imageOf(device).storage)
      await world.called()
      if (world.changedFsids.get(key) !== fsid) throw new Error(`${key} has no file system that had the fsid ${fsid}`)
      world.changedFsids.delete(key)
      await device.flush()
    },

    async startHelperVm(): Promise<HelperVm> {
      await world.called()
      return {
        async revert(vm, set, disks) {
          await using images = openAll(
            world,
            disks.map(({ serial, image }) => ({ name: serial, image })),
          )
          const devices = await Promise.all(disks.map(({ serial }) => images.open(serial)))
          await revertAll(
            world,
            vm,
            set,
            devices.map((device) => ({ device, image: imageOf(device) })),
          )
        },
        [Symbol.asyncDispose]: () => world.called(),
      }
    },
  }
}

/** All or none: nothing is written before everything has been found. */
async function revertAll(
  world: SimWorld,
  vm: string,
  set: string,
  copies: readonly { device: WritableDevice; image: DiskImage }[],
): Promise<void> {
  const found = copies.map(({ device, image }) => {
    try {
      return { device, copy: readSetOn(world, image, set) }
    } catch (error) {
      throw failure('GUEST_SET_LOST', { vm, reason: describeError(error) }, error)
    }
  })
  for (const { device, copy } of found) {
    for (const [offset, data] of changesTo(world, copy)) await device.write(offset, data)
    await device.flush()
  }
}

function openAll(world: SimWorld, images: readonly { name: string; image: DiskImage }[]): WritableImages {
  const open = new Map<string, SimDevice>()
  const close = async () => {
    for (const device of open.values()) await device[Symbol.asyncDispose]()
  }
  try {
    for (const { name, image } of images) open.set(name, { ...openWritable(world, image), image })
  } catch (error) {
    void close()
    throw error
  }
  return {
    async open(name) {
      await world.called()
      const device = open.get(name)
      if (device === undefined) throw new Error(`no image ${name}`)
      // The image is held until all of them are let go, as qemu-storage-daemon does.
      return { ...device, [Symbol.asyncDispose]: async () => undefined }
    },
    [Symbol.asyncDispose]: close,
  }
}

function imageOf(device: WritableDevice): DiskImage {
  if (!('image' in device)) throw new Error('this device is not one of the simulated world')
  return (device as SimDevice).image
}
