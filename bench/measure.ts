/**
 * Runs one command and measures it from outside: wall clock, CPU of it and its children, its peak memory; and what the
 * rest of the machine used meanwhile, because a disturbed run says nothing.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'

export interface Measured {
  readonly wallSeconds: number
  readonly cpuSeconds: number
  readonly peakMiB: number
  /** CPU seconds of everybody else during the run. */
  readonly otherSeconds: number
}

export interface RunOptions {
  readonly cwd?: string
  readonly env?: NodeJS.ProcessEnv
  /** Where the timing is written meanwhile. */
  readonly scratch: string
}

/** Rejects when the command fails, with the end of what it said. */
export async function measure(command: readonly string[], { cwd, env, scratch }: RunOptions): Promise<Measured> {
  const timing = join(scratch, 'timing')
  const before = machineCpuSeconds()
  const child = spawn('/usr/bin/time', ['-f', '%e %U %S %M', '-o', timing, ...command], {
    cwd,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let said = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (data) => (said = (said + data).slice(-2000)))
  const [code] = await once(child, 'close')
  if (code !== 0) throw new Error(`${command.join(' ')} ended with ${code}: ${said}`)
  const [wall, user, system, peakKiB] =
    (await readFile(timing, 'utf8')).trim().split('\n').at(-1)?.split(' ').map(Number) ?? []
  await rm(timing)
  const cpuSeconds = (user ?? 0) + (system ?? 0)
  const otherSeconds = Math.max(0, machineCpuSeconds() - before - cpuSeconds)
  return { wallSeconds: wall ?? 0, cpuSeconds, peakMiB: (peakKiB ?? 0) / 1024, otherSeconds }
}

/** proc(5), /proc/stat: user, nice, system, irq, softirq in ticks of 10 ms. */
function machineCpuSeconds(): number {
  const fields = readFileSync('/proc/stat', 'utf8').split('\n')[0]?.trim().split(/\s+/).slice(1).map(Number) ?? []
  return [0, 1, 2, 5, 6].reduce((sum, index) => sum + (fields[index] ?? 0), 0) / 100
}
