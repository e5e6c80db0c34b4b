/**
 * A backup or restore in a process of its own that kills itself (SIGKILL) at the moment named in its only argument, a
 * JSON text. It composes the same environment as the command line; crash-tests.ts starts it.
 */
import { backupEnvironment, openHypervisor, restoreEnvironment, type Settings } from '../../src/compose.ts'
import { openRepository } from '../../src/repository/repository.ts'
import { backup } from '../../src/requester/backup.ts'
import { restore } from '../../src/requester/restore.ts'
import { defaultPolicy, type MethodRequest } from '../../src/vm/method.ts'
import type { Profile } from '../../src/vm/profile.ts'
import { around, aroundGuests, aroundRequestors, duringTransfer, type Hook } from './hooks.ts'
import { helpersOf } from './stage-session.ts'

const inChildSnapshots = ['guest frozen', 'guest committed', 'host committed', 'attached', 'reverted'] as const
export type KillMoment =
  | 'frozen'
  | 'committed'
  | 'transfer'
  | 'job begun'
  | 'point committed'
  | 'stamp kept'
  | 'saved'
  | 'set aside'
  | 'defined'
  | 'handed back'
  | (typeof inChildSnapshots)[number]

export interface Killable {
  readonly settings: Settings
  readonly repository: string
  readonly vm: string
  readonly at: KillMoment
  /** The watchdog dies as well, as when the host loses power. */
  readonly withWatchdog?: boolean
  /** Of the backup; what suits the moment unless told. */
  readonly method?: MethodRequest
  /** Overlays are of 2012r2; modern unless told. */
  readonly profile?: Profile
  /** For a restore; without it a backup is made. */
  readonly point?: string
}

async function run({
  settings,
  repository: location,
  vm,
  at,
  point,
  method: told,
  profile = 'modern',
  withWatchdog = false,
}: Killable): Promise<void> {
  const die = async () => {
    if (withWatchdog) for (const pid of await helpersOf(settings)) process.kill(pid, 'SIGKILL')
    process.kill(process.pid, 'SIGKILL')
    await new Promise(() => undefined)
  }
  const dieAfter: Hook = async (call) => {
    await call()
    await die()
  }
  await using real = await openHypervisor(settings)
  await using whole = await openRepository(location)
  const hypervisor = {
    frozen: () => aroundGuests(real, { freeze: dieAfter }),
    committed: () => around(real, { createOverlays: dieAfter }),
    transfer: () => real,
    'job begun': () => around(real, { beginBackupJob: dieAfter }),
    'point committed': () => real,
    'stamp kept': () => around(real, { removeTrackingPoint: dieAfter }),
    saved: () => around(real, { save: dieAfter }),
    'set aside': () => around(real, { undefine: dieAfter }),
    defined: () => around(real, { define: dieAfter }),
    'handed back': () => real,
    'guest frozen': () => aroundRequestors(real, { freezeWriters: dieAfter }),
    'guest committed': () => aroundRequestors(real, { commit: dieAfter }),
    'host committed': () => around(real, { createOverlays: dieAfter }),
    attached: () => around(real, { attachCopy: dieAfter }),
    reverted: () => aroundRequestors(real, { revert: dieAfter }),
  }[at]()
  const afterCommit = around(whole, {
    beginPoint: async (call) => around((await call()) as object, { commit: dieAfter }),
  })
  const repository = at === 'transfer' ? duringTransfer(whole, die, 20) : at === 'point committed' ? afterCommit : whole
  const { signal } = new AbortController()
  if (point === undefined) {
    const child = inChildSnapshots.some((moment) => moment === at)
    const method = told ?? (child ? 'child-snapshot' : at === 'saved' ? 'saved-state' : 'guest-freeze')
    const recovery = child ? 'in-guest' : 'auto'
    const policy = { ...defaultPolicy, method, recovery, profile } as const
    const environment = await backupEnvironment(settings, hypervisor, repository, policy, signal)
    await backup({ names: [vm], all: false, except: [] }, environment)
  } else {
    const made = await restoreEnvironment(settings, hypervisor, repository, signal)
    const onEvent = ({ detail = '' }: { readonly detail?: string }) => {
      if (detail.endsWith(' handed back')) process.kill(process.pid, 'SIGKILL')
    }
    const environment = at === 'handed back' ? { ...made, onEvent } : made
    await restore(await repository.point(point), [vm], { networks: {}, start: false }, environment)
  }
}

const [text] = process.argv.slice(2)
if (import.meta.main && text !== undefined) await run(JSON.parse(text))
