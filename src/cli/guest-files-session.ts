/**
 * The files of one VM of a recovery point, ready to be read: its disks served from the repository on a socket of ours, and the
 * helper VM that reads them. Disposal ends both; nothing is left.
 */
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { describeError } from '../base/failure.ts'
import { socketDirectory } from '../compose.ts'
import type { BlockSource } from '../disk/block-device.ts'
import { type ServedFailure, serveDisks } from '../disk/nbd-server.ts'
import { failure } from '../errors.ts'
import { GuestFiles } from '../guest-files/guest-files.ts'
import { startFilesVm } from '../libvirt/helper-vm-files.ts'
import { helperVmImages } from '../libvirt/helper-vm-images.ts'
import type { RecoveryPoint } from '../repository/repository.ts'
import { type ExportableVm, exportableVms, openDisk } from '../requester/export-contents.ts'
import type { CommandContext } from './command.ts'

export interface GuestFilesSession extends AsyncDisposable {
  readonly vm: string
  readonly files: GuestFiles
  /** Of the helper VM. */
  readonly pid: number
}

/** How long a read waits for a repository that can not be reached. */
const patienceMs = 60_000

/** The VM of that name or UUID; without a name, the only one. USAGE, VM_NOT_FOUND, HELPER_VM_FAILED. */
export async function openGuestFiles(
  point: RecoveryPoint,
  name: string | undefined,
  { settings, signal, screen }: CommandContext,
): Promise<GuestFilesSession> {
  const vm = onlyVm(await exportableVms(point, name === undefined ? [] : [name]))
  const images = await helperVmImages({ signal })
  await using opened = new AsyncDisposableStack()
  const disks: { name: string; source: BlockSource }[] = []
  for (const disk of vm.disks) {
    disks.push({ name: disk.target, source: opened.use(await openDisk(point, disk)) })
  }
  const told = (what: string) => (failed: ServedFailure) =>
    screen.note(`${failed.name} at offset ${failed.offset}: ${what}: ${describeError(failed.error)}`)
  const server = opened.use(
    await serveDisks(disks, {
      socketPath: join(await socketDirectory(settings), `files-${randomBytes(4).toString('hex')}.sock`),
      patienceMs,
      onWaiting: told('waiting for the repository'),
      onFailure: told('can not be read'),
    }),
  )
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
