/**
 * The programs Umbra consists of besides its command: where they lie (beside this file as source, or all in one folder once
 * scripts/build.ts has built them), and their processes. Node.js takes a while to start, so whoever knows early that a process
 * will be needed starts it then and tells it later, through its standard input, what to do; it ends when that ends before.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

/** Each an entry of its own; paths are of the source, relative to src. */
export const ownPrograms = {
  command: 'cli/main.ts',
  watchdog: 'cli/watchdog-main.ts',
  diskServer: 'cli/disk-server-main.ts',
  codec: 'repository/chunks/codec-worker.ts',
} as const

const isBuilt = !import.meta.url.endsWith('.ts')

export function ownProgram(name: keyof typeof ownPrograms): URL {
  const source = ownPrograms[name]
  return new URL(isBuilt ? `${path.basename(source, '.ts')}.js` : `../${source}`, import.meta.url)
}

/** The directory of the checkout, or of the package: what is not code lies there (guest, helper-vm, package.json). */
export const packageDirectory = fileURLToPath(new URL(isBuilt ? '..' : '../..', import.meta.url))

/** Whoever started it ends it, or closes its standard input. */
export interface OwnProcess {
  readonly child: ChildProcess
  /** Why it could not be started. */
  readonly error: () => Error | undefined
}

/** With as little memory as bin/umbra gives the command. */
export const startProgram = (name: 'watchdog' | 'diskServer', ...args: readonly string[]): OwnProcess =>
  startProcess([process.execPath, '--max-semi-space-size=4', fileURLToPath(ownProgram(name)), ...args])

export function startProcess([program = '', ...args]: readonly string[]): OwnProcess {
  // Detached: a terminal's ^C is not for it.
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'ignore'], detached: true, cwd: '/' })
  let failed: Error | undefined
  child.on('error', (error) => {
    failed = error
  })
  child.stdin?.on('error', () => undefined) // it has ended; nothing to tell it any more
  return { child, error: () => failed }
}
