/**
 * The hook of a directory: the program that brings its application to rest (`hook freeze`) and lets it go on
 * (`hook thaw`). What it must keep to is in docs/host-files.md.
 */
import { access, constants, stat } from 'node:fs/promises'
import { describeError } from '../base/failure.ts'
import { runCommand } from '../base/run-command.ts'
import { failure } from '../errors.ts'
import type { HostDirectory } from './host-directory.ts'

const defaultFreezeMs = 10_000
/** A thaw is given more time than any freeze: an application that stays frozen is the worst end. */
const thawMs = 30_000

export type HookVerb = 'freeze' | 'thaw'

type Hooked = Pick<HostDirectory, 'name' | 'directory' | 'hook' | 'freezeMs'>

/** FILES_HOOK_FAILED names the directory; a hook that takes too long is a DEADLINE_EXCEEDED. */
export async function runHook(verb: HookVerb, hooked: Hooked, signal?: AbortSignal): Promise<void> {
  const { name, directory, hook, freezeMs = defaultFreezeMs } = hooked
  const environment = { UMBRA_NAME: name, UMBRA_DIRECTORY: directory }
  const deadlineMs = verb === 'freeze' ? freezeMs : thawMs
  try {
    await runCommand(hook, [verb], { deadlineMs, environment, signal, diesWithUs: true, hasOwnGroup: true })
  } catch (error) {
    if (signal?.aborted === true || (error as { code?: string }).code !== 'COMMAND_FAILED') throw error
    throw failure('FILES_HOOK_FAILED', { name, verb, reason: describeError(error) }, error)
  }
}

/** Why the hook can not be run; undefined when it can. What root runs nobody else may have written. */
export async function hookObstacle(hook: string): Promise<string | undefined> {
  const stats = await stat(hook).catch(() => undefined)
  if (stats === undefined) return `there is no hook ${hook}`
  if (!stats.isFile()) return `the hook ${hook} is not a file`
  const runnable = await access(hook, constants.X_OK).then(
    () => true,
    () => false,
  )
  if (!runnable) return `the hook ${hook} can not be run: chmod +x`
  const us = process.getuid?.()
  const strange = (stats.uid !== 0 && stats.uid !== us) || (stats.mode & 0o022) !== 0
  return strange ? `the hook ${hook} can be changed by others than its user` : undefined
}
