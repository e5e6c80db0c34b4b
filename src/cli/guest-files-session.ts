/**
 * The files of one VM of a recovery point, ready to be read: its disks served from the repository on a socket of ours, and the
 * helper VM that reads them. Disposal ends both; nothing is left.
 */
import { failure } from '../errors.ts'
import { GuestFiles } from '../guest-files/guest-files.ts'
import { startFilesVm } from '../libvirt/helper-vm-files.ts'
import { helperVmImages } from '../libvirt/helper-vm-images.ts'
import type { RecoveryPoint, Repository } from '../repository/repository.ts'
import { type ExportableVm, exportableVms } from '../requester/export-contents.ts'
import type { CommandContext } from './command.ts'
import { servePoint } from './served-point.ts'

export interface GuestFilesSession extends AsyncDisposable {
  readonly vm: string
  readonly files: GuestFiles
  /** Of the helper VM. */
  readonly pid: number
}

export interface FilesOfPoint {
  readonly point: RecoveryPoint
  /** The VM, by name or UUID; the only one unless told. */
  readonly vm: string | undefined
  /** Opens the repository once more, without asking anybody. */
  readonly openAgain: () => Promise<Repository>
}

/** USAGE, VM_NOT_FOUND, HELPER_VM_FAILED. */
export async function openGuestFiles(
  { point, vm: name, openAgain }: FilesOfPoint,
  context: CommandContext,
): Promise<GuestFilesSession> {
  const { signal, screen } = context
  const vm = onlyVm(await exportableVms(point, name === undefined ? [] : [name]))
  const images = await helperVmImages({ signal })
  await using opened = new AsyncDisposableStack()
  const disks = vm.disks.map((disk) => ({ name: disk.target, disk }))
  const server = opened.use(await servePoint({ point, disks, socketPrefix: 'files-', openAgain }, context))
  signal.throwIfAborted()
  const exported = disks.map((disk) => ({ name: disk.name, exportName: disk.name, socketPath: server.socketPath }))
  const reader = opened.use(await startFilesVm({ images, disks: exported, signal }))
  const files = new GuestFiles(reader, { disks: disks.length, onNote: screen.note })
  const held = opened.move()
  return { vm: vm.name, files, pid: reader.pid, [Symbol.asyncDispose]: () => held.disposeAsync() }
}

function onlyVm(vms: readonly ExportableVm[]): ExportableVm {
  const [vm, ...more] = vms
  if (vm === undefined || more.length > 0) {
    const names = vms.map((one) => one.name).join(', ')
    throw failure('USAGE', { reason: `the recovery point holds several VMs: say with --vm which one: ${names}` })
  }
  if (vm.disks.length === 0) throw failure('USAGE', { reason: `the recovery point holds no disk of ${vm.name}` })
  return vm
}
