/**
 * The only file that knows every layer: builds the hypervisor, the writer, the provider and the environments of the
 * requester from settings.
 */
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { UndoHandlers } from './base/cleanup.ts'
import { systemClock } from './base/clock.ts'
import { makeDirectory } from './base/make-directory.ts'
import type { BlockSink } from './disk/block-device.ts'
import { domainXmlEditor } from './libvirt/configuration-editor.ts'
import { defaultUri } from './libvirt/connection.ts'
import { exportDisks } from './libvirt/disk-export.ts'
import { createImage, type ImageFormat } from './libvirt/disk-image.ts'
import { connectHypervisor } from './libvirt/libvirt-hypervisor.ts'
import { OverlayProvider } from './libvirt/overlay-provider.ts'
import { openRepository, type Repository } from './repository/repository.ts'
import type { BackupEnvironment } from './requester/backup.ts'
import { type JournalHeader, type Recovered, recoverInterrupted, recoverJournal } from './requester/journal.ts'
import type { RestoreEnvironment } from './requester/restore.ts'
import { journalDirectory, type SessionOptions, workDirectory } from './requester/session.ts'
import { startWatchdog } from './requester/watchdog.ts'
import type { Hypervisor } from './vm/hypervisor.ts'
import type { BackupPolicy } from './vm/method.ts'
import { VmRestore } from './vm/restore.ts'
import { VmRestorePlanner } from './vm/restore-planner.ts'
import { vmUndoHandlers } from './vm/undo.ts'
import { VmWriter } from './vm/vm-writer.ts'
import { defaultLimits, type SessionLimits } from './vss/vocabulary.ts'

export interface Settings {
  /** Address of libvirt; undefined for the system's, else the private one. */
  readonly connect?: string
  readonly stateDirectory: string
  readonly limits?: Partial<SessionLimits>
}

/** Connects to the hypervisor that the settings name. Disposal disconnects. */
export async function openHypervisor({ connect }: Pick<Settings, 'connect'>): Promise<Hypervisor> {
  return connectHypervisor(connect ?? (await defaultUri()))
}

/** Undo steps of every layer, for one hypervisor. */
export function undoHandlers(hypervisor: Hypervisor): UndoHandlers {
  return {
    ...vmUndoHandlers(hypervisor),
    'discard-point': ({ repository, point }) => discardPoint(String(repository), String(point)),
  }
}

async function discardPoint(directory: string, point: string): Promise<void> {
  await using repository = await openRepository(directory)
  await repository.discardUnfinished(point)
}

/** Replays what killed sessions left. `onlyJournal`: one of them, for its watchdog. */
export async function recover({ stateDirectory }: Settings, onlyJournal?: string): Promise<Recovered[]> {
  await using hypervisors = new Hypervisors()
  const options = {
    handlersFor: async ({ uri }: JournalHeader) => undoHandlers(await hypervisors.of(uri)),
    urgent: ['thaw-guest'],
  }
  if (onlyJournal === undefined) return await recoverInterrupted(journalDirectory(stateDirectory), options)
  const recovered = await recoverJournal(onlyJournal, options)
  return recovered === undefined ? [] : [recovered]
}

/** One connection for each address that journals name. */
class Hypervisors implements AsyncDisposable {
  readonly #open = new Map<string, Promise<Hypervisor>>()

  of(uri: string): Promise<Hypervisor> {
    const known = this.#open.get(uri) ?? connectHypervisor(uri)
    this.#open.set(uri, known)
    return known
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const connecting of this.#open.values()) {
      const hypervisor = await connecting.catch(() => undefined)
      await hypervisor?.[Symbol.asyncDispose]()
    }
  }
}

function sessionOptions(
  settings: Settings,
  hypervisor: Hypervisor,
  what: SessionOptions['what'],
  signal: AbortSignal,
): SessionOptions {
  const watchdog = fileURLToPath(new URL('./cli/watchdog-main.ts', import.meta.url))
  return {
    what,
    stateDirectory: settings.stateDirectory,
    uri: hypervisor.uri,
    handlers: undoHandlers(hypervisor),
    clock: systemClock,
    startWatchdog: (journal) => startWatchdog({ command: [process.execPath, watchdog, journal] }),
    signal,
  }
}

/** The VM writer of this host, for listings and plans. */
export function vmWriter(settings: Settings, hypervisor: Hypervisor, policy: BackupPolicy): VmWriter {
  return new VmWriter({ hypervisor, policy, workDirectory: workDirectory(settings.stateDirectory) })
}

export async function backupEnvironment(
  settings: Settings,
  hypervisor: Hypervisor,
  repository: Repository,
  policy: BackupPolicy,
  signal: AbortSignal,
): Promise<BackupEnvironment> {
  const overlayDirectory = join(settings.stateDirectory, 'overlays')
  const sockets = await socketDirectory(settings)
  await makeDirectory(overlayDirectory, 0o700)
  const openImages = (images: Parameters<typeof exportDisks>[0]) => exportDisks(images, { directory: sockets })
  return {
    writers: [vmWriter(settings, hypervisor, policy)],
    providers: [new OverlayProvider({ hypervisor, openImages, overlayDirectory })],
    limits: { ...defaultLimits, ...settings.limits },
    clock: systemClock,
    repository,
    session: sessionOptions(settings, hypervisor, 'backup', signal),
  }
}

export async function restoreEnvironment(
  settings: Settings,
  hypervisor: Hypervisor,
  repository: Repository,
  signal: AbortSignal,
): Promise<RestoreEnvironment> {
  const work = workDirectory(settings.stateDirectory)
  const sockets = await socketDirectory(settings)
  const restore = new VmRestore(hypervisor, domainXmlEditor)
  const policy: BackupPolicy = { method: 'auto', require: 'crash', instant: 'vm' }
  return {
    repository,
    writer: new VmWriter({ hypervisor, policy, workDirectory: work, restore }),
    planner: new VmRestorePlanner(hypervisor, restore, work),
    createImage: (path, format, sizeBytes) => createWritableImage(path, format as ImageFormat, sizeBytes, sockets),
    clock: systemClock,
    session: sessionOptions(settings, hypervisor, 'restore', signal),
  }
}

/** Creates an image and opens it through QEMU's NBD server; disposal ends the server, which writes back what it holds. */
async function createWritableImage(
  path: string,
  format: ImageFormat,
  sizeBytes: number,
  sockets: string,
): Promise<BlockSink> {
  await createImage(path, format, sizeBytes)
  const served = await exportDisks([{ name: path, image: { format, storage: { file: path } } }], {
    directory: sockets,
    writable: true,
  })
  try {
    const device = await served.open(path) // the name is what a failed write tells
    return {
      sizeBytes: device.sizeBytes,
      write: (offset, data) => device.write(offset, data),
      flush: () => device.flush(),
      [Symbol.asyncDispose]: () => served[Symbol.asyncDispose](),
    }
  } catch (error) {
    await served[Symbol.asyncDispose]()
    throw error
  }
}

/** Short, because the path of a socket is; closed to others, because whoever connects reads the disks. */
async function socketDirectory({ stateDirectory }: Settings): Promise<string> {
  const directory = join(stateDirectory, 's')
  await makeDirectory(directory, 0o700)
  return directory
}
