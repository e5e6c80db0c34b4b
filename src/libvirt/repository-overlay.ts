/**
 * A local overlay above a disk that Umbra serves out of a repository: the VM reads through it, its writes stay in it.
 * See "QEMU disk image utility" (create -u), "Domain XML format" (backingStore, reconnect) and, for the time during which
 * requests wait, reconnect-delay of BlockdevOptionsNbd in the "QEMU QMP Reference Manual".
 */
import { open, rm } from 'node:fs/promises'
import { isAbsolute } from 'node:path'
import { invariant } from '../base/failure.ts'
import { runCommand } from '../base/run-command.ts'
import type { ServedBacking } from '../vm/hypervisor.ts'
import { imageInfo } from './disk-image.ts'
import { backingName } from './overlay-file.ts'

/** Where a served disk is found. */
export interface ServedDisk {
  /** Absolute; at most 107 bytes, as the address of a socket is. */
  readonly socketPath: string
  readonly exportName: string
}

/**
 * How long a guest's requests wait for a server that is gone, before they fail: a day. Whoever does not want to wait that
 * long turns the VM off, which works meanwhile.
 */
export const reconnectDelaySeconds = 86_400

const quickMs = 30_000
const pullDeadlineMs = 24 * 60 * 60 * 1000
const longestSocketPath = 107

/**
 * Makes an empty qcow2 overlay of `sizeBytes`, private to its owner. Nobody needs to serve the disk yet. Refuses a path that
 * is taken: it may be somebody's only copy of something.
 */
export async function createRepositoryOverlay(
  path: string,
  { socketPath, exportName, sizeBytes }: ServedDisk & { readonly sizeBytes: number },
): Promise<void> {
  invariant(isAbsolute(path) && isAbsolute(socketPath), 'paths of overlays and sockets are absolute')
  invariant(sizeBytes > 0 && sizeBytes % 512 === 0, 'the size of a disk is a whole number of sectors')
  await open(path, 'wx', 0o600).then((file) => file.close())
  try {
    const backing = ['-u', '-b', backingName({ nbd: { socketPath, exportName } }), '-F', 'raw']
    const args = ['create', '-q', '-f', 'qcow2', ...backing, '--', path, String(sizeBytes)]
    await runCommand('qemu-img', args, { deadlineMs: quickMs })
  } catch (error) {
    await rm(path, { force: true })
    throw error
  }
}

/** What a configuration says about the image beneath such an overlay; see ConfigurationEdit. */
export function nbdBacking({ socketPath, exportName }: ServedDisk): ServedBacking {
  invariant(Buffer.byteLength(socketPath) <= longestSocketPath, `the path of a socket is short: ${socketPath}`)
  return { socketPath, exportName, reconnectDelaySeconds }
}

/** Whether anything lies beneath the overlay, by its own header. */
export async function hasBacking(path: string): Promise<boolean> {
  return (await imageInfo(path, 'qcow2')).backingFile !== undefined
}

/**
 * Copies what lies beneath an overlay into it, while nobody has it open: then it is a disk of its own. Killed in the middle,
 * it is done again; what is there already is not copied again. COMMAND_FAILED when the served disk can not be read.
 */
export async function pullOffline(path: string, signal?: AbortSignal): Promise<void> {
  if (!(await hasBacking(path))) return
  const options = { deadlineMs: pullDeadlineMs, signal, diesWithUs: true }
  await runCommand('qemu-img', ['rebase', '-q', '-f', 'qcow2', '-b', '', '--', path], options)
}
