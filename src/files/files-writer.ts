/**
 * The Files writer: directories of this host, brought to rest by a hook each (docs/host-files.md). One component per
 * directory, named as the configuration names it. It knows nothing of VMs, nor of how a copy is made.
 */
import { lstat } from 'node:fs/promises'
import { settleAll } from '../base/async.ts'
import type { JsonObject, UndoStep } from '../base/cleanup.ts'
import { type Clock, systemClock } from '../base/clock.ts'
import { describeError, Failure } from '../base/failure.ts'
import { failure } from '../errors.ts'
import type { ComponentMetadata, ComponentRef, WriterMetadata } from '../vss/components.ts'
import { failureCodeOf } from '../vss/failure-code.ts'
import type { Veto } from '../vss/vocabulary.ts'
import type { ComponentOutcome, RestoredComponent, RestoreSession, Writer, WriterSession } from '../vss/writer.ts'
import type { FilesRestore } from './files-restore.ts'
import { hookObstacle, runHook } from './hook.ts'
import type { HostDirectory } from './host-directory.ts'

/** Ours, made once for all hosts. */
export const filesWriterId = '6f0d5c1a-0e52-4b6f-9d0e-3b5d3c0d7a41'

/** The only volume of a component; its stream in a recovery point is `NAME/disks/files`. */
export const volumeName = 'files'

export interface FilesWriterOptions {
  readonly directories: readonly HostDirectory[]
  readonly instant: 'vm' | 'set'
  readonly clock?: Clock
  /** Only a restore session has one. */
  readonly restore?: FilesRestore
}

/** A directory that takes part in a set. */
interface Held {
  readonly directory: HostDirectory
  readonly thaw: UndoStep
  /** The hook's freeze, from its start; it has settled before any thaw begins. */
  freezing?: Promise<void>
  beganMs: number
  thawed: boolean
}

export class FilesWriter implements Writer {
  readonly id = filesWriterId
  readonly instanceId: string = crypto.randomUUID()
  readonly name = 'Umbra Files Writer'
  readonly #options: FilesWriterOptions
  readonly #clock: Clock
  readonly #held = new Map<string, Held>()
  readonly #freezeMs = new Map<string, number>()

  constructor(options: FilesWriterOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
  }

  async onIdentify(): Promise<WriterMetadata> {
    const components = await Promise.all(this.#options.directories.map((directory) => this.#describe(directory)))
    return { writerId: this.id, instanceId: this.instanceId, name: this.name, components }
  }

  /** Looks again: what was there at Identify may have gone. */
  onPrepareBackup(session: WriterSession): Promise<readonly Veto[]> {
    return this.#forEach(session, async ({ name }) => {
      const obstacles = await obstaclesOf(this.#directory(name))
      if (obstacles.length > 0) throw new Failure('FILES_NOT_COPIED', obstacles.join('; '))
    })
  }

