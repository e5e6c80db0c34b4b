/**
 * The hypervisor's own provider: a qcow2 overlay on every disk of a VM in one transaction; what lies beneath is the shadow
 * copy, read through QEMU, until the overlay is merged back. A copy that is to be recovered gets a layer of its own above
 * that, which its writer may write until PostSnapshot has ended; the VM never sees it. Everything slow (paths, space, undo records) happens before
 * Freeze; the commit is one call per VM. Source: libvirt, "Snapshot XML format" and "Live full disk backup".
 */
import { existsSync } from 'node:fs'
import { statfs } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { mapLimit, settleAll, withDeadline } from '../base/async.ts'
import type { Json, JsonObject, UndoStep } from '../base/cleanup.ts'
import { type Clock, systemClock } from '../base/clock.ts'
import { describeError } from '../base/failure.ts'
import type { BlockSource } from '../disk/block-device.ts'
import { failure } from '../errors.ts'
import type { DiskImage, Hypervisor, OverlayInPlace, OverlayPlan } from '../vm/hypervisor.ts'
import type { Instant, Provider, ProviderSession, ShadowCopy, Volume } from '../vss/provider.ts'
import { snapshotAttributes } from '../vss/vocabulary.ts'
import type { WritableCopies } from '../vss/windows.ts'

/** Opens images of one VM for reading; disposal ends the reader, without which an overlay can not be merged. */
export interface OpenImages extends AsyncDisposable {
  open(name: string): Promise<BlockSource>
}

export interface OverlayProviderOptions {
  readonly hypervisor: Hypervisor
  /** Makes an empty qcow2 layer above an image that is in use. */
  readonly makeLayer: (path: string, base: DiskImage, sizeBytes: number | undefined) => Promise<void>
  readonly openImages: (images: readonly { name: string; image: DiskImage }[]) => Promise<OpenImages>
  /** Where overlays of disks go that are not files. */
  readonly overlayDirectory: string
  /** The backup gives up, before a guest meets a full disk, when less than this is left beside an overlay. */
  readonly minimumFreeBytes?: number
  readonly clock?: Clock
}

interface PreparedDisk {
  readonly volume: Volume
  readonly vm: string
  readonly overlay: OverlayInPlace
  readonly autoRecover: boolean
  step?: UndoStep
  /** Where auto-recovery writes. */
  layer?: { readonly image: DiskImage; readonly step: UndoStep }
}

const spaceCheckMs = 1000
const preparedAtOnce = 8
const mergedAtOnce = 8

export class OverlayProvider implements Provider {
  readonly id = 'a7e2c0de-51f0-4d7b-9c55-2f6f1a0b7e01'
  readonly name = 'Umbra Overlay Provider'
  readonly #options: OverlayProviderOptions
  readonly #clock: Clock
  #disks: PreparedDisk[] = []
  #commits: Promise<unknown>[] = []
  #readers = new Map<string, Promise<OpenImages>>()
  #spaceTimer: { cancel(): void } | undefined
  #watchesSpace = false

  constructor(options: OverlayProviderOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
  }

  supports({ properties }: Volume): number {
    if (properties.noOverlay === true) return 0
    return properties.kind === 'vm-disk' && properties.image !== undefined ? 10 : 0
  }

  async beginPrepareSnapshot(session: ProviderSession, volume: Volume, attributes: number): Promise<void> {
    const image = volume.properties.image as unknown as DiskImage
    const overlay = this.#overlayPath(session.snapshotSetId, volume, image)
    if (existsSync(overlay))
      throw failure('MERGE_REFUSED', { vm: volume.caption, overlay, reason: 'a file of that name is in the way' })
    await this.#requireSpace(dirname(overlay))
    const vm = String(volume.properties.vm)
    const autoRecover = (attributes & snapshotAttributes.VSS_VOLSNAP_ATTR_AUTORECOVER) !== 0
    this.#disks.push({ volume, vm, overlay: { target: volume.name, overlay, base: image }, autoRecover })
  }

