/**
 * The process that serves the disks of an instant restore, src/cli/disk-server-main.ts: it outlives the command that starts
 * it. The key of the repository goes through its standard input and is nowhere else: not among its arguments, not in its
 * environment, not on disk. It dies with that process; whoever starts another one gives it again.
 */
import { once } from 'node:events'
import * as z from 'zod'
import { withDeadline } from '../base/async.ts'
import { systemClock } from '../base/clock.ts'
import { describeError } from '../base/failure.ts'
import { type OwnProcess, startProgram } from '../base/own-programs.ts'
import { endProcess, livingProcess } from '../base/pid-file.ts'
import { failure } from '../errors.ts'
import { type InstantRecord, placesOf } from './instant-record.ts'

/** What opens the repository, as it goes through the pipe. */
export type ServerKey = { readonly keyFile: string } | { readonly passphrase: string } | Record<string, never>

/** What the process reads from its standard input. */
export const serverOrder = z.object({
  stateDirectory: z.string().startsWith('/'),
  name: z.string().min(1),
  key: z.object({ keyFile: z.string().optional(), passphrase: z.string().optional() }),
})

const startDeadlineMs = 120_000
const longestAnswer = 4096

/** The process of a server that is not told yet what to serve. */
export const startServerEarly = (pidFile: string): OwnProcess => startProgram('diskServer', pidFile)

/** INSTANT_SERVER_FAILED with what the process said. */
async function startServer(
  stateDirectory: string,
  record: InstantRecord,
  key: ServerKey,
  waiting = startServerEarly(placesOf(stateDirectory, record).serverPidFile),
): Promise<void> {
  const { child } = waiting
  try {
    const { name } = record
    child.stdin?.end(JSON.stringify({ stateDirectory, name, key } satisfies z.infer<typeof serverOrder>))
    const limit = { clock: systemClock, limitMs: startDeadlineMs, what: 'the start of the disk server' }
    const answer = await withDeadline(answerOf(waiting), limit)
    if (answer !== 'ready') throw new Error(answer)
    child.unref()
    child.stdout?.destroy()
  } catch (error) {
    child.kill('SIGKILL')
    throw failure('INSTANT_SERVER_FAILED', { vm: record.name, reason: describeError(error) }, error)
  }
}

async function answerOf({ child, error }: OwnProcess): Promise<string> {
  if (child.pid === undefined) throw error() ?? new Error('the process could not be started')
  let text = ''
  for await (const bytes of child.stdout ?? []) {
    text += String(bytes)
    if (text.includes('\n') || text.length > longestAnswer) return text.trim().slice(0, longestAnswer)
  }
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
  return `its process ended with ${child.signalCode ?? child.exitCode}`
}

/** The servers of this host's instant restores. */
export interface InstantServers {
  /** Serves the disks of the record when it resolves. INSTANT_SERVER_FAILED. */
  start(record: InstantRecord, key: ServerKey, waiting?: OwnProcess): Promise<void>
  /** Whether the process of the server is there. */
  lives(record: InstantRecord): Promise<boolean>
  /** Whether both are there, the server and the gate before it. */
  isServed(record: InstantRecord): Promise<boolean>
  /** Idempotent. */
  end(record: InstantRecord): Promise<void>
}

export function serverProcesses(stateDirectory: string): InstantServers {
  const lives = async (record: InstantRecord, file: 'serverPidFile' | 'gatePidFile') =>
    (await livingProcess(placesOf(stateDirectory, record)[file])) !== undefined
  return {
    start: (record, key, waiting) => startServer(stateDirectory, record, key, waiting),
    lives: (record) => lives(record, 'serverPidFile'),
    isServed: async (record) => (await lives(record, 'serverPidFile')) && (await lives(record, 'gatePidFile')),
    end: (record) => endProcess(placesOf(stateDirectory, record).serverPidFile),
  }
}
