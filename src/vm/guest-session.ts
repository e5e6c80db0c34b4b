/**
 * The guest's own backup session inside the host's PrepareForSnapshot: the same DoSnapshotSet, with the guest as its own
 * host. The guest's writers are the writers, its volume managers the provider, and the guest requestor carries out both.
 * Source: "Backing Up and Restoring Virtual Machines", the child VM snapshot.
 */
import type { Cleanup } from '../base/cleanup.ts'
import type { Clock } from '../base/clock.ts'
import { doSnapshotSet } from '../vss/do-snapshot-set.ts'
import { Providers, Writers } from '../vss/gather.ts'
import type { Instant, Provider, ProviderSession, Volume } from '../vss/provider.ts'
import type { EmitEvent, SessionLimits, Veto } from '../vss/vocabulary.ts'
import type { Writer, WriterSession } from '../vss/writer.ts'
import type { GuestRequestor } from './guest-requestor.ts'

export interface GuestSession {
  readonly requestor: GuestRequestor
  readonly vm: { readonly uuid: string; readonly name: string }
  readonly set: string
  readonly limits: SessionLimits
  readonly clock: Clock
  readonly undo: Cleanup
  readonly emit: EmitEvent
  readonly signal: AbortSignal
}

/** What the guest's applications went through. */
export interface GuestHold {
  /** From the request to freeze the guest's writers until they were thawed. */
  readonly frozenMs: number
  /** Of that, the call that made the snapshot. */
  readonly commitMs: number
}

/** When it rejects the guest's writers are thawed again; its snapshot is released by the caller's undo step. */
export async function runGuestSession(session: GuestSession): Promise<GuestHold> {
  const { vm, set, limits, clock, undo, signal } = session
  const trouble: { first?: unknown } = {}
  const heard = { ...session, requestor: listening(session.requestor, trouble) }
  const writer = new GuestWriters(heard)
  const provider = new GuestProvider(heard)
  const emit: EmitEvent = (event) => session.emit({ vm: vm.name, ...event })
  const component = { writerId: writer.id, name: vm.uuid, logicalPath: '', type: 'filegroup' as const }
  const shared = { snapshotSetId: set, undo, emit, signal }
  const writers = new Writers([{ writer, components: [component], state: 'stable', vetoes: [] }], shared, limits, clock)
  const volume: Volume = { id: vm.uuid, component: vm.uuid, caption: vm.name, name: 'its volumes', properties: {} }
  const abandon = () => undefined // nothing is watched from here; the guest says at `status` whether its snapshot lasted
  const providers = new Providers(new Map([[provider, [volume]]]), { ...shared, abandon }, limits, clock)
  // The guest's disks are not the host's: the host's journal may go on writing while the guest's applications wait.
  const quiet = { hold: () => undefined, release: () => undefined }
  const snapshotSet = { id: set, instants: [[vm.uuid]], instantsAtOnce: 1, limits, clock, quiet }
  try {
    await doSnapshotSet(snapshotSet, writers, providers)
  } catch (error) {
    throw trouble.first ?? error // what the guest said, rather than that its set was not created
  }
  return { frozenMs: writer.frozenMs, commitMs: provider.commitMs }
}

type SessionVerbs = Pick<GuestRequestor, 'prepare' | 'freezeWriters' | 'commit' | 'thawWriters'>

type HeardSession = Omit<GuestSession, 'requestor'> & { readonly requestor: SessionVerbs }

/** The same requestor; its first failure is remembered. */
function listening(requestor: GuestRequestor, trouble: { first?: unknown }): SessionVerbs {
  const heard = async (answer: Promise<void>) => {
    try {
      await answer
    } catch (error) {
      trouble.first ??= error
      throw error
    }
  }
  return {
    prepare: (set, limitMs) => heard(requestor.prepare(set, limitMs)),
    freezeWriters: (set, limitMs) => heard(requestor.freezeWriters(set, limitMs)),
    commit: (set) => heard(requestor.commit(set)),
    thawWriters: (set) => heard(requestor.thawWriters(set)),
  }
}

/** All writers inside the guest; each of them may veto. */
class GuestWriters implements Writer {
  readonly id = '5f0b5a0e-3c0b-4c43-9e0e-8c1f1f7c9a11'
  readonly instanceId: string = crypto.randomUUID()
  readonly name: string
  readonly #session: HeardSession
  #askedMs = 0
  #thawedMs = 0

  constructor(session: HeardSession) {
    this.#session = session
    this.name = `writers inside ${session.vm.name}`
  }

  get frozenMs(): number {
    return this.#thawedMs - this.#askedMs
  }

  async onFreeze(): Promise<readonly Veto[]> {
    const { requestor, set, limits, clock } = this.#session
    this.#askedMs = clock.monotonicMs()
    await requestor.freezeWriters(set, limits.freezeMs)
    return []
  }

  async onThaw(): Promise<readonly Veto[]> {
    const { requestor, set, clock } = this.#session
    await requestor.thawWriters(set)
    this.#thawedMs = clock.monotonicMs()
    return []
  }

  async onAbort(_session: WriterSession): Promise<void> {
    // Thaw follows every Freeze, also a failed one; and releasing the set thaws too.
  }

  async onIdentify() {
    return { writerId: this.id, instanceId: this.instanceId, name: this.name, components: [] }
  }

  onPrepareBackup = nothing
  onPrepareSnapshot = nothing
  onPostSnapshot = nothing
  onBackupComplete = nothing
  onPreRestore = nothing
  onPostRestore = nothing
  outcomes = async () => []
  onBackupShutdown = async () => undefined
}

async function nothing(): Promise<readonly Veto[]> {
  return []
}

/** The guest's volume managers. The copies stay in the guest: whoever wants them reads them from copies of its disks. */
class GuestProvider implements Provider {
  readonly id = '0f6d7a52-9b57-4a11-8a5e-3f8f6ad1c0d2'
  readonly name = 'Umbra Guest Provider'
  readonly #session: HeardSession
  commitMs = 0

  constructor(session: HeardSession) {
    this.#session = session
  }

  supports = () => 1
  beginPrepareSnapshot = async () => undefined

  async endPrepareSnapshots(): Promise<void> {
    const { requestor, set, limits } = this.#session
    // Longer than the host's own session can last until its instant; after that the guest helps itself.
    await requestor.prepare(set, 2 * limits.prepareMs)
  }

  preCommitSnapshots = async () => undefined

  async commitSnapshots(_session: ProviderSession, volumes: readonly Volume[]): Promise<readonly Instant[]> {
    const { requestor, set, clock, emit, vm } = this.#session
    const beganMs = clock.monotonicMs()
    await requestor.commit(set)
    const endedMs = clock.monotonicMs()
    this.commitMs = endedMs - beganMs
    emit({ event: 'Commit', vm: vm.name, detail: 'the guest, of its own volumes' })
    return volumes.map(({ component }) => ({ component, beganMs, endedMs }))
  }

  postCommitSnapshots = async () => undefined
  preFinalCommitSnapshots = async () => []
  postFinalCommitSnapshots = async () => undefined
  abortSnapshots = async () => undefined // the undo step `release-guest` of the caller does it, also after a crash
  deleteSnapshots = async () => undefined
}
