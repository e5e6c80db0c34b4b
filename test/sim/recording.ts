/**
 * A writer and a provider made of nothing but their own state, each step of which can be told to fail, hang or veto,
 * before or after its deed; and the recorder of what happened. In the manner of the VSS SDK's test writer (FailEvent).
 */
import type { BlockSource } from '../../src/disk/block-device.ts'
import { failure } from '../../src/errors.ts'
import type { ComponentMetadata, WriterMetadata } from '../../src/vss/components.ts'
import type { Instant, Provider, ProviderSession, ShadowCopy, Volume } from '../../src/vss/provider.ts'
import type { EmitEvent, Veto, WriterFailureCode } from '../../src/vss/vocabulary.ts'
import type { FrozenWriters, HeldWrites } from '../../src/vss/windows.ts'
import type {
  ComponentOutcome,
  RestoredComponent,
  RestoreSession,
  Writer,
  WriterSession,
} from '../../src/vss/writer.ts'

export interface TraceEntry {
  readonly event: string
  readonly who: string
  readonly about: string
}

/** `-after`: the deed is done, only the answer is bad. */
export type Fault = 'fail' | 'fail-after' | 'hang' | 'hang-after' | 'veto' | Veto
export const faults = ['fail', 'fail-after', 'hang', 'hang-after', 'veto'] as const

export class Recorder {
  readonly entries: TraceEntry[] = []
  /** What must never happen, and did. */
  readonly violations: string[] = []
  readonly #faults = new Map<string, Fault>()
  readonly #watchers = new Map<string, () => unknown>()

  readonly emit: EmitEvent = ({ event, writer, vm, detail }) => {
    this.entries.push({ event, who: writer ?? '', about: [vm, detail].filter(Boolean).join(': ') })
  }

  note(event: string, who: string, about = ''): void {
    this.entries.push({ event, who, about })
  }

  /** From now on `step` of `who` goes wrong. */
  breakStep(who: string, step: string, fault: Fault): void {
    this.#faults.set(`${who} ${step}`, fault)
  }

  /** Calls `action` when `step` of `who` begins. */
  at(who: string, step: string, action: () => unknown): void {
    this.#watchers.set(`${who} ${step}`, action)
  }

  /** Does the deed of a step, the way it was told to. Answers with vetoes. */
  async play(who: string, step: string, deed: () => unknown): Promise<readonly Veto[]> {
    await this.#watchers.get(`${who} ${step}`)?.()
    const fault = this.#faults.get(`${who} ${step}`)
    if (typeof fault === 'object') return [fault]
    if (fault === 'veto') return [vetoOf(who, `no to ${step}`)]
    if (fault === 'fail') throw new Error(`${step} failed`)
    if (fault === 'hang') return new Promise(() => undefined)
    await deed()
    if (fault === 'fail-after') throw new Error(`${step} failed`)
    if (fault === 'hang-after') return new Promise(() => undefined)
    return []
  }
}

export function vetoOf(
  writer: string,
  reason: string,
  code: WriterFailureCode = 'VSS_E_WRITERERROR_RETRYABLE',
  component?: string,
): Veto {
  return { writer, code, reason, ...(component === undefined ? {} : { component }) }
}

export interface RecordedComponent {
  readonly name: string
  readonly instant?: string
  readonly volumes?: readonly string[]
}

export class RecordingWriter implements Writer {
  readonly id: string
  readonly instanceId: string
  readonly name: string
  readonly #recorder: Recorder
  readonly #components: readonly RecordedComponent[]
  /** What a backup must leave as it was. */
  readonly state = { prepared: [] as string[], frozen: [] as string[], aside: [] as string[] }
  readonly succeeded: [string, boolean][] = []
  readonly signals = new Map<string, AbortSignal>()
  copies: readonly ShadowCopy[] = []

  constructor(recorder: Recorder, name: string, components: readonly RecordedComponent[]) {
    this.#recorder = recorder
    this.#components = components
    this.name = name
    this.id = `id of ${name}`
    this.instanceId = `instance of ${name}`
  }

  async onIdentify(): Promise<WriterMetadata> {
    const vetoes = await this.#recorder.play(this.name, 'Identify', () => undefined)
    if (vetoes.length > 0) throw new Error('no to Identify')
    const components = this.#components.map((component) => describe(this.id, component))
    return { writerId: this.id, instanceId: this.instanceId, name: this.name, components }
  }

