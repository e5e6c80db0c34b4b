/**
 * The three ways of auto-recovery (auto-recovery.ts says what each of them is), for one PostSnapshot. The helper VM starts
 * with the first VM that needs it, serves them one after the other, and ends with the window.
 */
import type { UndoStep } from '../base/cleanup.ts'
import type { Clock } from '../base/clock.ts'
import { describeError, Failure } from '../base/failure.ts'
import type { BlockSink, BlockSource } from '../disk/block-device.ts'
import { failure } from '../errors.ts'
import type { AutoRecovery, Recover, Recovery, RecoveryWay } from './auto-recovery.ts'
import type { DiskImage, Hypervisor } from './hypervisor.ts'

export type WritableDevice = BlockSource & BlockSink

/** Writable images of one VM; disposal closes them and waits until nobody holds them. */
export interface WritableImages extends AsyncDisposable {
  open(name: string): Promise<WritableDevice>
}

/** A VM of our own that reverts what it is given, one VM's disks at a time. */
export interface HelperVm extends AsyncDisposable {
  /** Rejects with HELPER_VM_FAILED or GUEST_SET_LOST; the images are closed either way. */
  revert(
    vm: string,
    set: string,
    disks: readonly { serial: string; image: DiskImage }[],
    signal: AbortSignal,
  ): Promise<void>
}

export interface RecoveryTools {
  readonly hypervisor: Hypervisor
  readonly clock: Clock
  openWritable(images: readonly { name: string; image: DiskImage }[]): Promise<WritableImages>
  /** Writes nothing before it has understood everything. */
  revertByReading(
    vm: string,
    set: string,
    disks: readonly { name: string; device: WritableDevice }[],
    signal: AbortSignal,
  ): Promise<unknown>
  /** Gives a btrfs file system its own fsid back. */
  restoreFsid(device: WritableDevice, fsid: string): Promise<void>
  startHelperVm(): Promise<HelperVm>
}

/** Opened with the window of PostSnapshot, disposed before it closes. */
export interface OpenAutoRecovery extends AutoRecovery, AsyncDisposable {}

export function openAutoRecovery(tools: RecoveryTools): OpenAutoRecovery {
  let helper: Promise<HelperVm> | undefined
  const theHelper = () => {
    helper ??= tools.startHelperVm()
    return helper
  }
  const byReading = told('by-reading', (recovery) => recoverByReading(tools, recovery))
  const onHost = told('on-host', (recovery) => recoverOnHost(theHelper, recovery))
  return {
    async 'by-reading'(recovery) {
      try {
        return await byReading(recovery)
      } catch (error) {
        // Nothing was written: then somebody else may try.
        if (!notUnderstood(error)) throw error
        recovery.tell(`not rolled back by reading: ${describeError(error)}`)
        return await onHost(recovery)
      }
    },
    'on-host': onHost,
    'in-guest': told('in-guest', (recovery) => recoverInGuest(tools, recovery)),
    async [Symbol.asyncDispose]() {
      const started = await helper?.catch(() => undefined)
      await started?.[Symbol.asyncDispose]()
    },
  }
}

const notUnderstood = (error: unknown): boolean =>
  error instanceof Failure && error.cause instanceof Failure && error.cause.code === 'VOLUMES_NOT_UNDERSTOOD'

/** Every failure says which VM and which way, except one that already says more. */
function told(way: RecoveryWay, recover: (recovery: Recovery) => Promise<void>): Recover {
  return async (recovery) => {
    try {
      await recover(recovery)
      return way
    } catch (error) {
      if (error instanceof Failure && error.code === 'GUEST_SET_LOST') throw error
      throw failure('RECOVERY_FAILED', { vm: recovery.vm.name, way, reason: describeError(error) }, error)
    }
  }
}

async function recoverByReading(tools: RecoveryTools, { vm, set, copies, signal }: Recovery): Promise<void> {
  await using images = await tools.openWritable(copies.map(({ target, image }) => ({ name: target, image })))
  const disks = await Promise.all(
    copies.map(async ({ target }) => ({ name: target, device: await images.open(target) })),
  )
  await tools.revertByReading(vm.name, set, disks, signal)
}

async function recoverOnHost(helper: () => Promise<HelperVm>, { vm, set, copies, signal }: Recovery): Promise<void> {
  const disks = copies.map(({ target, image }) => ({ serial: serialOf(set, target), image }))
  await (await helper()).revert(vm.name, set, disks, signal)
}

/** While the copies are attached the guest's LVM refuses changes: nothing else happens in between. */
async function recoverInGuest(tools: RecoveryTools, recovery: Recovery): Promise<void> {
  const { hypervisor, clock } = tools
  const { vm, set, copies, undo, tell } = recovery
  const imageOf = new Map(copies.map(({ target, image }) => [serialOf(set, target), image]))
  const steps: UndoStep[] = []
  const detachAll = async () => {
    for (const step of steps.splice(0).reverse()) await undo.run(step)
  }
  const beganMs = clock.monotonicMs()
  const changed = await (async () => {
    await using _detached = { [Symbol.asyncDispose]: detachAll }
    for (const [serial, image] of imageOf) {
      steps.push(await undo.defer({ undo: 'detach-copy', vm: vm.uuid, name: vm.name, serial }))
      await hypervisor.attachCopy(vm.uuid, { serial, image })
    }
    return await hypervisor.requestor(vm.uuid).revert(set, [...imageOf.keys()])
  })()
  tell(`copies were attached to the VM for ${Math.round(clock.monotonicMs() - beganMs)} ms`)
  for (const { serial, fsid } of changed) {
    const image = imageOf.get(serial)
    if (image === undefined) throw new Error(`the guest speaks of a copy ${serial} that it was not given`)
    await using images = await tools.openWritable([{ name: serial, image }])
    await tools.restoreFsid(await images.open(serial), fsid)
  }
}

/** At most 20 characters, which is what a virtio disk can tell. */
const serialOf = (set: string, target: string): string => `umbra-${set}-${target}`.slice(0, 20)
