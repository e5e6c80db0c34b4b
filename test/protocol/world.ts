/**
 * A host for protocol tests: writers, providers, a clock that stands still, the host-wide lock, and a requester that
 * makes VSS's calls in their order. Everything is in memory.
 */
import { Cleanup, type UndoHandlers } from '../../src/base/cleanup.ts'
import { failure } from '../../src/errors.ts'
import { BackupComponents, type VssService } from '../../src/vss/backup-components.ts'
import { refOf } from '../../src/vss/components.ts'
import type { Provider } from '../../src/vss/provider.ts'
import { defaultLimits, type SessionLimits } from '../../src/vss/vocabulary.ts'
import type { Writer } from '../../src/vss/writer.ts'
import { ManualClock } from '../sim/manual-clock.ts'
import { Recorder, RecordingProvider, RecordingWriter } from '../sim/recording.ts'
import { undoLog } from '../sim/undo-log.ts'

export interface World {
  readonly recorder: Recorder
  readonly clock: ManualClock
  readonly service: VssService
  readonly controller: AbortController
  /** What the quiet of law 4 saw. */
  readonly quiet: string[]
  readonly lock: { held: boolean }
}

export function world(options: {
  recorder?: Recorder
  clock?: ManualClock
  writers: readonly Writer[]
  providers: readonly Provider[]
  limits?: Partial<SessionLimits>
  undoHandlers?: UndoHandlers
}): World {
  const recorder = options.recorder ?? new Recorder()
  const clock = options.clock ?? new ManualClock()
  const controller = new AbortController()
  const quiet: string[] = []
  const lock = { held: false }
  const service: VssService = {
    writers: options.writers,
    providers: options.providers,
    limits: { ...defaultLimits, ...options.limits },
    clock,
    undo: new Cleanup(undoLog().log, options.undoHandlers ?? {}, { clock }),
    emit: recorder.emit,
    quiet: { hold: (ms) => void quiet.push(`hold ${ms}`), release: () => void quiet.push('release') },
    signal: controller.signal,
    abandon: (reason) => controller.abort(reason),
    async lockSetCreation() {
      if (lock.held) throw failure('VSS_SNAPSHOT_SET_IN_PROGRESS')
      lock.held = true
      return {
        [Symbol.asyncDispose]: async () => {
          lock.held = false
        },
      }
    },
  }
  return { recorder, clock, service, controller, quiet, lock }
}

/** Two writers with a volume each, and one provider. */
export function twoWriters(limits: Partial<SessionLimits> = {}) {
  const recorder = new Recorder()
  const vms = new RecordingWriter(recorder, 'VM Writer', [{ name: 'web01', volumes: ['vda', 'vdb'] }])
  const files = new RecordingWriter(recorder, 'Ledger Writer', [{ name: 'ledger' }])
  const provider = new RecordingProvider(recorder)
  return { ...world({ recorder, writers: [vms, files], providers: [provider], limits }), vms, files, provider }
}

/** Adds every component that the writers named. */
export async function addEverything(components: BackupComponents): Promise<void> {
  for (const { components: offered } of await components.gatherWriterMetadata()) {
    for (const component of offered) components.addComponent(refOf(component))
  }
}

/** The requester: one backup, start to end. `leaveAfter` leaves early, as by return, after that call. */
export async function backUp({ service, recorder }: World, leaveAfter?: string): Promise<BackupComponents> {
  await using components = BackupComponents.initializeForBackup(service, 'full')
  await addEverything(components)
  if (leaveAfter === 'addComponent') return components
  await components.startSnapshotSet()
  if (leaveAfter === 'startSnapshotSet') return components
  await components.addVolumesOfComponents()
  if (leaveAfter === 'addToSnapshotSet') return components
  await components.prepareForBackup()
  if (leaveAfter === 'prepareForBackup') return components
  const { copies } = await components.doSnapshotSet()
  if (leaveAfter === 'doSnapshotSet') return components
  for (const copy of copies) {
    await using source = await copy.open()
    await source.read(0, new Uint8Array(source.sizeBytes))
    recorder.note('Transfer', 'requester', `${copy.volume.component} ${copy.volume.name}`)
  }
  for (const component of components.selected) components.setBackupSucceeded(refOf(component), true)
  if (leaveAfter === 'setBackupSucceeded') return components
  await components.backupComplete()
  return components
}

export type TwoWriters = ReturnType<typeof twoWriters>

/** Everything of the host that a backup touches. */
export function stateOf({ vms, files, provider, lock, clock, quiet }: TwoWriters) {
  return {
    writers: [vms.state, files.state].map(({ prepared, frozen }) => ({ prepared, frozen })),
    copies: [...provider.copies.keys()],
    locked: lock.held,
    timers: clock.pending,
    held: quiet.filter((line) => line !== 'release').length - quiet.filter((line) => line === 'release').length,
  }
}

/** The state of a host that nothing is under way on. */
export const before = {
  writers: [
    { prepared: [], frozen: [] },
    { prepared: [], frozen: [] },
  ],
  copies: [],
  locked: false,
  timers: 0,
  held: 0,
}

/** How often an event or call happened. */
export function countOf({ recorder }: World, event: string): number {
  return recorder.entries.filter((entry) => entry.event === event).length
}
