/**
 * BackupComponents: what a requester holds. One backup, then disposal, which is BackupShutdown: whatever is still under
 * way is aborted, and the copies of the set are released. The calls and their order are those of IVssBackupComponents;
 * session.ts has the table.
 */
import { mapLimit, settleAll, withDeadline } from '../base/async.ts'
import type { Cleanup, JsonObject } from '../base/cleanup.ts'
import type { Clock } from '../base/clock.ts'
import { describeError, invariant } from '../base/failure.ts'
import { failure } from '../errors.ts'
import type { BackupStamps } from './change-tracking.ts'
import {
  type BackupComponentsDocument,
  type ComponentMetadata,
  type ComponentRef,
  fullPath,
  refOf,
  sameComponent,
  type WriterMetadata,
} from './components.ts'
import { type CreatedSet, doSnapshotSet } from './do-snapshot-set.ts'
import { type Participant, Providers, Writers } from './gather.ts'
import { chooseProvider, type Provider, type ProviderSession, type Volume } from './provider.ts'
import { type SessionCall, type SessionState, transition } from './session.ts'
import {
  type BackupType,
  backupRecoveryFlag,
  type EmitEvent,
  type SessionLimits,
  snapshotAttributes,
  snapshotContexts,
} from './vocabulary.ts'
import type { QuietDuringFreeze } from './windows.ts'
import type { ComponentOutcome, Writer, WriterSession } from './writer.ts'

/** What the coordinator is made of; one per session. */
export interface VssService {
  readonly writers: readonly Writer[]
  readonly providers: readonly Provider[]
  readonly limits: SessionLimits
  /** Instants of one set that may be under way side by side; 1 unless told. */
  readonly instantsAtOnce?: number
  readonly clock: Clock
  readonly undo: Cleanup
  readonly emit: EmitEvent
  readonly quiet: QuietDuringFreeze
  /** Takes the host-wide lock of "one set in creation at a time"; rejects at once with VSS_SNAPSHOT_SET_IN_PROGRESS. */
  lockSetCreation(): Promise<AsyncDisposable>
  readonly signal: AbortSignal
  /** Aborts `signal` for a reason that a provider found. */
  abandon(reason: Error): void
}

export class BackupComponents implements AsyncDisposable {
  readonly snapshotSetId: string = crypto.randomUUID()
  readonly #service: VssService
  readonly #backupType: BackupType
  #state: SessionState = 'new'
  #metadata: readonly WriterMetadata[] = []
  #selected: ComponentMetadata[] = []
  #volumes = new Map<Provider, Volume[]>()
  #writers: Writers | undefined
  #outcomes: readonly ComponentOutcome[] = []
  #succeeded = new Map<string, boolean>()
  #creationLock: AsyncDisposable | undefined
  #context: number = snapshotContexts.VSS_CTX_BACKUP
  #stamps: BackupStamps | undefined

  private constructor(service: VssService, backupType: BackupType) {
    this.#service = service
    this.#backupType = backupType
  }

  /** At most once, before anything else is asked: VSS_CTX_BACKUP, or the same without auto-recovery. */
  setContext(context: number): void {
    this.#call('setContext')
    const known: number = snapshotContexts.VSS_CTX_BACKUP | noAutoRecovery
    if ((context & ~known) !== 0) throw failure('VSS_BAD_STATE', { call: 'setContext', state: `context ${context}` })
    this.#context = context
  }

  static initializeForBackup(service: VssService, backupType: BackupType): BackupComponents {
    const components = new BackupComponents(service, backupType)
    components.#call('initializeForBackup')
    return components
  }

  get state(): SessionState {
    return this.#state
  }

  get selected(): readonly ComponentMetadata[] {
    return this.#selected
  }

