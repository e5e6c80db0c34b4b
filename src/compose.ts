/**
 * The only file that knows every layer: builds the hypervisor, the writer, the provider and the environments of the
 * requester from settings.
 */
import { randomInt } from 'node:crypto'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import type { UndoHandlers } from './base/cleanup.ts'
import { systemClock } from './base/clock.ts'
import { makeDirectory } from './base/make-directory.ts'
import { pacemaker } from './cluster/pacemaker.ts'
import type { BlockSink } from './disk/block-device.ts'
import { cloneHostFile, createHostFile } from './disk/host-file.ts'
import { CopyingProvider } from './files/copying-provider.ts'
import { openDirectory } from './files/directory-source.ts'
import { extractTree } from './files/extract-tree.ts'
import { FilesRestore } from './files/files-restore.ts'
import { FilesWriter, filesWriterId } from './files/files-writer.ts'
import type { HostDirectory } from './files/host-directory.ts'
import { filesThawSteps, filesUndoHandlers } from './files/undo.ts'
import { reflinkWay, subvolumeWay, volumeUndoHandlers } from './host-volumes/copy-ways.ts'
import { hostFileSystems } from './host-volumes/host-file-systems.ts'
import { HostVolumeProvider } from './host-volumes/host-volume-provider.ts'
import { BackupJobProvider } from './libvirt/backup-job-provider.ts'
import { backupJobUndoHandlers } from './libvirt/backup-job-undo.ts'
import { domainXmlEditor } from './libvirt/configuration-editor.ts'
import { defaultUri } from './libvirt/connection.ts'
import { type ExportedDisk, exportDisks } from './libvirt/disk-export.ts'
import { createImage, type ImageFormat } from './libvirt/disk-image.ts'
import { startHelperVm } from './libvirt/helper-vm.ts'
import { helperVmImages } from './libvirt/helper-vm-images.ts'
import { connectHypervisor } from './libvirt/libvirt-hypervisor.ts'
import { openImagesAtRest } from './libvirt/open-images.ts'
import { makeOverlay } from './libvirt/overlay-file.ts'
import { OverlayProvider } from './libvirt/overlay-provider.ts'
import { createRepositoryOverlay } from './libvirt/repository-overlay.ts'
import { discardUnfinished, type Repository } from './repository/repository.ts'
import type { BackupEnvironment } from './requester/backup.ts'
import type { CheckEnvironment } from './requester/check.ts'
import { type JournalHeader, type Recovered, recoverInterrupted, recoverJournal } from './requester/journal.ts'
import type { RestoreEnvironment } from './requester/restore.ts'
import { journalDirectory, type SessionOptions, workDirectory } from './requester/session.ts'
import { startWatchdog } from './requester/watchdog.ts'
import { takeWatchdogProcess } from './requester/watchdog-process.ts'
import type { RecoveryWay } from './vm/auto-recovery.ts'
import { BootCheck } from './vm/boot-check.ts'
import type { VmCheckPlan } from './vm/check-plan.ts'
import { clusteredHypervisor, withoutCluster } from './vm/clustered-hypervisor.ts'
import type { DiskPulls, Hypervisor } from './vm/hypervisor.ts'
import { type BackupPolicy, defaultPolicy } from './vm/method.ts'
import { openAutoRecovery, type RecoveryTools } from './vm/recovery-ways.ts'
import { VmRestore } from './vm/restore.ts'
import { newMac, VmRestorePlanner } from './vm/restore-planner.ts'
import { vmThawSteps, vmUndoHandlers } from './vm/undo.ts'
import { VmWriter } from './vm/vm-writer.ts'
import { restoreFsid } from './volumes/btrfs-fsid.ts'
import { revertByReading } from './volumes/revert-by-reading.ts'
import type { Provider } from './vss/provider.ts'
import { planBy } from './vss/restore-plan.ts'
import {
  defaultLimits,
  hyperVWriterId,
  type SessionLimits,
  snapshotAttributes,
  snapshotContexts,
} from './vss/vocabulary.ts'
import type { Writer } from './vss/writer.ts'

export interface Settings {
  /** Address of libvirt; undefined for the system's, else the private one. */
  readonly connect?: string
  readonly stateDirectory: string
  /** Where scratch files of backup jobs go; undefined for a directory in the state directory. */
  readonly scratchDirectory?: string
  readonly limits?: Partial<SessionLimits>
  /** Directories of this host that can be backed up. */
  readonly files?: readonly HostDirectory[]
  /** The largest tree that is copied while writes are held. */
  readonly filesCopyLimitBytes?: number
}

