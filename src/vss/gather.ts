/**
 * One event to all writers, one call to all providers: everybody is asked, every answer is gathered, and the sum is
 * judged once (law 10). "Partial backups are not supported": a single veto ends the set, in `judge` and nowhere else.
 */
import { settleAll, untilAborted, withDeadline } from '../base/async.ts'
import type { Clock } from '../base/clock.ts'
import { describeError, Failure, invariant } from '../base/failure.ts'
import { failure } from '../errors.ts'
import { type ComponentRef, fullPath } from './components.ts'
import type { Instant, Provider, ProviderSession, ShadowCopy, Volume } from './provider.ts'
import type { SessionLimits, Veto, WriterEvent, WriterState } from './vocabulary.ts'
import { describeVetoes, type Freezable, type FrozenWriters, type HeldWrites, type WritableCopies } from './windows.ts'
import type { Writer, WriterSession } from './writer.ts'

/** VSS_WRITER_STATE after an event that went well, and after one that did not. */
const statesAfter: Readonly<Partial<Record<WriterEvent, readonly [ok: WriterState, failed: WriterState]>>> = {
  Identify: ['stable', 'failed-at-identify'],
  PrepareForBackup: ['stable', 'failed-at-prepare-backup'],
  PrepareForSnapshot: ['waiting-for-freeze', 'failed-at-prepare-snapshot'],
  Freeze: ['waiting-for-thaw', 'failed-at-freeze'],
  Thaw: ['waiting-for-post-snapshot', 'failed-at-thaw'],
  PostSnapshot: ['waiting-for-backup-complete', 'failed-at-post-snapshot'],
  BackupComplete: ['stable', 'failed-at-backup-complete'],
  BackupShutdown: ['stable', 'failed-at-backup-shutdown'],
  PreRestore: ['stable', 'failed-at-pre-restore'],
  PostRestore: ['stable', 'failed-at-post-restore'],
}

/** A writer in a session: its components, its state, its last veto. */
export interface Participant {
  readonly writer: Writer
  readonly components: readonly ComponentRef[]
  state: WriterState
  vetoes: readonly Veto[]
}

export class Writers {
  readonly participants: readonly Participant[]
  readonly #session: Omit<WriterSession, 'components'>
  readonly #limits: SessionLimits
  readonly #clock: Clock

  constructor(
    participants: readonly Participant[],
    session: Omit<WriterSession, 'components'>,
    limits: SessionLimits,
    clock: Clock,
  ) {
    this.participants = participants
    this.#session = session
    this.#limits = limits
    this.#clock = clock
  }