  /** Identify to all writers; one whose handler fails is missing from the answer, as in VSS, and an event says so. */
  async gatherWriterMetadata(): Promise<readonly WriterMetadata[]> {
    this.#call('gatherWriterMetadata')
    const answers = await settleAll(this.#service.writers, (writer) => {
      this.#service.emit({ event: 'Identify', writer: writer.name })
      return this.#inTime(`Identify of ${writer.name}`, writer.onIdentify())
    })
    if (answers.length === 1 && answers[0]?.outcome.ok === false) throw answers[0].outcome.error
    this.#metadata = answers.flatMap(({ item, outcome }) => {
      if (outcome.ok) return [outcome.value]
      this.#service.emit({ event: 'WriterMissing', writer: item.name, detail: describeError(outcome.error) })
      return []
    })
    return this.#metadata
  }

  addComponent(ref: ComponentRef): void {
    this.#call('addComponent')
    const found = this.#metadata
      .flatMap(({ components }) => components)
      .find((component) => sameComponent(component, ref))
    if (found === undefined)
      throw failure('VSS_BAD_STATE', { call: `addComponent ${fullPath(ref)}`, state: 'not in the metadata' })
    if (this.#selected.includes(found)) return
    // Volumes and instants know their component by its plain name, which writers make unique (a VM's UUID).
    if (this.#selected.some(({ name }) => name === found.name))
      throw failure('VSS_BAD_STATE', { call: `addComponent ${fullPath(ref)}`, state: 'another of that name was added' })
    this.#selected.push(found)
  }

  /** Takes the host-wide lock: one set in creation at a time. */
  async startSnapshotSet(): Promise<void> {
    this.#call('startSnapshotSet')
    this.#creationLock = await this.#service.lockSetCreation()
  }

  /** Adds every volume of the components selected, each to the provider that suits it best. */
  async addVolumesOfComponents(): Promise<void> {
    this.#call('addToSnapshotSet')
    const session = this.#providerSession()
    const volumes = this.#selected.flatMap((component) =>
      component.volumes.map((volume) => ({ volume, attributes: attributesOf(component, this.#context) })),
    )
    const settled = await settleAll(
      volumes,
      async ({ volume, attributes }) => {
        const chosen = chooseProvider(this.#service.providers, volume)
        const provider = await this.#inTime(`the choice of a provider for ${volume.caption} ${volume.name}`, chosen)
        if (provider === undefined)
          throw failure('VSS_VOLUME_NOT_SUPPORTED', {
            volume: `${volume.caption} ${volume.name}${restrictionOf(volume)}`,
          })
        this.#volumes.set(provider, [...(this.#volumes.get(provider) ?? []), volume])
        const what = `BeginPrepareSnapshot of ${provider.name}`
        await this.#inTime(what, provider.beginPrepareSnapshot(session, volume, attributes))
        const detail = `${volume.name}: ${provider.name}`
        this.#service.emit({ event: 'AddToSnapshotSet', vm: volume.caption, detail })
      },
      8,
    )
    const errors = settled.flatMap(({ outcome }) => (outcome.ok ? [] : [outcome.error]))
    if (errors.length > 0) this.#service.signal.throwIfAborted()
    if (errors.length > 1) throw failure('VSS_PROVIDER_VETO', { reasons: errors.map(describeError) }, errors[0])
    if (errors.length > 0) throw errors[0]
  }

  async prepareForBackup(): Promise<void> {
    this.#call('prepareForBackup')
    const { limits, clock } = this.#service
    this.#writers = new Writers(this.#participants(), this.#writerSession(), limits, clock)
    await this.#writers.prepareForBackup()
  }

  /** This backup's stamp, and those it can build on; without them nobody tracks changes. Before doSnapshotSet. */
  setBackupStamps(stamps: BackupStamps): void {
    this.#call('setBackupStamps')
    this.#stamps = stamps
  }

  /** The states and last vetoes of the writers that take part. */
  writerStatus(): readonly Participant[] {
    return this.#writers?.participants ?? []
  }

  async doSnapshotSet(): Promise<CreatedSet> {
    const next = transition(this.#state, 'doSnapshotSet')
    const writers = this.#writers
    invariant(writers !== undefined, 'prepareForBackup comes before doSnapshotSet')
    const { limits, clock, quiet, instantsAtOnce = 1 } = this.#service
    const providers = this.#providers()
    this.#state = 'aborted' // unless the set gets created
    try {
      const instants = groupByInstant(this.#selected)
      const set = { id: this.snapshotSetId, instants, instantsAtOnce, limits, clock, quiet }
      const created = await doSnapshotSet(set, writers, providers)
      this.#state = next
      const outcomes = await mapLimit(writers.participants, Number.POSITIVE_INFINITY, (participant) => {
        const { writer } = participant
        return this.#inTime(`the outcomes of ${writer.name}`, writer.outcomes(writers.sessionOf(participant)))
      })
      this.#outcomes = outcomes.flat()
      return created
    } finally {
      await this.#releaseCreationLock()
    }
  }

  /** What the writers left for each component; complete after doSnapshotSet. */
  outcomes(): readonly ComponentOutcome[] {
    return this.#outcomes
  }

  setBackupSucceeded(ref: ComponentRef, succeeded: boolean): void {
    this.#call('setBackupSucceeded')
    this.#succeeded.set(keyOf(ref), succeeded)
  }

  async backupComplete(): Promise<void> {
    this.#call('backupComplete')
    const all = this.#selected.every((component) => this.#succeeded.get(keyOf(component)) === true)
    await using _stamps = {
      [Symbol.asyncDispose]: async () => (all ? await this.#providers().keepStamps() : undefined),
    }
    await this.#writers?.backupComplete((ref) => this.#succeeded.get(keyOf(ref)))
  }

  /** Ignored when nothing is under way; may come more than once. */
  async abortBackup(): Promise<void> {
    const before = this.#state
    this.#call('abortBackup')
    if (this.#state !== 'aborted' || before === 'aborted') return
    await using _providers = { [Symbol.asyncDispose]: () => this.#providers().abortSnapshots() }
    await this.#writers?.abort()
  }

  /** The writer metadata of the components selected, and the backup components document. */
  documents(): { metadata: readonly WriterMetadata[]; components: BackupComponentsDocument } {
    const metadata = this.#metadata
      .map((writer) => ({ ...writer, components: writer.components.filter((one) => this.#selected.includes(one)) }))
      .filter(({ components }) => components.length > 0)
    const writers = metadata.map(({ writerId, instanceId, name, components }) => ({
      writerId,
      instanceId,
      name,
      components: components.map((component) => ({
        component: refOf(component),
        succeeded: this.#succeeded.get(keyOf(component)) ?? false,
        metadata: this.#metadataOf(component),
        fileRestoreStatus: 'undefined' as const,
      })),
    }))
    return { metadata, components: { snapshotSetId: this.snapshotSetId, backupType: this.#backupType, writers } }
  }

  /** BackupShutdown: aborts what is under way, releases the copies and the lock. All of it is tried. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#state === 'released') return
    await using _lock = { [Symbol.asyncDispose]: () => this.#releaseCreationLock() }
    await using _copies = { [Symbol.asyncDispose]: () => this.#providers().deleteSnapshots() }
    await using _shutdown = { [Symbol.asyncDispose]: async () => this.#writers?.backupShutdown() }
    await this.abortBackup()
    this.#call('release')
  }

  #call(call: SessionCall): void {
    this.#state = transition(this.#state, call)
  }

  #metadataOf(component: ComponentRef): JsonObject {
    return this.#outcomes.find((outcome) => sameComponent(outcome.component, component))?.metadata ?? {}
  }

  #participants(): Participant[] {
    return this.#service.writers.flatMap((writer) => {
      const components = this.#selected.filter(({ writerId }) => writerId === writer.id).map(refOf)
      return components.length === 0 ? [] : [{ writer, components, state: 'stable' as const, vetoes: [] }]
    })
  }

  #writerSession(): Omit<WriterSession, 'components'> {
    const { undo, emit, signal } = this.#service
    return { snapshotSetId: this.snapshotSetId, undo, emit, signal }
  }

  #providerSession(): ProviderSession {
    const stamps = this.#stamps === undefined ? {} : { stamps: this.#stamps }
    return { ...this.#writerSession(), abandon: this.#service.abandon, ...stamps }
  }

  #providers(): Providers {
    const { limits, clock } = this.#service
    return new Providers(this.#volumes, this.#providerSession(), limits, clock)
  }

  #inTime<T>(what: string, work: Promise<T>): Promise<T> {
    const { limits, clock } = this.#service
    return withDeadline(work, { clock, limitMs: limits.prepareMs, what })
  }

  async #releaseCreationLock(): Promise<void> {
    const lock = this.#creationLock
    this.#creationLock = undefined
    await lock?.[Symbol.asyncDispose]()
  }
}

const noAutoRecovery = snapshotAttributes.VSS_VOLSNAP_ATTR_NO_AUTORECOVERY

/** A component that wants to be recovered gets copies that can be, unless the context forbids it. */
function attributesOf({ flags }: ComponentMetadata, context: number): number {
  const wanted = (flags & backupRecoveryFlag) !== 0
  return wanted && (context & noAutoRecovery) === 0 ? snapshotAttributes.VSS_VOLSNAP_ATTR_AUTORECOVER : 0
}

/** Two writers may each have a component of the same path. */
function keyOf(ref: ComponentRef): string {
  return ref.writerId + fullPath(ref)
}

/** The instants of a set: components with one key share a window, in the order in which they were selected. */
function groupByInstant(components: readonly ComponentMetadata[]): string[][] {
  const groups = new Map<string, string[]>()
  for (const { instant, name } of components) groups.set(instant, [...(groups.get(instant) ?? []), name])
  return [...groups.values()]
}

const restrictionOf = ({ restriction }: Volume): string => (restriction === undefined ? '' : ` (${restriction})`)