/** Connects to the hypervisor that the settings name. Disposal disconnects. */
export async function openHypervisor({ connect }: Pick<Settings, 'connect'>): Promise<Hypervisor> {
  return clusteredHypervisor(await connectHypervisor(connect ?? (await defaultUri())), cluster)
}

/** The failover cluster of this host, if it is in one. */
const cluster = pacemaker()

/** The undo steps that can not wait for others, by name: something stands still until they are done. */
export const thawSteps: readonly string[] = [...vmThawSteps, ...filesThawSteps]

/** Undo steps of every layer, for one hypervisor. */
export function undoHandlers(hypervisor: Hypervisor): UndoHandlers {
  return {
    ...vmUndoHandlers(withoutCluster(hypervisor), systemClock, cluster),
    ...backupJobUndoHandlers(hypervisor),
    ...filesUndoHandlers,
    ...volumeUndoHandlers(hostFileSystems()),
    'discard-point': ({ repository, point }) => discardPoint(String(repository), String(point)),
  }
}

async function discardPoint(directory: string, point: string): Promise<void> {
  await discardUnfinished(directory, point)
}

/** Replays what killed sessions left. `onlyJournal`: one of them, for its watchdog. */
export async function recover({ stateDirectory }: Settings, onlyJournal?: string): Promise<Recovered[]> {
  await using hypervisors = new Hypervisors()
  const options = {
    handlersFor: async ({ uri }: JournalHeader) => undoHandlers(await hypervisors.of(uri)),
    urgent: thawSteps,
  }
  if (onlyJournal === undefined) return await recoverInterrupted(journalDirectory(stateDirectory), options)
  const recovered = await recoverJournal(onlyJournal, { ...options, ownerIsGone: true })
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
  return {
    what,
    stateDirectory: settings.stateDirectory,
    uri: hypervisor.uri,
    handlers: undoHandlers(hypervisor),
    clock: systemClock,
    startWatchdog: (journal) => startWatchdog({ process: takeWatchdogProcess(), journal }),
    signal,
  }
}

/** All writers of this host, for backups, listings and plans. */
export function hostWriters(
  settings: Settings,
  hypervisor: Hypervisor,
  policy: BackupPolicy,
  recovery?: RecoveryTools,
): Writer[] {
  const { files = [] } = settings
  const { instant } = policy
  const filesWriters = files.length === 0 ? [] : [new FilesWriter({ directories: files, instant })]
  return [vmWriter(settings, hypervisor, policy, recovery), ...filesWriters]
}

/** The VM writer of this host, for listings of VMs. */
export function vmWriter(
  { stateDirectory, limits }: Settings,
  hypervisor: Hypervisor,
  policy: BackupPolicy,
  recovery?: RecoveryTools,
): VmWriter {
  return new VmWriter({
    hypervisor,
    cluster,
    policy,
    workDirectory: workDirectory(stateDirectory),
    limits: { ...defaultLimits, ...limits },
    // What the guests do meanwhile they do on the same processors, and their applications wait for some of it.
    atOnce: Math.max(2, Math.min(8, availableParallelism())),
    ...(recovery === undefined ? {} : { openAutoRecovery: () => openAutoRecovery(recovery), requireRecovery }),
  })
}

/** The helper VM may have to be built first, which is no work for the time in which VMs are on overlays. */
async function requireRecovery(way: RecoveryWay): Promise<void> {
  if (way === 'on-host') await helperVmImages()
}

/** What rolling copies back takes, in each of its ways. */
export async function recoveryTools(settings: Settings, hypervisor: Hypervisor): Promise<RecoveryTools> {
  const directory = await socketDirectory(settings)
  return {
    hypervisor,
    clock: systemClock,
    openWritable: (images) => exportDisks(images, { directory, writable: true }),
    revertByReading,
    restoreFsid,
    startHelperVm: async () => {
      const helper = await startHelperVm({ images: await helperVmImages() })
      return {
        revert: async (vm, set, disks, signal) => void (await helper.revert(set, disks, { vm, signal })),
        [Symbol.asyncDispose]: () => helper[Symbol.asyncDispose](),
      }
    },
  }
}

export async function backupEnvironment(
  settings: Settings,
  hypervisor: Hypervisor,
  repository: Repository,
  policy: BackupPolicy,
  signal: AbortSignal,
): Promise<BackupEnvironment> {
  return {
    writers: hostWriters(settings, hypervisor, policy, await recoveryTools(settings, hypervisor)),
    providers: await hostProviders(settings, hypervisor),
    instantsAtOnce: Math.max(1, Math.floor(availableParallelism() / 2)),
    limits: { ...defaultLimits, ...settings.limits },
    context: policy.autoRecovery
      ? snapshotContexts.VSS_CTX_BACKUP
      : snapshotAttributes.VSS_VOLSNAP_ATTR_NO_AUTORECOVERY,
    clock: systemClock,
    repository,
    session: sessionOptions(settings, hypervisor, 'backup', signal),
  }
}

