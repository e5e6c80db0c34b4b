/**
 * Proof that an image holds what it should, by QEMU's own programs: see "QEMU disk image utility" of the QEMU documentation,
 * `check` and `compare`.
 */
import { describeError, Failure } from '../base/failure.ts'
import { runCommand } from '../base/run-command.ts'
import { failure } from '../errors.ts'

/** The formats of ours whose structure qemu-img can check; raw has none, and of VHD it knows none. */
const checkable: readonly string[] = ['qcow2', 'vhdx', 'qed', 'vmdk', 'vdi']
/** A disk of some TiB takes hours. */
const deadlineMs = 7 * 24 * 60 * 60 * 1000

/** EXPORT_CHECK_FAILED when the image is damaged or leaks; nothing for formats that can not be checked. */
export async function checkImage(path: string, format: string, signal: AbortSignal): Promise<void> {
  if (!checkable.includes(format)) return
  await prove(path, ['check', '-q', '-f', format, '--', path], signal, 'qemu-img check finds faults')
}

/** EXPORT_CHECK_FAILED unless the image holds what the raw disk at `uri` holds; what one has beyond the other is zeros. */
export async function compareImage(path: string, format: string, uri: string, signal: AbortSignal): Promise<void> {
  const args = ['compare', '-q', '-f', format, '-F', 'raw', '--', path, uri]
  await prove(path, args, signal, 'its content is not that of the recovery point')
}

async function prove(path: string, args: readonly string[], signal: AbortSignal, no: string): Promise<void> {
  try {
    await runCommand('qemu-img', args, { deadlineMs, signal, diesWithUs: true })
  } catch (error) {
    if (!(error instanceof Failure) || error.code !== 'COMMAND_FAILED') throw error
    // It says no by its exit status alone; anything else it says in words.
    const saysNo = /^it ended with \d+$/.test(String(error.context.reason))
    throw failure('EXPORT_CHECK_FAILED', { path, reason: saysNo ? no : describeError(error) }, error)
  }
}
