/**
 * The backup application's side of a backup, in the order of "Overview of Processing a Backup Under VSS". It knows
 * writers and components, not what they are. The manifest is written last (law 6); the copies are released after it.
 */
import { mapLimit } from '../base/async.ts'
import type { JsonObject, UndoStep } from '../base/cleanup.ts'
import type { Clock } from '../base/clock.ts'
import { cleanupErrors, describeError, primaryError } from '../base/failure.ts'
import type { BlockSource } from '../disk/block-device.ts'
import { failure } from '../errors.ts'
import type { PointDraft, Repository } from '../repository/repository.ts'
import { BackupComponents } from '../vss/backup-components.ts'
import { type ComponentMetadata, type WriterMetadata, withPlace } from '../vss/components.ts'
import type { CreatedSet } from '../vss/do-snapshot-set.ts'
import { writeBackupComponentsDocument, writeWriterMetadataDocument } from '../vss/documents.ts'
import { chooseProvider, type Provider } from '../vss/provider.ts'
import { type SessionEvent, type SessionLimits, snapshotContexts } from '../vss/vocabulary.ts'
import type { Writer } from '../vss/writer.ts'
import { EarlierBackups } from './earlier-backups.ts'
import type { Progress } from './progress.ts'
import { keepingResult, type Made, RequesterSession, type SessionOptions } from './session.ts'
import { transferAll } from './transfer-copies.ts'

export interface BackupSelection {
  /** Names or component names; empty with `all`. */
  readonly names: readonly string[]
  readonly all: boolean
  readonly except: readonly string[]
}

export interface BackupEnvironment {
  readonly writers: readonly Writer[]
  readonly providers: readonly Provider[]
  readonly limits: SessionLimits
  /** A sum of snapshotContexts and snapshotAttributes; VSS_CTX_BACKUP unless told. */
  readonly context?: number
  readonly instantsAtOnce?: number
  readonly clock: Clock
  readonly repository: Repository
  /** Trust no change tracking: every disk is read whole and compared with its last recovery point. */
  readonly readAll?: boolean
  /** Wraps what is read from, to slow it down. */
  readonly limitReads?: (source: BlockSource) => BlockSource
  readonly session: SessionOptions
  readonly onEvent?: (event: SessionEvent) => void
  readonly onProgress?: (progress: Progress) => void
}

export interface BackupResult {
  readonly recoveryPoint: string
  /** One entry per component: what its writer tells, and what its volumes took. */
  readonly vms: readonly JsonObject[]
  readonly skewMs: number
  readonly durationMs: number
  readonly events: readonly SessionEvent[]
  /** What is left to clean up; empty unless the exit code is 3. */
  readonly cleanup: readonly string[]
}

/** Components whose providers are chosen at the same time. */
const plannedAtOnce = 8

type Core = Omit<BackupResult, 'events' | 'cleanup'>

export async function backup(selection: BackupSelection, environment: BackupEnvironment): Promise<BackupResult> {
  const events: SessionEvent[] = []
  const result = await keepingResult<Core>(async (made) => {
    await using session = await RequesterSession.open(environment.session)
    session.events.listen((event) => events.push(event))
    if (environment.onEvent !== undefined) session.events.listen(environment.onEvent)
    try {
      await backupInSession(selection, environment, session, made)
    } catch (error) {
      // Once the recovery point exists the backup has succeeded. What could not be cleaned up the session's undo tries
      // again, and only what it could not do either is told as left.
      const told = made.result === undefined ? cleanupErrors(error) : [primaryError(error), ...cleanupErrors(error)]
      for (const one of told) session.events.emit({ event: 'Unfinished', detail: describeError(one) })
      if (made.result === undefined) throw primaryError(error)
    }
  })
  return { ...result, events }
}

