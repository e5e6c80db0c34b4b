/**
 * Runs the real command line program in a process of its own, as a shell would, for the tests of what people see.
 */
import { spawn } from 'node:child_process'
import { join } from 'node:path'

/** What scripts/test has built and installed; else the source, for a test by itself. */
export const umbraProgram = process.env.UMBRA_TEST_PROGRAM ?? join(import.meta.dirname, '..', 'bin', 'umbra')
/** Saves half of the time that a process needs to start. */
const compiled = process.env.NODE_COMPILE_CACHE ?? join(import.meta.dirname, '..', '.cache', 'compiled')
const limitMs = 120_000

export interface UmbraEnd {
  readonly exitCode: number | null
  readonly stdout: string
  readonly stderr: string
}

/** Nothing of the surroundings comes through but what is needed to start. `interruptAt`: ^C once this has been said. */
export function runUmbra(
  words: readonly string[],
  environment: Readonly<Record<string, string>>,
  interruptAt?: string,
): Promise<UmbraEnd> {
  const { PATH = '' } = process.env
  return new Promise((resolve, reject) => {
    const child = spawn(umbraProgram, words, {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { PATH, NODE_COMPILE_CACHE: compiled, ...environment },
      timeout: limitMs,
      killSignal: 'SIGKILL',
    })
    let [stdout, stderr] = ['', '']
    child.stdout.on('data', (bytes: Buffer) => {
      stdout += bytes
      if (interruptAt === undefined || !stdout.includes(interruptAt)) return
      interruptAt = undefined
      child.kill('SIGINT')
    })
    child.stderr.on('data', (bytes: Buffer) => {
      stderr += bytes
    })
    child.on('error', reject)
    child.on('close', (exitCode) => resolve({ exitCode, stdout, stderr }))
  })
}