  onPrepareBackup(session: WriterSession): Promise<readonly Veto[]> {
    return this.#play('PrepareForBackup', session, () => undefined)
  }

  onPrepareSnapshot(session: WriterSession): Promise<readonly Veto[]> {
    return this.#play('PrepareForSnapshot', session, () => {
      this.state.prepared = namesOf(session)
    })
  }

  onFreeze(session: WriterSession): Promise<readonly Veto[]> {
    return this.#play('Freeze', session, () => {
      this.state.frozen = [...this.state.frozen, ...namesOf(session)]
    })
  }

  onThaw(session: WriterSession): Promise<readonly Veto[]> {
    return this.#play('Thaw', session, () => this.#thaw(namesOf(session)))
  }

  onPostSnapshot(session: WriterSession, copies: readonly ShadowCopy[]): Promise<readonly Veto[]> {
    return this.#play('PostSnapshot', session, () => {
      this.copies = copies
      this.state.prepared = []
    })
  }

  async outcomes(session: WriterSession): Promise<readonly ComponentOutcome[]> {
    await this.#play('outcomes', session, () => undefined)
    return session.components.map((component) => ({ component, metadata: { by: this.name }, files: [] }))
  }

  onBackupComplete(session: WriterSession, succeeded: ReadonlyMap<string, boolean>): Promise<readonly Veto[]> {
    return this.#play('BackupComplete', session, () => this.succeeded.push(...succeeded))
  }

  async onBackupShutdown(session: WriterSession): Promise<void> {
    await this.#withoutVetoes('BackupShutdown', session, () => this.#asBefore())
  }

  async onAbort(session: WriterSession): Promise<void> {
    await this.#withoutVetoes('Abort', session, () => this.#asBefore())
  }

  onPreRestore(session: RestoreSession): Promise<readonly Veto[]> {
    return this.#recorder.play(this.name, 'PreRestore', () => {
      this.state.aside = session.components.map(({ name }) => name)
    })
  }

  async onPostRestore(_: RestoreSession, restored: readonly RestoredComponent[]): Promise<readonly Veto[]> {
    const vetoes = await this.#recorder.play(this.name, 'PostRestore', () => {
      this.state.aside = []
    })
    return restored
      .filter(({ status }) => status !== 'all')
      .map(({ component, status }) => vetoOf(this.name, `files: ${status}`, undefined, component.name))
      .concat(vetoes)
  }

  #play(step: string, session: WriterSession, deed: () => unknown): Promise<readonly Veto[]> {
    this.signals.set(step, session.signal)
    return this.#recorder.play(this.name, step, deed)
  }

  async #withoutVetoes(step: string, session: WriterSession, deed: () => unknown): Promise<void> {
    const [veto] = await this.#play(step, session, deed)
    if (veto !== undefined) throw new Error(veto.reason)
  }

  #thaw(names: readonly string[]): void {
    this.state.frozen = this.state.frozen.filter((name) => !names.includes(name))
  }

  #asBefore(): void {
    this.state.prepared = []
    this.state.frozen = []
  }
}

type CopyState = 'prepared' | 'committed' | 'writable' | 'read-only'

export class RecordingProvider implements Provider {
  readonly id: string
  readonly name: string
  readonly #recorder: Recorder
  readonly #kind: string
  readonly copies = new Map<string, { volume: Volume; state: CopyState }>()
  /** What the coordinator asked for each volume. */
  readonly attributes = new Map<string, number>()

  constructor(recorder: Recorder, name = 'provider', kind = 'recorded') {
    this.#recorder = recorder
    this.#kind = kind
    this.name = name
    this.id = `id of ${name}`
  }

  supports({ properties }: Volume): number {
    return properties.kind === this.#kind ? 1 : 0
  }

  /** What auto-recovery does: only possible while the copy is writable. */
  write(copy: ShadowCopy): void {
    const { state } = this.copies.get(copy.id) ?? {}
    if (state !== 'writable') throw new Error(`the copy of ${copy.volume.name} is ${state ?? 'gone'}`)
    this.#recorder.note('write to copy', this.name, copy.volume.name)
  }

