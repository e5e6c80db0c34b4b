/**
 * A second writer and its provider, unrelated to VMs: a host application that keeps files in a directory. It proves
 * that the contracts of src/vss ask for nothing that only a VM has. While it is frozen a file `.quiesced` stands in its
 * directory, so that an undo record can thaw it from another process, as the journal would.
 */
import { access, mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import type { UndoHandlers, UndoRecord, UndoStep } from '../../src/base/cleanup.ts'
import type { Clock } from '../../src/base/clock.ts'
import type { BlockSource } from '../../src/disk/block-device.ts'
import { failure } from '../../src/errors.ts'
import type { ComponentMetadata, WriterMetadata } from '../../src/vss/components.ts'
import type { Instant, Provider, ProviderSession, ShadowCopy, Volume } from '../../src/vss/provider.ts'
import type { Veto } from '../../src/vss/vocabulary.ts'
import type { HeldWrites } from '../../src/vss/windows.ts'
import type {
  ComponentOutcome,
  RestoredComponent,
  RestoreSession,
  Writer,
  WriterSession,
} from '../../src/vss/writer.ts'

const none: readonly Veto[] = []
const quiesced = '.quiesced'

/** The application: writes are refused while it is frozen. */
export class FileApplication {
  readonly directory: string

  constructor(directory: string) {
    this.directory = directory
  }

  async write(name: string, text: string): Promise<void> {
    if (await this.frozen()) throw new Error(`${basename(this.directory)} is frozen`)
    await writeFile(join(this.directory, name), text)
  }

  frozen(): Promise<boolean> {
    return exists(join(this.directory, quiesced))
  }

  /** Every file with its text, and what was set aside: what a test compares before and after. */
  async state(): Promise<Record<string, string>> {
    const entries: [string, string][] = []
    for (const name of (await readdir(this.directory)).toSorted()) {
      entries.push([name, await readFile(join(this.directory, name), 'utf8')])
    }
    if (await exists(aside(this.directory))) entries.push(['(aside)', ''])
    return Object.fromEntries(entries)
  }
}

export const fileUndoHandlers: UndoHandlers = {
  'thaw-files': async ({ directory }) => rm(join(String(directory), quiesced), { force: true }),
  'bring-files-back': async ({ directory }) => {
    const path = String(directory)
    if (!(await exists(aside(path)))) return
    await rm(path, { recursive: true, force: true })
    await rename(aside(path), path)
  },
}

export class FileWriter implements Writer {
  readonly id = '3a5c6c1e-52f0-4f43-9a0b-6a1f4a2f7c11'
  readonly instanceId = 'b7f1c1c4-7b3e-4d7c-8a55-2f0e7f1f9d22'
  readonly name: string
  readonly #application: FileApplication
  #thaw: UndoStep | undefined
  #bringBack: UndoStep | undefined

  constructor(application: FileApplication, name = 'Ledger Writer') {
    this.#application = application
    this.name = name
  }

  async onIdentify(): Promise<WriterMetadata> {
    const { directory } = this.#application
    const files = (await readdir(directory)).filter((name) => name !== quiesced).toSorted()
    const name = basename(directory)
    const component: ComponentMetadata = {
      writerId: this.id,
      type: 'filegroup',
      logicalPath: '',
      name,
      caption: name,
      label: name,
      selectable: true,
      selectableForRestore: true,
      notifyOnBackupComplete: false,
      flags: 0,
      files: [{ path: directory, filespec: '*', recursive: false }],
      volumes: files.map((file) => ({
        id: `${name}/${file}`,
        component: name,
        caption: name,
        name: file,
        properties: { kind: 'host-file', path: join(directory, file) },
      })),
      instant: 'set',
      plan: {},
      obstacles: [],
    }
    return { writerId: this.id, instanceId: this.instanceId, name: this.name, components: [component] }
  }

  async onPrepareBackup(): Promise<readonly Veto[]> {
    return none
  }

  /** Law 1: what Thaw has to undo is registered before Freeze. */
  async onPrepareSnapshot({ undo }: WriterSession): Promise<readonly Veto[]> {
    this.#thaw = await undo.defer({ undo: 'thaw-files', directory: this.#application.directory })
    return none
  }

  async onFreeze(): Promise<readonly Veto[]> {
    await writeFile(join(this.#application.directory, quiesced), '')
    return none
  }

  async onThaw(session: WriterSession): Promise<readonly Veto[]> {
    await this.#thawed(session)
    return none
  }

  async onPostSnapshot(): Promise<readonly Veto[]> {
    return none
  }

  async outcomes({ components }: WriterSession): Promise<readonly ComponentOutcome[]> {
    return components.map((component) => ({
      component,
      metadata: { directory: this.#application.directory },
      files: [{ name: 'note.txt', content: new TextEncoder().encode('files of a host application') }],
    }))
  }

  async onBackupComplete(): Promise<readonly Veto[]> {
    return none
  }

  onBackupShutdown(session: WriterSession): Promise<void> {
    return this.#thawed(session)
  }

  onAbort(session: WriterSession): Promise<void> {
    return this.#thawed(session)
  }

  async onPreRestore({ undo }: RestoreSession): Promise<readonly Veto[]> {
    const { directory } = this.#application
    this.#bringBack = await undo.defer({ undo: 'bring-files-back', directory })
    await rename(directory, aside(directory))
    await mkdir(directory)
    return none
  }

  async onPostRestore({ undo }: RestoreSession, restored: readonly RestoredComponent[]): Promise<readonly Veto[]> {
    const step = this.#bringBack
    this.#bringBack = undefined
    const missing = restored.filter(({ status }) => status !== 'all')
    if (missing.length > 0) {
      if (step !== undefined) await undo.run(step)
      return missing.map(({ component, status }) => ({
        writer: this.name,
        component: component.name,
        code: 'VSS_E_WRITERERROR_NONRETRYABLE',
        reason: `its files are restored as: ${status}`,
      }))
    }
    if (step !== undefined) undo.forget(step)
    await rm(aside(this.#application.directory), { recursive: true, force: true })
    return none
  }

  async #thawed({ undo }: WriterSession): Promise<void> {
    const record: UndoRecord = { undo: 'thaw-files', directory: this.#application.directory }
    await fileUndoHandlers['thaw-files']?.(record)
    if (this.#thaw !== undefined) undo.forget(this.#thaw)
    this.#thaw = undefined
  }
}

/** Copies files into memory at the instant. */
export class FileProvider implements Provider {
  readonly id = '9d1b6b1c-0c65-4f0e-8d39-4b0c51a7c033'
  readonly name = 'file-provider'
  readonly #clock: Clock
  readonly #copies = new Map<string, { volume: Volume; bytes: Uint8Array }>()

  constructor(clock: Clock) {
    this.#clock = clock
  }

  /** What is left of all sets. */
  get residue(): string[] {
    return [...this.#copies.keys()]
  }

  supports({ properties }: Volume): number {
    return properties.kind === 'host-file' ? 1 : 0
  }

  async beginPrepareSnapshot(_session: ProviderSession, volume: Volume): Promise<void> {
    await stat(pathOf(volume))
  }

  endPrepareSnapshots(): Promise<void> {
    return Promise.resolve()
  }

  preCommitSnapshots(): Promise<void> {
    return Promise.resolve()
  }

  async commitSnapshots(_: ProviderSession, volumes: readonly Volume[], held: HeldWrites): Promise<readonly Instant[]> {
    const beganMs = this.#clock.monotonicMs()
    const read = await Promise.all(volumes.map(async (volume) => ({ volume, bytes: await readFile(pathOf(volume)) })))
    if (!held.open) throw failure('VSS_BAD_STATE', { call: 'commitSnapshots', state: 'writes no longer held' })
    for (const copy of read) this.#copies.set(copy.volume.id, copy)
    const endedMs = this.#clock.monotonicMs()
    return [...new Set(volumes.map(({ component }) => component))].map((component) => ({ component, beganMs, endedMs }))
  }

  postCommitSnapshots(): Promise<void> {
    return Promise.resolve()
  }

  async preFinalCommitSnapshots(): Promise<readonly ShadowCopy[]> {
    return [...this.#copies].map(([id, { volume, bytes }]) => ({
      id,
      volume,
      provider: this.name,
      open: async () => bytesAsSource(bytes, volume.name),
    }))
  }

  postFinalCommitSnapshots(): Promise<void> {
    return Promise.resolve()
  }

  async abortSnapshots(): Promise<void> {
    this.#copies.clear()
  }

  async deleteSnapshots(): Promise<void> {
    this.#copies.clear()
  }
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

function pathOf({ properties }: Volume): string {
  return String(properties.path)
}

function aside(directory: string): string {
  return `${directory}.aside`
}

function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  )
}
