/**
 * One event to all writers, one call to all providers: everybody is asked, every answer is gathered, and the sum is
 * judged once (law 10). "Partial backups are not supported": a single veto ends the set, in `judge` and nowhere else.
 */
import { settleAll, withDeadline } from '../base/async.ts'
import type { Clock } from '../base/clock.ts'
import { describeError, Failure, invariant } from '../base/failure.ts'
import { failure } from '../errors.ts'
import type { ComponentRef } from './components.ts'
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
      freeze: (signal) =>
        this.#tell('Freeze', (writer, session) => writer.onFreeze({ ...session, signal }), components),
      thaw: () => this.#tell('Thaw', (writer, session) => writer.onThaw(session), components),
    }
  }

  postSnapshot(writable: WritableCopies): Promise<void> {
    return this.#tell('PostSnapshot', (writer, session) => {
      const mine = writable.copies.filter((copy) =>
        session.components.some((ref) => ref.name === copy.volume.component),
      )
      return writer.onPostSnapshot(session, mine)
    })
  }

  backupComplete(succeeded: ReadonlyMap<string, boolean>): Promise<void> {
    return this.#tell('BackupComplete', (writer, session) => writer.onBackupComplete(session, succeeded))
  }

  /** Abort to all; an error of one does not spare the others. */
  abort(): Promise<void> {
    return this.#tell('Abort', async (writer, session) => {
      await writer.onAbort(session)
      return []
    })
  }

  backupShutdown(): Promise<void> {
    return this.#tell('BackupShutdown', async (writer, session) => {
      await writer.onBackupShutdown(session)
      return []
    })
  }

  async #tell(
    event: WriterEvent,
    deliver: (writer: Writer, session: WriterSession) => Promise<readonly Veto[]>,
    only?: readonly string[],
  ): Promise<void> {
    const concerned = this.participants.flatMap((participant) => {
      const components = participant.components.filter((ref) => only === undefined || only.includes(ref.name))
      return components.length === 0 ? [] : [{ participant, components }]
    })
    const vetoes = await settleAll(concerned, async ({ participant, components }) => {
      this.#session.emit({ event, writer: participant.writer.name })
      const session = { ...this.#session, components }
      return this.#ask(event, participant, () => deliver(participant.writer, session))
    })
    judge(
      event,
      this.#limits,
      vetoes.flatMap(({ outcome }) => (outcome.ok ? outcome.value : [vetoOfBug(outcome.error)])),
    )
  }

  /** One writer's answer: its vetoes, or its exception as a veto of the whole writer. */
  async #ask(
    event: WriterEvent,
    participant: Participant,
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
    const [ok, failed] = statesAfter[event] ?? ['stable', participant.state]
    // A writer that has failed stays failed, so that its status can be read afterwards.
    if (vetoes.length > 0) participant.vetoes = vetoes
    if (vetoes.length > 0) participant.state = failed
    else if (!participant.state.startsWith('failed')) participant.state = ok
    for (const veto of vetoes) {
      this.#session.emit({
        event: 'Veto',
        writer,
        ...(veto.component === undefined ? {} : { vm: veto.component }),
        detail: veto.reason,
      })
    }
    return vetoes
  }
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

  constructor(volumes: ReadonlyMap<Provider, readonly Volume[]>, session: ProviderSession) {
    this.#volumes = volumes
    this.#session = session
  }

  async endPrepareSnapshots(): Promise<void> {
    await this.#each((provider) => provider.endPrepareSnapshots(this.#session))
  }

  async preCommitSnapshots(components: readonly string[], frozen: FrozenWriters): Promise<void> {
    await this.#eachOf(components, (provider, volumes) => provider.preCommitSnapshots(this.#session, volumes, frozen))
  }

  async commitSnapshots(components: readonly string[], held: HeldWrites): Promise<Instant[]> {
    invariant(held.open, 'copies are committed only while writes are held')
    const instants = await this.#eachOf(components, (provider, volumes) =>
      provider.commitSnapshots(this.#session, volumes, held),
    )
    return instants.flat()
  }

  async postCommitSnapshots(components: readonly string[], frozen: FrozenWriters): Promise<void> {
    await this.#eachOf(components, (provider, volumes) => provider.postCommitSnapshots(this.#session, volumes, frozen))
  }

  async preFinalCommitSnapshots(): Promise<ShadowCopy[]> {
    return (await this.#each((provider) => provider.preFinalCommitSnapshots(this.#session))).flat()
  }

  async postFinalCommitSnapshots(): Promise<void> {
    await this.#each((provider) => provider.postFinalCommitSnapshots(this.#session))
  }

  async abortSnapshots(): Promise<void> {
    await this.#each((provider) => provider.abortSnapshots(this.#session))
  }

  async deleteSnapshots(): Promise<void> {
    await this.#each((provider) => provider.deleteSnapshots(this.#session))
  }

  #each<R>(work: (provider: Provider, volumes: readonly Volume[]) => Promise<R>): Promise<R[]> {
    return this.#gather([...this.#volumes], work)
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
  ): Promise<R[]> {
    const settled = await settleAll(concerned, ([provider, volumes]) => work(provider, volumes))
    const errors = settled.flatMap(({ outcome }) => (outcome.ok ? [] : [outcome.error]))
    if (errors.length > 0) throw failure('VSS_PROVIDER_VETO', { reasons: errors.map(describeError) }, errors[0])
    return settled.flatMap(({ outcome }) => (outcome.ok ? [outcome.value] : []))
  }
}