  sessionOf(participant: Participant): WriterSession {
    return { ...this.#session, components: participant.components }
  }

  prepareForBackup(): Promise<void> {
    return this.#tell('PrepareForBackup', (writer, session) => writer.onPrepareBackup(session))
  }

  prepareForSnapshot(): Promise<void> {
    return this.#tell('PrepareForSnapshot', (writer, session) => writer.onPrepareSnapshot(session))
  }

  /** The writers of the components named, to be frozen and thawed together. */
  ofInstant(components: readonly string[]): Freezable {
    return {
      freeze: (window) =>
        this.#tell('Freeze', (writer, session) => untilAborted(writer.onFreeze(session), window), {
          components,
          signal: AbortSignal.any([this.#session.signal, window]),
        }),
      thaw: () => this.#tell('Thaw', (writer, session) => writer.onThaw(session), { components, signal: unhurried() }),
      expire: () => this.#concerned(components).flatMap(({ participant }) => this.#expire(participant)),
    }
  }

  postSnapshot(writable: WritableCopies): Promise<void> {
    return this.#tell('PostSnapshot', (writer, session) => {
      const mine = writable.copies.filter((copy) =>
        session.components.some((ref) => ref.name === copy.volume.component),
      )
      return writer.onPostSnapshot(session, mine, writable)
    })
  }

  backupComplete(succeeded: (ref: ComponentRef) => boolean | undefined): Promise<void> {
    return this.#tell('BackupComplete', (writer, session) => {
      const known = session.components.flatMap((ref) => {
        const value = succeeded(ref)
        return value === undefined ? [] : [[fullPath(ref), value] as const]
      })
      return writer.onBackupComplete(session, new Map(known))
    })
  }

  /** Abort to all; an error of one does not spare the others. */
  abort(): Promise<void> {
    const deliver = async (writer: Writer, session: WriterSession) => {
      await writer.onAbort(session)
      return []
    }
    return this.#tell('Abort', deliver, { signal: unhurried() })
  }

  backupShutdown(): Promise<void> {
    const deliver = async (writer: Writer, session: WriterSession) => {
      await writer.onBackupShutdown(session)
      return []
    }
    return this.#tell('BackupShutdown', deliver, { signal: unhurried() })
  }

  async #tell(
    event: WriterEvent,
    deliver: (writer: Writer, session: WriterSession) => Promise<readonly Veto[]>,
    options: { components?: readonly string[]; signal?: AbortSignal } = {},
  ): Promise<void> {
    const signal = options.signal ?? this.#session.signal
    const answers = await settleAll(this.#concerned(options.components), async ({ participant, components }) => {
      this.#session.emit({ event, writer: participant.writer.name })
      const session = { ...this.#session, components, signal }
      return this.#ask(event, participant, signal, () => deliver(participant.writer, session))
    })
    const vetoes = answers.flatMap(({ outcome }) => (outcome.ok ? outcome.value : [vetoOfBug(outcome.error)]))
    if (vetoes.length > 0 && signal.aborted) throw signal.reason
    judge(event, this.#limits, vetoes)
  }

  #concerned(only?: readonly string[]) {
    return this.participants.flatMap((participant) => {
      const components = participant.components.filter((ref) => only === undefined || only.includes(ref.name))
      return components.length === 0 ? [] : [{ participant, components }]
    })
  }

  /** One writer's answer: its vetoes, or its exception as a veto of the whole writer. */
  async #ask(
    event: WriterEvent,
    participant: Participant,
    signal: AbortSignal,
    deliver: () => Promise<readonly Veto[]>,
  ): Promise<readonly Veto[]> {
    const writer = participant.writer.name
    let vetoes: readonly Veto[]
    try {
      vetoes = await withDeadline(deliver(), {
        clock: this.#clock,
        limitMs: this.#limits.prepareMs,
        what: `${event} of ${writer}`,
      })
    } catch (error) {
      const code = timedOut(error) ? 'VSS_E_WRITERERROR_TIMEOUT' : 'VSS_E_WRITERERROR_NONRETRYABLE'
      vetoes = [{ writer, code, reason: describeError(error) }]
    }
    if (vetoes.length > 0 && signal.aborted) return vetoes // cancelled, or expired: no failure of this writer's own
    const [ok, failed] = statesAfter[event] ?? ['stable', participant.state]
    // A writer that has failed stays failed, so that its status can be read afterwards.
    if (vetoes.length > 0) this.#record(participant, failed, vetoes)
    else if (!participant.state.startsWith('failed')) participant.state = ok
    return vetoes
  }

  /** Freeze to Thaw took too long: every writer that has not failed already is reported as timed out. */
  #expire(participant: Participant): string[] {
    const { state, writer } = participant
    if (state.startsWith('failed')) return []
    const reason = state === 'waiting-for-thaw' ? 'was still frozen' : 'did not answer Freeze'
    const veto: Veto = { writer: writer.name, code: 'VSS_E_WRITERERROR_TIMEOUT', reason }
    this.#record(participant, 'failed-at-freeze', [veto])
    return describeVetoes([veto])
  }

  #record(participant: Participant, state: WriterState, vetoes: readonly Veto[]): void {
    participant.state = state
    participant.vetoes = vetoes
    for (const { writer, component, reason } of vetoes) {
      this.#session.emit({
        event: 'Veto',
        writer,
        ...(component === undefined ? {} : { vm: component }),
        detail: reason,
      })
    }
  }
}

/** The signal of an event that puts things right: it must not stop because the session was cancelled (law 3). */
function unhurried(): AbortSignal {
  return new AbortController().signal
}

function timedOut(error: unknown): boolean {
  return error instanceof Failure && error.code === 'DEADLINE_EXCEEDED'
}

function vetoOfBug(error: unknown): Veto {
  return { writer: 'coordinator', code: 'VSS_E_WRITERERROR_NONRETRYABLE', reason: describeError(error) }
}

/** The judgement: no veto, or one failure that names them all. */
export function judge(event: WriterEvent, limits: SessionLimits, vetoes: readonly Veto[]): void {
  if (vetoes.length === 0) return
  const reasons = describeVetoes(vetoes)
  const timeout = event === 'Freeze' && vetoes.every((veto) => veto.code === 'VSS_E_WRITERERROR_TIMEOUT')
  if (timeout) throw failure('VSS_WRITER_TIMEOUT', { limitMs: limits.freezeMs, reasons })
  throw failure('VSS_WRITER_VETO', { event, done: 'backed up', reasons })
}

