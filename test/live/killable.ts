/**
 * A backup or restore in a process of its own that kills itself (SIGKILL) at the moment named in its only argument, a
 * JSON text. It composes the same environment as the command line; crash-tests.ts starts it.
 */
import { writeSync } from 'node:fs'
import { backupEnvironment, openHypervisor, restoreEnvironment, type Settings } from '../../src/compose.ts'
import { openRepository } from '../../src/repository/repository.ts'
import { backup } from '../../src/requester/backup.ts'
import { restore } from '../../src/requester/restore.ts'
import { around, aroundGuests, duringTransfer, type Hook } from './hooks.ts'

export const killMoments = ['frozen', 'committed', 'transfer', 'set aside', 'defined'] as const
export type KillMoment = (typeof killMoments)[number]

export interface Killable {
  readonly settings: Settings
  readonly repository: string
  readonly vm: string
  readonly at: KillMoment
  /** For a restore; without it a backup is made. */
  readonly point?: string
}

const die = () => {
  writeSync(1, 'dying\n')
  process.kill(process.pid, 'SIGKILL')
}

const dieAfter: Hook = async (call) => {
  await call()
  die()
  return new Promise(() => undefined)
}

async function run({ settings, repository: location, vm, at, point }: Killable): Promise<void> {
  await using real = await openHypervisor(settings)
  await using whole = await openRepository(location)
  const hypervisor = {
    frozen: () => aroundGuests(real, { freeze: dieAfter }),
    committed: () => around(real, { createOverlays: dieAfter }),
    transfer: () => real,
    'set aside': () => around(real, { undefine: dieAfter }),
    defined: () => around(real, { define: dieAfter }),
  }[at]()
  const repository = at === 'transfer' ? duringTransfer(whole, async () => die(), 20) : whole
  const { signal } = new AbortController()
  if (point === undefined) {
    const policy = { method: 'guest-freeze', require: 'crash', instant: 'vm' } as const
    const environment = await backupEnvironment(settings, hypervisor, repository, policy, signal)
    await backup({ names: [vm], all: false, except: [] }, environment)
  } else {
    const environment = await restoreEnvironment(settings, hypervisor, repository, signal)
    await restore(await repository.point(point), [vm], { networks: {}, start: false }, environment)
  }
}

const [text] = process.argv.slice(2)
if (import.meta.main && text !== undefined) await run(JSON.parse(text))
