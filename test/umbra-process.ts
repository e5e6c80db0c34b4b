/**
 * Runs the real command line program in a process of its own, as a shell would, for the tests of what people see.
 */
import { spawn } from 'node:child_process'
import { join } from 'node:path'

const program = join(import.meta.dirname, '..', 'bin', 'umbra')
const limitMs = 120_000

export interface UmbraEnd {
  readonly exitCode: number | null
  readonly stdout: string
  readonly stderr: string
}

/** Nothing of the surroundings comes through but what is needed to start. */
export function runUmbra(words: readonly string[], environment: Readonly<Record<string, string>>): Promise<UmbraEnd> {
  const { PATH = '' } = process.env
  return new Promise((resolve, reject) => {
    const child = spawn(program, words, {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { PATH, ...environment },
      timeout: limitMs,
      killSignal: 'SIGKILL',
    })
    let [stdout, stderr] = ['', '']
    child.stdout.on('data', (bytes: Buffer) => {
      stdout += bytes
    })
    child.stderr.on('data', (bytes: Buffer) => {
      stderr += bytes
    })
    child.on('error', reject)
    child.on('close', (exitCode) => resolve({ exitCode, stdout, stderr }))
  })
}