/** The providers of a set, each with the volumes it was chosen for. */
export class Providers {
  readonly #volumes: ReadonlyMap<Provider, readonly Volume[]>
  readonly #session: ProviderSession
  readonly #limits: SessionLimits
  readonly #clock: Clock

  constructor(
    volumes: ReadonlyMap<Provider, readonly Volume[]>,
    session: ProviderSession,
    limits: SessionLimits,
    clock: Clock,
  ) {
    this.#volumes = volumes
    this.#session = session
    this.#limits = limits
    this.#clock = clock
  }

  async endPrepareSnapshots(): Promise<void> {
    await this.#each('EndPrepareSnapshots', (provider) => provider.endPrepareSnapshots(this.#session))
  }

  async preCommitSnapshots(components: readonly string[], frozen: FrozenWriters): Promise<void> {
    const session = this.#inside(frozen)
    await this.#eachOf(components, (provider, volumes) => provider.preCommitSnapshots(session, volumes, frozen))
  }

  async commitSnapshots(components: readonly string[], held: HeldWrites): Promise<Instant[]> {
    invariant(held.open, 'copies are committed only while writes are held')
    const session = this.#inside(held)
    const instants = await this.#eachOf(components, (provider, volumes) =>
      provider.commitSnapshots(session, volumes, held),
    )
    return instants.flat()
  }

  async postCommitSnapshots(components: readonly string[], frozen: FrozenWriters): Promise<void> {
    const session = this.#inside(frozen)
    await this.#eachOf(components, (provider, volumes) => provider.postCommitSnapshots(session, volumes, frozen))
  }

  async preFinalCommitSnapshots(): Promise<ShadowCopy[]> {
    const work = (provider: Provider) => provider.preFinalCommitSnapshots(this.#session)
    return (await this.#each('PreFinalCommitSnapshots', work)).flat()
  }

  async postFinalCommitSnapshots(): Promise<void> {
    await this.#each('PostFinalCommitSnapshots', (provider) => provider.postFinalCommitSnapshots(this.#session))
  }

  async keepStamps(): Promise<void> {
    await this.#each('KeepStamps', async (provider) => provider.keepStamps?.(this.#session))
  }

  /** No limit here and below: merging may rightly take hours, and each undo step has a deadline of its own. */
  async abortSnapshots(): Promise<void> {
    const session = { ...this.#session, signal: unhurried() }
    await this.#gather([...this.#volumes], (provider) => provider.abortSnapshots(session), session.signal)
  }

  async deleteSnapshots(): Promise<void> {
    const session = { ...this.#session, signal: unhurried() }
    await this.#gather([...this.#volumes], (provider) => provider.deleteSnapshots(session), session.signal)
  }

  /** What a provider is told inside a window: its signal also aborts when the window expires. */
  #inside(window: { readonly signal: AbortSignal }): ProviderSession {
    return { ...this.#session, signal: AbortSignal.any([this.#session.signal, window.signal]) }
  }

  /** A call outside the windows; like a writer's slow events it may not hang for ever. */
  #each<R>(what: string, work: (provider: Provider) => Promise<R>): Promise<R[]> {
    const limitMs = this.#limits.prepareMs
    return this.#gather([...this.#volumes], (provider) =>
      withDeadline(work(provider), { clock: this.#clock, limitMs, what: `${what} of ${provider.name}` }),
    )
  }

  #eachOf<R>(
    components: readonly string[],
    work: (provider: Provider, volumes: readonly Volume[]) => Promise<R>,
  ): Promise<R[]> {
    const concerned = [...this.#volumes].flatMap(([provider, volumes]) => {
      const mine = volumes.filter((volume) => components.includes(volume.component))
      return mine.length === 0 ? [] : [[provider, mine] as const]
    })
    return this.#gather(concerned, work)
  }

  async #gather<R>(
    concerned: readonly (readonly [Provider, readonly Volume[]])[],
    work: (provider: Provider, volumes: readonly Volume[]) => Promise<R>,
    signal = this.#session.signal,
  ): Promise<R[]> {
    const settled = await settleAll(concerned, ([provider, volumes]) => work(provider, volumes))
    const errors = settled.flatMap(({ outcome }) => (outcome.ok ? [] : [outcome.error]))
    if (errors.length > 0 && signal.aborted) throw signal.reason
    if (errors.length > 0) throw failure('VSS_PROVIDER_VETO', { reasons: errors.map(describeError) }, errors[0])
    return settled.flatMap(({ outcome }) => (outcome.ok ? [outcome.value] : []))
  }
}
