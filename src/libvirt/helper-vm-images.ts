/**
 * The kernel and initramfs of the helper VM, found in the cache or made by helper-vm/build from Debian packages.
 */
import { existsSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { describeError } from '../base/failure.ts'
import { packageDirectory } from '../base/own-programs.ts'
import { runCommand } from '../base/run-command.ts'
import { failure } from '../errors.ts'

export interface HelperVmImages {
  readonly kernel: string
  readonly initrd: string
}

const buildDeadlineMs = 15 * 60_000
const build = join(packageDirectory, 'helper-vm', 'build')

/** An unchanged build is found in a moment; the first one downloads packages. HELPER_VM_FAILED when it can not be made. */
export async function helperVmImages(
  options: { cacheDirectory?: string; signal?: AbortSignal } = {},
): Promise<HelperVmImages> {
  const { cacheDirectory, signal } = options
  const args = cacheDirectory === undefined ? [] : [cacheDirectory]
  try {
    const { stdout } = await runCommand(build, args, { deadlineMs: buildDeadlineMs, signal, diesWithUs: true })
    const directory = stdout.trim().split('\n').at(-1) ?? ''
    return { kernel: join(directory, 'kernel'), initrd: join(directory, 'initrd') }
  } catch (error) {
    signal?.throwIfAborted()
    throw failure('HELPER_VM_FAILED', { reason: describeError(error) }, error)
  }
}

/** Whether some build is there, perhaps an older one; builds nothing. */
export async function helperVmIsBuilt(): Promise<boolean> {
  const cache = join(packageDirectory, '.cache', 'helper-vm')
  const entries = await readdir(cache, { withFileTypes: true }).catch(() => [])
  return entries.some((entry) => entry.isDirectory() && existsSync(join(cache, entry.name, 'complete')))
}
