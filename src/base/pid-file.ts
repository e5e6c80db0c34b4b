/**
 * Processes that outlive who started them, found again by a file with their number. A number is used again, so a process
 * counts only when its command line names that very file (proc(5), cmdline).
 */
import { readFile, rm } from 'node:fs/promises'
import { type Clock, systemClock } from './clock.ts'

const pollMs = 50

/** The number of the process whose file this is; undefined when it is gone. */
export async function livingProcess(pidFile: string): Promise<number | undefined> {
  const pid = Number.parseInt(await readFile(pidFile, 'utf8').catch(() => ''), 10)
  if (!Number.isSafeInteger(pid) || pid <= 1) return undefined
  const words = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).split('\0')
  return words.includes(pidFile) ? pid : undefined // of a process that has died the command line is empty
}

/** Asks the process to end, insists after `patienceMs`, and removes the file. Idempotent. */
export async function endProcess(pidFile: string, patienceMs = 5000, clock: Clock = systemClock): Promise<void> {
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    const giveUpAtMs = clock.monotonicMs() + patienceMs
    for (let pid = await livingProcess(pidFile), told = false; pid !== undefined; pid = await livingProcess(pidFile)) {
      if (!told) kill(pid, signal)
      told = true
      if (clock.monotonicMs() > giveUpAtMs) break
      await clock.sleep(pollMs)
    }
  }
  const left = await livingProcess(pidFile)
  if (left !== undefined) throw new Error(`process ${left} can not be ended`)
  await rm(pidFile, { force: true })
}

function kill(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}