async function backupInSession(
  selection: BackupSelection,
  environment: BackupEnvironment,
  session: RequesterSession,
  made: Made<Core>,
): Promise<void> {
  const { clock, repository, onProgress, context = snapshotContexts.VSS_CTX_BACKUP } = environment
  const beganMs = clock.monotonicMs()
  const { undo, quiet, signal, abandon, lockSetCreation, events } = session
  const { writers, providers, limits, instantsAtOnce = 1 } = environment
  const how = { writers, providers, limits, instantsAtOnce, clock }
  const service = { ...how, undo, emit: events.emit, quiet, lockSetCreation, signal, abandon }

  await using components = BackupComponents.initializeForBackup(service, 'full')
  components.setContext(context)
  const selected = select(await components.gatherWriterMetadata(), selection)
  for (const component of selected) {
    await session.lockComponent(component, component.label)
    components.addComponent(component)
  }
  await components.startSnapshotSet()
  await components.addVolumesOfComponents()
  await components.prepareForBackup()

  let discard: UndoStep | undefined
  // Before anything is frozen: a repository that is full says so now.
  await using draft = await repository.beginPoint(async (point) => {
    if (discard !== undefined) undo.forget(discard)
    discard = await undo.defer({ undo: 'discard-point', repository: repository.location, point })
  })
  const earlier = await EarlierBackups.find(
    repository,
    selected.flatMap(({ volumes }) => volumes),
  )
  components.setBackupStamps(earlier.asBackupStamps(repository.id, draft.id))
  await session.guarded()
  signal.throwIfAborted()
  const created = await components.doSnapshotSet()

  const { chunkSizeBytes, blockSizeBytes } = repository
  const { limitReads = (source: BlockSource) => source, readAll = false } = environment
  const transfer = {
    chunkSizeBytes,
    blockSizeBytes,
    providers,
    earlier,
    readAll,
    limitReads,
    signal,
    clock,
    onProgress,
  }
  const disks = await transferAll(created.copies, components.outcomes(), draft, { ...transfer, emit: events.emit })
  for (const component of selected) components.setBackupSucceeded(component, true)
  const vms = components.outcomes().map(({ component, metadata }) => ({
    ...metadata,
    disks: (disks.get(component.name) ?? []).map((disk) => ({ ...disk })),
  }))
  const skewMs = skewOf(created)
  await putDocuments(components, draft)
  events.emit({ event: 'Commit', detail: `recovery point ${draft.id}` })
  const durationMs = Math.round(clock.monotonicMs() - beganMs)
  const content = { vms, skewMs, durationMs, events: events.all.map((event) => ({ ...event })) }
  const point = await draft.commit(JSON.parse(JSON.stringify(content)) as JsonObject)
  if (discard !== undefined) undo.forget(discard)
  made.result = { recoveryPoint: point.id, vms, skewMs, durationMs }
  await components.backupComplete()
}

/** The components asked for; refuses names that are not there and components that can not be backed up, all at once. */
export function select(
  metadata: readonly WriterMetadata[],
  { names, all, except }: BackupSelection,
): ComponentMetadata[] {
  const available = metadata.flatMap(({ components }) => components)
  const named = (name: string) => available.find((one) => one.label === name || one.name === name.toLowerCase())
  const twofold = [...names, ...except].filter((name) => available.filter(({ label }) => label === name).length > 1)
  if (twofold.length > 0) {
    throw failure('USAGE', { reason: `${twofold.join(', ')}: a VM and files have this name: rename the files` })
  }
  const unknown = [...names, ...except].filter((name) => named(name) === undefined)
  if (unknown.length > 0) {
    const others = metadata.flatMap(({ elsewhere = [] }) => elsewhere)
    throw failure('VM_NOT_FOUND', {
      vm: unknown.map((name) => withPlace(name, others)).join(', '),
      known: available.map(({ label }) => label).join(', ') || 'none',
    })
  }
  const left = new Set(except.map((name) => named(name)))
  const wanted = all ? available : names.flatMap((name) => named(name) ?? [])
  const selected = [...new Set(wanted)].filter((component) => !left.has(component))
  if (selected.length === 0) throw failure('USAGE', { reason: 'there is no VM to back up' })
  const refused = selected.filter(({ obstacles }) => obstacles.length > 0)
  if (refused.length > 0) {
    const reasons = refused.map(({ label, obstacles }) => `${label}: ${obstacles.join('; ')}`)
    throw failure('VSS_WRITER_VETO', { event: 'Identify', done: 'backed up', reasons })
  }
  return selected
}

/** The two VSS documents; final only now, after PostSnapshot. */
async function putDocuments(components: BackupComponents, draft: PointDraft): Promise<void> {
  const { metadata, components: document } = components.documents()
  const encoder = new TextEncoder()
  await draft.putDocument('backup-components.xml', encoder.encode(writeBackupComponentsDocument(document)))
  for (const [index, writer] of metadata.entries()) {
    await draft.putDocument(`writer-metadata-${index}.xml`, encoder.encode(writeWriterMetadataDocument(writer)))
  }
}

/** From the first instant's beginning to the last one's end; 0 for a single component. */
function skewOf({ instants }: CreatedSet): number {
  if (new Set(instants.map(({ component }) => component)).size < 2) return 0
  const spread =
    Math.max(...instants.map(({ endedMs }) => endedMs)) - Math.min(...instants.map(({ beganMs }) => beganMs))
  return Math.round(spread * 10) / 10
}

export type PlannedComponent = Pick<ComponentMetadata, 'label' | 'name' | 'caption' | 'plan' | 'volumes'> & {
  /** By the name of a volume: the name of the provider that would make its copy. */
  readonly providers: Readonly<Record<string, string>>
}

/** What a backup would do, without touching anything. */
export async function planBackup(
  selection: BackupSelection,
  writers: readonly Writer[],
  providers: readonly Provider[] = [],
): Promise<readonly PlannedComponent[]> {
  const metadata = await Promise.all(writers.map((writer) => writer.onIdentify()))
  return mapLimit(select(metadata, selection), plannedAtOnce, async (component) => {
    const chosen = component.volumes.map(async (volume) => {
      const provider = await chooseProvider(providers, volume)
      return [volume.name, provider?.name ?? 'none'] as const
    })
    return { ...component, providers: Object.fromEntries(await Promise.all(chosen)) }
  })
}
