/**
 * Copies the image files of a snapshot set where they lie, by one of the two ways of copy-ways.ts. What is copied does
 * not change meanwhile: a VM is off, or stands still with its memory saved, and that is asked before and after. The VM may
 * run, and its owner may do with it what he likes, as soon as the copies exist: nothing has to be merged afterwards.
 */
import { dirname, join, relative } from 'node:path'
import { mapLimit, settleAll, withDeadline } from '../base/async.ts'
import type { UndoStep } from '../base/cleanup.ts'
import { type Clock, systemClock } from '../base/clock.ts'
import { describeError, type Failure, invariant } from '../base/failure.ts'
import type { BlockSource } from '../disk/block-device.ts'
import { failure } from '../errors.ts'
import type { DiskImage, Hypervisor } from '../vm/hypervisor.ts'
import type { Instant, Provider, ProviderSession, ShadowCopy, Volume } from '../vss/provider.ts'
import { type CopyWay, type LyingVolume, lyingVolume, markOf } from './copy-ways.ts'
import type { HostFileSystems } from './host-file-systems.ts'

/** Opens images of one VM for reading; disposal ends the reader. */
export interface OpenCopies extends AsyncDisposable {
  open(name: string): Promise<BlockSource>
}

export interface HostVolumeOptions {
  readonly fileSystems: HostFileSystems
  readonly hypervisor: Pick<Hypervisor, 'power'>
  readonly openImages: (images: readonly { name: string; image: DiskImage }[]) => Promise<OpenCopies>
  /** Reads the copy of a directory. Without it directories are not supported. */
  readonly openDirectory?: (path: string, volume: Volume) => Promise<BlockSource>
  /** The backup gives up, before a guest meets a full disk, when less than this is left beside a copy. */
  readonly minimumFreeBytes?: number
  readonly clock?: Clock
}

interface OwnCopy {
  readonly component: string
  readonly path: string
  readonly step: UndoStep
}

interface PreparedVolume {
  readonly volume: Volume
  readonly lying: LyingVolume
  readonly whole: string
  /** The place kept for a copy of `whole`; when volumes share an instant, the first one's serves them all. */
  own?: OwnCopy
  /** The copy of the volume, once it was made. */
  copy?: string
}

const spaceCheckMs = 1000
const commitPatienceMs = 120_000
const looksAtOnce = 16
const releasesAtOnce = 4

export class HostVolumeProvider implements Provider {
  readonly id: string
  readonly name: string
  readonly #way: CopyWay
  readonly #options: HostVolumeOptions
  readonly #clock: Clock
  #prepared: PreparedVolume[] = []
  #commits: Promise<unknown>[] = []
  #readers = new Map<string, Promise<OpenCopies>>()
  #spaceTimer: { cancel(): void } | undefined
  #watchesSpace = false

  constructor(way: CopyWay, options: HostVolumeOptions) {
    this.id = way.id
    this.name = way.name
    this.#way = way
    this.#options = options
    this.#clock = options.clock ?? systemClock
  }