  beginPrepareSnapshot(_session: ProviderSession, volume: Volume, attributes: number): Promise<void> {
    this.attributes.set(volume.id, attributes)
    return this.#play('BeginPrepareSnapshot', [volume], () => this.#move([volume], 'prepared'))
  }

  endPrepareSnapshots(): Promise<void> {
    return this.#play('EndPrepareSnapshots', [], () => undefined)
  }

  preCommitSnapshots(_: ProviderSession, volumes: readonly Volume[], frozen: FrozenWriters): Promise<void> {
    this.#require(frozen.open, 'PreCommit outside the freeze')
    return this.#play('PreCommitSnapshots', volumes, () => undefined)
  }

  async commitSnapshots(_: ProviderSession, volumes: readonly Volume[], held: HeldWrites): Promise<readonly Instant[]> {
    this.#require(held.open, 'Commit without held writes')
    await this.#play('CommitSnapshots', volumes, () => this.#move(volumes, 'committed'))
    return volumes.map(({ component }) => ({ component, beganMs: 0, endedMs: 0 }))
  }

  postCommitSnapshots(_: ProviderSession, volumes: readonly Volume[], frozen: FrozenWriters): Promise<void> {
    this.#require(frozen.open, 'PostCommit outside the freeze')
    return this.#play('PostCommitSnapshots', volumes, () => undefined)
  }

  async preFinalCommitSnapshots(): Promise<readonly ShadowCopy[]> {
    const volumes = [...this.copies.values()].map(({ volume }) => volume)
    await this.#play('PreFinalCommitSnapshots', [], () => this.#move(volumes, 'writable'))
    return volumes.map((volume) => ({
      id: volume.id,
      volume,
      provider: this.name,
      open: async () => bytesAsSource(new TextEncoder().encode(volume.id), volume.name),
    }))
  }

  postFinalCommitSnapshots(): Promise<void> {
    const volumes = [...this.copies.values()].map(({ volume }) => volume)
    return this.#play('PostFinalCommitSnapshots', [], () => this.#move(volumes, 'read-only'))
  }

  abortSnapshots(): Promise<void> {
    return this.#play('AbortSnapshots', [], () => this.copies.clear())
  }

  deleteSnapshots(): Promise<void> {
    return this.#play('DeleteSnapshots', [], () => this.copies.clear())
  }

  async #play(step: string, volumes: readonly Volume[], deed: () => unknown): Promise<void> {
    this.#recorder.note(step, this.name, volumes.map(({ component, name }) => `${component} ${name}`).join(', '))
    const [veto] = await this.#recorder.play(this.name, step, deed)
    if (veto !== undefined) throw new Error(veto.reason)
  }

  #move(volumes: readonly Volume[], state: CopyState): void {
    for (const volume of volumes) this.copies.set(volume.id, { volume, state })
  }

  #require(condition: boolean, what: string): void {
    if (!condition) this.#recorder.violations.push(what)
  }
}

function describe(writerId: string, { name, instant, volumes = ['disk'] }: RecordedComponent): ComponentMetadata {
  return {
    writerId,
    type: 'filegroup',
    logicalPath: '',
    name,
    caption: `Online\\${name}`,
    label: name,
    selectable: true,
    selectableForRestore: true,
    notifyOnBackupComplete: true,
    flags: 1,
    files: volumes.map((volume) => ({ path: `/${name}/`, filespec: volume, recursive: false })),
    volumes: volumes.map((volume) => ({
      id: `${name}/${volume}`,
      component: name,
      caption: name,
      name: volume,
      properties: { kind: 'recorded' },
    })),
    instant: instant ?? 'set',
    plan: {},
    obstacles: [],
  }
}

function namesOf({ components }: WriterSession): string[] {
  return components.map(({ name }) => name)
}

export function bytesAsSource(bytes: Uint8Array, disk: string): BlockSource {
  const sizeBytes = bytes.byteLength
  return {
    sizeBytes,
    async read(offset, target) {
      if (offset + target.byteLength > sizeBytes) {
        throw failure('DISK_READ_FAILED', { disk, offset, reason: 'beyond its end' })
      }
      target.set(bytes.subarray(offset, offset + target.byteLength))
    },
    async *extents(offset, length) {
      if (length > 0) yield { offset, length, data: true }
    },
    [Symbol.asyncDispose]: async () => undefined,
  }
}