/** Whoever can make copies on this host, for one session or plan. */
export async function hostProviders(settings: Settings, hypervisor: Hypervisor): Promise<Provider[]> {
  const { stateDirectory } = settings
  const inState = (name: string) => join(stateDirectory, name)
  const { scratchDirectory = inState('scratch') } = settings
  const [overlayDirectory, jobDirectory] = [inState('overlays'), inState('j')]
  // QEMU itself, which may run as another user, goes through these to its own scratch files and its socket; what is
  // private in the state directory has modes of its own.
  const sockets = await socketDirectory(settings)
  for (const directory of [scratchDirectory, jobDirectory]) await makeDirectory(directory, 0o711)
  await makeDirectory(overlayDirectory, 0o700)
  const openImages = (images: readonly ExportedDisk[]) => openImagesAtRest(images, { directory: sockets })
  const fileSystems = hostFileSystems()
  const lying = { fileSystems, hypervisor, openImages, openDirectory }
  return [
    new HostVolumeProvider(subvolumeWay(fileSystems), lying),
    new HostVolumeProvider(reflinkWay(fileSystems), lying),
    new BackupJobProvider({ hypervisor, scratchDirectory, socketDirectory: jobDirectory }),
    new OverlayProvider({ hypervisor, openImages, makeLayer: makeOverlay, overlayDirectory }),
    copyingProvider(settings),
  ]
}

/** For directories on file systems that can make no copy by themselves. */
function copyingProvider({ stateDirectory, filesCopyLimitBytes: limitBytes }: Settings): CopyingProvider {
  return new CopyingProvider({
    workDirectory: workDirectory(stateDirectory),
    ...(limitBytes === undefined ? {} : { limitBytes }),
  })
}

export async function restoreEnvironment(
  settings: Settings,
  hypervisor: Hypervisor,
  repository: Repository,
  signal: AbortSignal,
): Promise<RestoreEnvironment> {
  const work = workDirectory(settings.stateDirectory)
  const sockets = await socketDirectory(settings)
  const restore = new VmRestore(hypervisor, domainXmlEditor, cluster)
  const filesRestore = new FilesRestore()
  return {
    repository,
    writers: [
      new VmWriter({ hypervisor, policy: defaultPolicy, workDirectory: work, restore }),
      new FilesWriter({ directories: [], instant: 'vm', restore: filesRestore }),
    ],
    planner: planBy({
      [hyperVWriterId]: new VmRestorePlanner(hypervisor, restore, work, cluster),
      [filesWriterId]: filesRestore,
    }),
    extractTree,
    cloneImage: cloneHostFile,
    createImage: (path, format, sizeBytes) => createWritableImage(path, format as ImageFormat, sizeBytes, sockets),
    clock: systemClock,
    session: sessionOptions(settings, hypervisor, 'restore', signal),
  }
}

/** Boot checks of recovery points of that repository. */
export async function checkEnvironment(
  settings: Settings,
  hypervisor: Hypervisor & Partial<Pick<DiskPulls, 'vmOwner'>>,
  repository: Repository,
  signal: AbortSignal,
): Promise<CheckEnvironment<VmCheckPlan>> {
  const vmOwner = await hypervisor.vmOwner?.()
  await makeDirectory(settings.stateDirectory, 0o711)
  return {
    repository,
    checker: new BootCheck({
      hypervisor,
      editor: domainXmlEditor,
      clock: systemClock,
      identities: { newUuid: () => crypto.randomUUID(), newMac, choose: (below) => randomInt(below) },
      createOverlay: createRepositoryOverlay,
      writerId: hyperVWriterId,
    }),
    directory: join(settings.stateDirectory, 'checks'),
    ...(vmOwner === undefined ? {} : { vmOwner }),
    clock: systemClock,
    session: sessionOptions(settings, hypervisor, 'check', signal),
  }
}

/**
 * Creates an image and opens it: a raw one as the file that it is, others through QEMU's NBD server; disposal ends the
 * server, which writes back what it holds.
 */
export async function createWritableImage(
  path: string,
  format: ImageFormat,
  sizeBytes: number,
  sockets: string,
): Promise<BlockSink> {
  if (format === 'raw') return createHostFile(path, sizeBytes) // half the processor time of the way through a server
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
export async function socketDirectory({ stateDirectory }: Settings): Promise<string> {
  const directory = join(stateDirectory, 's')
  await makeDirectory(stateDirectory, 0o711)
  await makeDirectory(directory, 0o700)
  return directory
}