  async endPrepareSnapshots(session: ProviderSession): Promise<void> {
    this.#disks.sort((a, b) => a.volume.id.localeCompare(b.volume.id)) // they were prepared all at once
    for (const disk of this.#disks) {
      const { target, overlay, base } = disk.overlay
      const record = {
        undo: 'merge-overlay',
        vm: disk.vm,
        name: disk.volume.caption,
        target,
        overlay,
        base: base as unknown as Json,
      }
      disk.step = await session.undo.defer(record)
    }
    const vms = [...new Set(this.#disks.map(({ vm }) => vm))]
    await mapLimit(vms, preparedAtOnce, (vm) =>
      this.#options.hypervisor.prepareOverlays(vm, this.#plansOf(vm, this.#disks)),
    )
  }

  async preCommitSnapshots(): Promise<void> {
    // Nothing: the overlays were planned and registered before Freeze.
  }

  async commitSnapshots(session: ProviderSession, volumes: readonly Volume[]): Promise<readonly Instant[]> {
    const disks = this.#disks.filter(({ volume }) => volumes.includes(volume))
    const vms = [...new Set(disks.map(({ vm }) => vm))]
    const commits = settleAll(vms, async (vm) => {
      const mine = disks.filter((disk) => disk.vm === vm)
      const plans = this.#plansOf(vm, disks)
      const beganMs = this.#clock.monotonicMs()
      await this.#options.hypervisor.createOverlays(vm, plans)
      const endedMs = this.#clock.monotonicMs()
      session.emit({
        event: 'Commit',
        vm: mine[0]?.volume.caption ?? vm,
        detail: mine.map(({ volume }) => volume.name).join(', '),
      })
      return { component: vm, beganMs, endedMs }
    })
    this.#commits.push(commits)
    const settled = await commits
    const errors = settled.flatMap(({ outcome }) => (outcome.ok ? [] : [outcome.error]))
    if (errors.length > 0) throw failure('VSS_PROVIDER_VETO', { reasons: errors.map(describeError) }, errors[0])
    return settled.flatMap(({ outcome }) => (outcome.ok ? [outcome.value] : []))
  }

  async postCommitSnapshots(): Promise<void> {
    // Nothing: the transaction left nothing to finish.
  }

  async preFinalCommitSnapshots(session: ProviderSession): Promise<readonly ShadowCopy[]> {
    this.#watchSpace(session)
    const recovered = this.#disks.filter(({ autoRecover }) => autoRecover)
    await mapLimit(recovered, preparedAtOnce, (disk) => this.#putLayerOn(session, disk))
    return this.#disks.map((disk) => this.#copyOf(session, disk))
  }

  async postFinalCommitSnapshots(): Promise<void> {
    // From here on the copies are only ever opened for reading, layers included: `writableImage` sees its window closed.
  }

  /** Law 1, and newer than the step that merges what lies beneath: undone in the right order. */
  async #putLayerOn({ undo }: ProviderSession, disk: PreparedDisk): Promise<void> {
    const { overlay, base } = disk.overlay
    const path = `${overlay}.recovered`
    const step = await undo.defer({ undo: 'remove-file', path })
    disk.layer = { image: { format: 'qcow2', storage: { file: path } }, step }
    const { sizeBytes } = disk.volume.properties
    await this.#options.makeLayer(path, base, typeof sizeBytes === 'number' ? sizeBytes : undefined)
  }

  #copyOf({ snapshotSetId }: ProviderSession, { volume, vm, layer }: PreparedDisk): ShadowCopy {
    const writableImage = (window: WritableCopies): JsonObject => {
      if (layer === undefined || !window.open)
        throw failure('VSS_BAD_STATE', {
          call: `writing to the copy of ${volume.caption} ${volume.name}`,
          state: 'read-only',
        })
      return layer.image as unknown as JsonObject
    }
    return {
      id: `${snapshotSetId}/${volume.id}`,
      volume,
      provider: this.id,
      open: async () => (await this.#readerOf(vm)).open(volume.name),
      ...(layer === undefined ? {} : { writableImage }),
    }
  }

  /** Waits for a commit that is still on its way (law 8), then merges whatever it made. */
  async abortSnapshots(session: ProviderSession): Promise<void> {
    await this.deleteSnapshots(session)
  }

  async deleteSnapshots(session: ProviderSession): Promise<void> {
    this.#watchesSpace = false
    this.#spaceTimer?.cancel()
    await withDeadline(Promise.allSettled(this.#commits), {
      clock: this.#clock,
      limitMs: 60_000,
      what: 'a commit under way',
    })
    await this.#closeReaders()
    const vms = [...new Set(this.#disks.map(({ vm }) => vm))]
    const errors = (await mapLimit(vms, mergedAtOnce, (vm) => this.#merge(session, vm))).flat()
    if (errors.length > 0) throw failure('CLEANUP_INCOMPLETE', { steps: errors })
    this.#disks = []
  }

  /** Merges the disks of a VM one after the other, so that each has its own time; answers what could not be merged. */
  async #merge({ undo, emit }: ProviderSession, vm: string): Promise<string[]> {
    const errors: string[] = []
    for (const disk of this.#disks.filter((one) => one.vm === vm)) {
      if (disk.step === undefined) continue
      try {
        if (disk.layer !== undefined) await undo.run(disk.layer.step)
        await undo.run(disk.step)
        delete disk.step
        emit({ event: 'Merge', vm: disk.volume.caption, detail: disk.volume.name })
      } catch (error) {
        errors.push(describeError(error))
      }
    }
    return errors
  }

  #plansOf(vm: string, disks: readonly PreparedDisk[]): OverlayPlan[] {
    return disks.filter((disk) => disk.vm === vm).map(({ overlay: { target, overlay } }) => ({ target, overlay }))
  }

  /** Beside the disk, where there is room for what the disk may become; elsewhere for disks that are not files. */
  #overlayPath(setId: string, volume: Volume, image: DiskImage): string {
    const suffix = `umbra-${setId.slice(0, 8)}`
    if ('file' in image.storage) return `${image.storage.file}.${suffix}`
    return join(this.#options.overlayDirectory, `${volume.id.replaceAll('/', '-')}.${suffix}`)
  }

  async #requireSpace(directory: string): Promise<void> {
    const neededBytes = this.#options.minimumFreeBytes ?? 64 * 1024 * 1024
    const { bavail, bsize } = await statfs(directory)
    const freeBytes = bavail * bsize
    if (freeBytes < neededBytes) throw failure('VSS_INSUFFICIENT_STORAGE', { path: directory, freeBytes, neededBytes })
  }

  /** Overlays grow while the transfer runs. A guest must never meet a full disk because it is being backed up. */
  #watchSpace(session: ProviderSession): void {
    const directories = new Set(this.#disks.map(({ overlay }) => dirname(overlay.overlay)))
    const check = async () => {
      try {
        for (const directory of directories) await this.#requireSpace(directory)
        if (!this.#watchesSpace) return
        this.#spaceTimer = this.#clock.timer(spaceCheckMs, () => void check())
      } catch (error) {
        if (this.#watchesSpace) session.abandon(error instanceof Error ? error : new Error(String(error)))
      }
    }
    this.#watchesSpace = true
    this.#spaceTimer = this.#clock.timer(spaceCheckMs, () => void check())
  }

  #readerOf(vm: string): Promise<OpenImages> {
    let reader = this.#readers.get(vm)
    if (reader === undefined) {
      const images = this.#disks
        .filter((disk) => disk.vm === vm)
        .map(({ volume, overlay, layer }) => ({ name: volume.name, image: layer?.image ?? overlay.base }))
      reader = this.#options.openImages(images)
      this.#readers.set(vm, reader)
    }
    return reader
  }

  async #closeReaders(): Promise<void> {
    const readers = [...this.#readers.values()]
    this.#readers.clear()
    await Promise.all(readers.map(async (reader) => (await reader)[Symbol.asyncDispose]()))
  }
}