  /** Law 1: what a Freeze may leave is registered before it. */
  onPrepareSnapshot(session: WriterSession): Promise<readonly Veto[]> {
    return this.#forEach(session, async ({ name }) => {
      const directory = this.#directory(name)
      const { hook } = directory
      const thaw = await session.undo.defer({ undo: 'thaw-files', name, directory: directory.directory, hook })
      this.#held.set(name, { directory, thaw, beganMs: 0, thawed: true })
    })
  }

  onFreeze(session: WriterSession): Promise<readonly Veto[]> {
    return this.#forEach(session, async ({ name }) => {
      const held = this.#held.get(name)
      if (held === undefined) return
      held.beganMs = this.#clock.monotonicMs()
      held.thawed = false
      held.freezing = runHook('freeze', held.directory, session.signal)
      await held.freezing
    })
  }

  onThaw(session: WriterSession): Promise<readonly Veto[]> {
    return this.#forEach(session, ({ name }) => this.#thaw(name, session))
  }

  onPostSnapshot(): Promise<readonly Veto[]> {
    return Promise.resolve([])
  }

  async outcomes({ components }: WriterSession): Promise<readonly ComponentOutcome[]> {
    return components.map((component) => {
      const { name } = component
      const freezeMs = Math.round((this.#freezeMs.get(name) ?? 0) * 10) / 10
      const reasons = ['its hook held the application at rest over the instant']
      return { component, metadata: { ...planOf(this.#directory(name)), reasons, freezeMs }, files: [] }
    })
  }

  onBackupComplete(): Promise<readonly Veto[]> {
    return Promise.resolve([])
  }

  async onBackupShutdown(session: WriterSession): Promise<void> {
    await this.onAbort(session)
    this.#held.clear()
    this.#freezeMs.clear()
  }

  async onAbort(session: WriterSession): Promise<void> {
    const vetoes = await this.#forEach(session, ({ name }) => this.#thaw(name, session))
    if (vetoes.length > 0) throw new Error(vetoes.map(({ component, reason }) => `${component}: ${reason}`).join('; '))
  }

  onPreRestore(session: RestoreSession): Promise<readonly Veto[]> {
    return this.#forEach(session, (ref) => this.#restore().preRestore(ref, session))
  }

  onPostRestore(session: RestoreSession, restored: readonly RestoredComponent[]): Promise<readonly Veto[]> {
    return this.#forEach(session, async (ref) => {
      const status = restored.find(({ component }) => component.name === ref.name)?.status ?? 'undefined'
      await this.#restore().postRestore(ref, status, session)
    })
  }

  /** A freeze that was cut off has ended when this goes on: a thaw never overtakes it. A failed thaw stays registered. */
  async #thaw(name: string, { undo }: WriterSession): Promise<void> {
    const held = this.#held.get(name)
    if (held === undefined) return
    await held.freezing?.catch(() => undefined) // Freeze itself has told
    if (!held.thawed) {
      await runHook('thaw', held.directory)
      this.#freezeMs.set(name, this.#clock.monotonicMs() - held.beganMs)
      held.thawed = true
    }
    undo.forget(held.thaw)
  }

  async #describe(directory: HostDirectory): Promise<ComponentMetadata> {
    const { name } = directory
    const { exclude = [] } = directory
    const caption = `Files\\${name}`
    return {
      writerId: this.id,
      type: 'filegroup',
      logicalPath: '',
      name,
      caption,
      label: name,
      selectable: true,
      selectableForRestore: true,
      notifyOnBackupComplete: false,
      flags: 0,
      files: [{ path: `${directory.directory}/`, filespec: '*', recursive: true }],
      volumes: [
        {
          id: `${name}/${volumeName}`,
          component: name,
          caption: name,
          name: volumeName,
          properties: { kind: 'host-directory', path: directory.directory, exclude },
        },
      ],
      instant: this.#options.instant === 'set' ? 'set' : name,
      plan: planOf(directory),
      obstacles: await obstaclesOf(directory),
    }
  }

  #directory(name: string): HostDirectory {
    const found = this.#options.directories.find((one) => one.name === name)
    if (found === undefined) throw failure('FILES_NOT_COPIED', { path: name, reason: 'it is not configured' })
    return found
  }

  #restore(): FilesRestore {
    if (this.#options.restore === undefined) throw new Error('bug: this session was not opened for a restore')
    return this.#options.restore
  }

  /** Law 10: every directory is asked, every no is gathered. */
  async #forEach(
    { components }: { components: readonly ComponentRef[] },
    work: (ref: ComponentRef) => Promise<void>,
  ): Promise<Veto[]> {
    const settled = await settleAll(components, work)
    return settled.flatMap(({ item, outcome }) =>
      outcome.ok
        ? []
        : [
            {
              writer: this.name,
              component: item.name,
              code: failureCodeOf(outcome.error),
              reason: describeError(outcome.error),
            },
          ],
    )
  }
}

async function obstaclesOf({ directory, hook }: HostDirectory): Promise<string[]> {
  const stats = await lstat(directory).catch(() => undefined)
  const there =
    stats === undefined
      ? `there is no directory ${directory}`
      : stats.isDirectory()
        ? undefined
        : `${directory} is not a directory: name the directory itself`
  return [there, await hookObstacle(hook)].filter((one) => one !== undefined)
}

/** In the words of the VMs' plans, which the listings read. */
function planOf({ name, directory, hook, exclude = [] }: HostDirectory): JsonObject {
  return {
    kind: 'host-directory',
    name,
    directory,
    method: 'hook',
    consistency: 'application',
    because: `${hook} brings the application to rest`,
    disks: [{ target: volumeName, location: directory }],
    excluded: [
      ...exclude.map((target) => ({ target, reason: 'excluded by the configuration' })),
      { target: 'extended attributes', reason: 'access control lists and the like are not kept' },
    ],
  }
}