  async supports(volume: Volume): Promise<number> {
    return (await this.#find(volume)) === undefined ? 0 : this.#way.specificity
  }

  async beginPrepareSnapshot(_session: ProviderSession, volume: Volume): Promise<void> {
    const found = await this.#find(volume)
    if (found === undefined) throw failure('VSS_VOLUME_NOT_SUPPORTED', { volume: `${volume.caption} ${volume.name}` })
    await this.#requireSpace(dirname(found.lying.path))
    this.#prepared.push({ volume, ...found })
  }

  /** Law 1: a record for each copy that a commit may make; which volumes share an instant is known only then. */
  async endPrepareSnapshots({ undo, snapshotSetId }: ProviderSession): Promise<void> {
    this.#prepared.sort((a, b) => a.volume.id.localeCompare(b.volume.id)) // they were prepared all at once
    const owns = new Map<string, OwnCopy[]>()
    for (const prepared of this.#prepared) {
      const { whole, volume } = prepared
      const known = owns.get(whole) ?? []
      let own = known.find(({ component }) => component === volume.component)
      if (own === undefined) {
        own = await this.#register(undo, this.#way.copyPath(whole, markOf(snapshotSetId, known.length)), volume)
        owns.set(whole, [...known, own])
      }
      prepared.own = own
    }
  }

  async #register(undo: ProviderSession['undo'], path: string, { component }: Volume): Promise<OwnCopy> {
    const { facts } = this.#options.fileSystems
    if ((await facts(path)) !== undefined)
      throw failure('VOLUME_COPY_FAILED', { path, reason: 'something of that name is in the way' })
    const directoryInode = (await facts(dirname(path)))?.ino ?? 0
    return { component, path, step: await undo.defer({ undo: this.#way.undo, path, directoryInode }) }
  }

  async preCommitSnapshots(): Promise<void> {
    // Nothing: everything was looked at and registered before Freeze.
  }

  async commitSnapshots(session: ProviderSession, volumes: readonly Volume[]): Promise<readonly Instant[]> {
    const mine = this.#prepared.filter(({ volume }) => volumes.includes(volume))
    const commit = this.#commit(session, mine)
    this.#commits.push(commit)
    return await commit
  }

  /** One copy of each whole, for all volumes of this instant that it has in it. */
  async #commit({ emit, signal }: ProviderSession, mine: readonly PreparedVolume[]): Promise<Instant[]> {
    const before = await this.#atRest(mine)
    const beganMs = this.#clock.monotonicMs()
    const made = await settleAll(new Set(mine.map(({ whole }) => whole)), (whole) => this.#copy(mine, whole, signal), 1)
    const endedMs = this.#clock.monotonicMs()
    const errors = made.flatMap(({ outcome }) => (outcome.ok ? [] : [outcome.error]))
    if (errors.length > 0) throw failure('VSS_PROVIDER_VETO', { reasons: errors.map(describeError) }, errors[0])
    const after = await this.#atRest(mine)
    const changed = mine.filter((_, index) => before[index] !== after[index])
    if (changed.length > 0)
      throw this.#disturbed(changed.map(({ volume }) => [volume, 'its image has changed meanwhile']))
    return [...Map.groupBy(mine, ({ volume }) => volume.component)].map(([component, of]) => {
      emit({
        event: 'Commit',
        vm: of[0]?.volume.caption ?? component,
        detail: `${of.map(({ volume }) => volume.name).join(', ')}: ${this.name}`,
      })
      return { component, beganMs, endedMs }
    })
  }

  async #copy(mine: readonly PreparedVolume[], whole: string, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const inIt = mine.filter((one) => one.whole === whole)
    const path = inIt[0]?.own?.path
    invariant(path !== undefined, 'endPrepareSnapshots comes before commitSnapshots')
    await this.#way.make(whole, path, signal)
    for (const one of inIt) one.copy = join(path, relative(whole, one.lying.path))
  }

  /** That no VM writes, and what its images are; two of these with the copy between them say that nothing has changed. */
  async #atRest(volumes: readonly PreparedVolume[]): Promise<string[]> {
    const disks = volumes.filter(({ lying }) => lying.format !== undefined)
    const vms = Map.groupBy(disks, ({ volume }) => String(volume.properties.vm))
    const powers = await settleAll(vms, async ([vm]) => this.#options.hypervisor.power(vm))
    const disturbed = powers.flatMap(({ item: [, [disk]], outcome }): [Volume, string][] => {
      if (disk === undefined) return []
      if (!outcome.ok) return [[disk.volume, describeError(outcome.error)]]
      const allowed = disk.volume.properties.power === 'off' ? ['off'] : ['off', 'paused']
      return allowed.includes(outcome.value) ? [] : [[disk.volume, `the VM is ${outcome.value}`]]
    })
    if (disturbed.length > 0) throw this.#disturbed(disturbed)
    return mapLimit(volumes, looksAtOnce, async ({ lying }) => {
      const facts = lying.format === undefined ? undefined : await this.#options.fileSystems.facts(lying.path)
      return facts === undefined ? '' : `${facts.ino} ${facts.size} ${facts.mtimeMs}`
    })
  }

  #disturbed(volumes: readonly (readonly [Volume, string])[]): Failure {
    const reasons = volumes.map(([{ caption }, why]) => `${caption}: it must not be used while it is copied: ${why}`)
    return failure('VSS_PROVIDER_VETO', { reasons })
  }

  async postCommitSnapshots(): Promise<void> {
    // Nothing: a copy is complete when its call has returned.
  }

  /** The copies are read-only from the beginning: what is at rest need not be recovered. */
  async preFinalCommitSnapshots(session: ProviderSession): Promise<readonly ShadowCopy[]> {
    this.#watchSpace(session)
    return this.#prepared.map((prepared) => {
      const { volume, lying, copy } = prepared
      invariant(copy !== undefined, 'every volume of a set is committed')
      return {
        id: `${session.snapshotSetId}/${volume.id}`,
        volume,
        provider: this.id,
        path: copy,
        open: async () => {
          if (lying.format !== undefined) return (await this.#readerOf(volume.component)).open(volume.name)
          invariant(this.#options.openDirectory !== undefined, 'directories are supported only with a reader')
          return this.#options.openDirectory(copy, volume)
        },
      }
    })
  }

  async postFinalCommitSnapshots(): Promise<void> {
    // Nobody could write to them.
  }

  /** Waits for a commit that is still on its way (law 8), then removes whatever it made. */
  async abortSnapshots(session: ProviderSession): Promise<void> {
    await this.deleteSnapshots(session)
  }

  async deleteSnapshots({ undo, emit }: ProviderSession): Promise<void> {
    this.#watchesSpace = false
    this.#spaceTimer?.cancel()
    const limit = { clock: this.#clock, limitMs: commitPatienceMs, what: 'a commit under way' }
    await withDeadline(Promise.allSettled(this.#commits), limit)
    await this.#closeReaders()
    const owns = new Map(this.#prepared.flatMap(({ own, volume }) => (own === undefined ? [] : [[own, volume]])))
    const released = await settleAll(
      owns,
      async ([own, volume]) => {
        await undo.run(own.step)
        emit({ event: 'Release', vm: volume.caption, detail: own.path })
      },
      releasesAtOnce,
    )
    const left = released.flatMap(({ outcome }) => (outcome.ok ? [] : [describeError(outcome.error)]))
    if (left.length > 0) {
      const done = new Set(released.flatMap(({ item: [own], outcome }) => (outcome.ok ? [own] : [])))
      this.#prepared = this.#prepared.filter(({ own }) => own !== undefined && !done.has(own))
      throw failure('CLEANUP_INCOMPLETE', { steps: left })
    }
    this.#prepared = []
    this.#commits = []
  }

  async #find(volume: Volume): Promise<Pick<PreparedVolume, 'lying' | 'whole'> | undefined> {
    const lying = await lyingVolume(volume, this.#options.fileSystems)
    if (lying === undefined) return undefined
    if (lying.format === undefined && this.#options.openDirectory === undefined) return undefined
    const whole = await this.#way.wholeOf(lying)
    return whole === undefined ? undefined : { lying, whole }
  }

  async #requireSpace(directory: string): Promise<void> {
    const neededBytes = this.#options.minimumFreeBytes ?? 64 * 1024 * 1024
    const freeBytes = await this.#options.fileSystems.freeBytes(directory)
    if (freeBytes < neededBytes) throw failure('VSS_INSUFFICIENT_STORAGE', { path: directory, freeBytes, neededBytes })
  }

  /** What a VM overwrites stays in the copy, so the file system fills up while the transfer runs, as with overlays. */
  #watchSpace(session: ProviderSession): void {
    const directories = new Set(this.#prepared.map(({ lying }) => dirname(lying.path)))
    const check = async () => {
      try {
        for (const directory of directories) await this.#requireSpace(directory)
        if (this.#watchesSpace) this.#spaceTimer = this.#clock.timer(spaceCheckMs, () => void check())
      } catch (error) {
        if (this.#watchesSpace) session.abandon(error instanceof Error ? error : new Error(String(error)))
      }
    }
    this.#watchesSpace = true
    this.#spaceTimer = this.#clock.timer(spaceCheckMs, () => void check())
  }

  #readerOf(component: string): Promise<OpenCopies> {
    const known = this.#readers.get(component)
    if (known !== undefined) return known
    const images = this.#prepared.flatMap(({ volume, lying: { format }, copy }) =>
      volume.component !== component || format === undefined || copy === undefined
        ? []
        : [{ name: volume.name, image: { format, storage: { file: copy } } }],
    )
    const reader = this.#options.openImages(images)
    this.#readers.set(component, reader)
    return reader
  }

  async #closeReaders(): Promise<void> {
    const readers = [...this.#readers.values()]
    this.#readers.clear()
    await Promise.all(readers.map(async (reader) => (await reader.catch(() => undefined))?.[Symbol.asyncDispose]()))
  }
}
