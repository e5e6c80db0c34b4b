/**
 * Takes an overlay off a disk (API reference of libvirt: virDomainBlockCommit, virDomainBlockJobAbort; QEMU's "Live
 * Block Device Operations", active commit). Only ever one level: without SHALLOW libvirt would commit down to the
 * bottom of the chain, into a template that other VMs use.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { describeError, invariant } from '../base/failure.ts'
import { failure } from '../errors.ts'
import type { OverlayInPlace } from '../vm/hypervisor.ts'
import { commitImage } from './disk-image.ts'
import type { DomainCalls } from './domain-calls.ts'
import { dropTopImage, forgetChain } from './domain-edit.ts'
import { readDomain } from './domain-xml.ts'
import { isFailure } from './libvirt-errors.ts'
import { type DiskPlace, isMarkVoid, type MergeSituation, type MergeStep, nextMergeStep } from './merge-plan.ts'
import {
  backingName,
  deleteOverlay,
  forgetMark,
  headerBacking,
  isMarkedMerged,
  markMerged,
  overlayUse,
  sameStorage,
} from './overlay-file.ts'
import { blockCommitFlags, blockJobAbortFlags, domainStates, xmlFlags } from './protocol.ts'

export interface MergeLimits {
  /** A commit that copies nothing for so long is given up. There is no limit while it goes on. */
  readonly stallMs: number
  /** How long another reader of the base is waited for. */
  readonly lockPatienceMs: number
}

const usualLimits: MergeLimits = { stallMs: 60_000, lockPatienceMs: 10_000 }
/** More steps than the longest way needs, with a failed commit or a VM turned off in between. */
const mostSteps = 16
const nowhere: DiskPlace = { at: 'nowhere' }

export async function mergeOverlay(
  domains: DomainCalls,
  uuid: string,
  plan: OverlayInPlace,
  limits: MergeLimits = usualLimits,
): Promise<void> {
  const merge = new OverlayMerge(domains, uuid, plan, limits)
  await merge.run()
}

class OverlayMerge {
  readonly #domains: DomainCalls
  readonly #uuid: string
  readonly #plan: OverlayInPlace
  readonly #limits: MergeLimits
  #committed = false

  constructor(domains: DomainCalls, uuid: string, plan: OverlayInPlace, limits: MergeLimits) {
    this.#domains = domains
    this.#uuid = uuid
    this.#plan = plan
    this.#limits = limits
  }

  async run(): Promise<void> {
    let troubles: unknown
    for (let count = 0; count < mostSteps; count += 1) {
      const seen = await this.#look()
      if (isMarkVoid(seen)) await forgetMark(this.#plan.overlay)
      const next = nextMergeStep(seen)
      if (next.step === 'done') return await forgetMark(this.#plan.overlay)
      if (next.step === 'refuse') throw this.#refused(next.reason, troubles)
      try {
        await this.#do(next.step)
      } catch (error) {
        if (isFailure(error, 'MERGE_REFUSED')) throw error
        // The next look decides: the reply may have been lost, the VM may have been turned off, another job may have ended.
        troubles = error
        await sleep(100)
      }
    }
    throw this.#refused(troubles === undefined ? 'it does not come to an end' : describeError(troubles), troubles)
  }

  #refused(reason: string, cause?: unknown) {
    const { overlay, target } = this.#plan
    return failure('MERGE_REFUSED', { vm: this.#domains.nameOf(this.#uuid), target, overlay, reason }, cause)
  }

  async #look(): Promise<MergeSituation> {
    const { overlay } = this.#plan
    const [places, markedMerged] = [await this.#places(), await isMarkedMerged(overlay)]
    // QEMU itself holds the overlay of a VM that runs on it; looking would only be in its way.
    if (places.active) this.#committed = false
    const inUse = places.active && (places.live.at === 'overlay' || places.live.at === 'above')
    return { ...places, committed: this.#committed, markedMerged, overlay: inUse ? 'held' : await overlayUse(overlay) }
  }

  async #places(): Promise<Pick<MergeSituation, 'active' | 'live' | 'defined' | 'savedMemory'>> {
    try {
      const active = (await this.#domains.state(this.#uuid)).state !== domainStates.off
      const live = active ? await this.#placeIn(await this.#domains.xml(this.#uuid, 0)) : nowhere
      const persistent = await this.#domains.isPersistent(this.#uuid)
      const definition = () => this.#domains.xml(this.#uuid, xmlFlags.secure | xmlFlags.inactive)
      const defined = persistent ? await this.#placeIn(await definition()) : nowhere
      const saved = !active && (await this.#domains.hasManagedSave(this.#uuid))
      const savedMemory = saved ? await this.#placeIn(await this.#domains.managedSaveXml(this.#uuid, 1)) : nowhere
      return { active, live, defined, savedMemory }
    } catch (error) {
      if (!isFailure(error, 'VM_NOT_FOUND')) throw error
      return { active: false, live: nowhere, defined: nowhere, savedMemory: nowhere }
    }
  }

  async #placeIn(xml: string): Promise<DiskPlace> {
    const { target, overlay, base } = this.#plan
    const disk = readDomain(xml).disks.find((candidate) => candidate.target === target)
    if (disk === undefined) return nowhere
    const isOverlay = { file: overlay }
    if (disk.image !== undefined && (await sameStorage(disk.image.storage, isOverlay))) {
      const job =
        disk.mirror === undefined
          ? {}
          : { job: { ours: disk.mirror.job === 'active-commit', ready: disk.mirror.ready } }
      const beneath = disk.chain[0]?.image?.storage
      const onBase = beneath === undefined ? await this.#headerNamesBase() : await sameStorage(beneath, base.storage)
      return { at: 'overlay', onBase, ...job }
    }
    for (const { image } of disk.chain) {
      if (image !== undefined && (await sameStorage(image.storage, isOverlay))) return { at: 'above' }
    }
    if (disk.image !== undefined && (await sameStorage(disk.image.storage, base.storage))) return { at: 'base' }
    return { at: 'elsewhere', location: disk.location }
  }

  async #headerNamesBase(): Promise<boolean> {
    const { overlay, base } = this.#plan
    const header = await headerBacking(overlay)
    if (header === undefined) return false
    return header === backingName(base.storage) || (await sameStorage({ file: header }, base.storage))
  }

  async #do(step: MergeStep['step']): Promise<void> {
    const { overlay, target, base } = this.#plan
    const [domains, uuid] = [this.#domains, this.#uuid]
    switch (step) {
      case 'start-commit':
        return await this.#startCommit()
      case 'await-commit':
        return await this.#awaitCommit()
      case 'pivot':
        return await this.#pivot()
      case 'commit-offline':
        await this.#commitOffline()
        await markMerged(overlay)
        this.#committed = true
        return
      case 'repoint-memory':
        return await domains.setManagedSaveXml(
          uuid,
          dropTopImage(await domains.managedSaveXml(uuid, xmlFlags.secure), target, base),
        )
      case 'repoint-definition': {
        const definition = await domains.xml(uuid, xmlFlags.secure | xmlFlags.inactive)
        await domains.define(dropTopImage(definition, target, base))
        return
      }
      case 'delete-overlay':
        return await deleteOverlay(overlay)
      default:
        invariant(false, `no step of a merge: ${step}`)
    }
  }

  /**
   * Puts the VM on the base. libvirt 9.0 writes the chain it knows into the definition when the VM was brought back from
   * a memory image; a definition that left the chain to libvirt before is made to do so again.
   */
  async #pivot(): Promise<void> {
    const { overlay, target } = this.#plan
    const [domains, uuid] = [this.#domains, this.#uuid]
    const definition = async () =>
      (await domains.isPersistent(uuid)) ? await domains.xml(uuid, xmlFlags.secure | xmlFlags.inactive) : undefined
    const before = await definition()
    await markMerged(overlay)
    await domains.blockJobAbort(uuid, target, blockJobAbortFlags.pivot)
    const after = await definition()
    if (before === undefined || after === undefined) return
    const hasChain = (xml: string) => forgetChain(xml, target) !== xml
    if (!hasChain(before) && hasChain(after)) await domains.define(forgetChain(after, target))
  }

  async #startCommit(): Promise<void> {
    await this.#patientWithLocks(() =>
      this.#domains.blockCommit(this.#uuid, this.#plan.target, blockCommitFlags.shallow | blockCommitFlags.active),
    )
  }

  async #commitOffline(): Promise<void> {
    await this.#patientWithLocks(() => commitImage(this.#plan.overlay, 'qcow2'))
  }

  /** Whoever still reads the base (a copy that is being finished) holds a lock that a commit needs. */
  async #patientWithLocks(attempt: () => Promise<void>): Promise<void> {
    const giveUpAt = performance.now() + this.#limits.lockPatienceMs
    for (;;) {
      try {
        return await attempt()
      } catch (error) {
        if (!/Failed to get .*lock/.test(describeError(error))) throw error
        if (performance.now() > giveUpAt) throw this.#refused('another program has its base open', error)
        await sleep(200)
      }
    }
  }

  /** Until the commit is ready to be ended, or is not there any more. */
  async #awaitCommit(): Promise<void> {
    let doneBytes = -1
    let movedAt = performance.now()
    for (let pauseMs = 20; ; pauseMs = Math.min(pauseMs * 1.5, 500)) {
      const disk = readDomain(await this.#domains.xml(this.#uuid, 0)).disks.find((d) => d.target === this.#plan.target)
      if (disk?.mirror === undefined || disk.mirror.ready) return
      const job = await this.#domains.blockJob(this.#uuid, this.#plan.target)
      if (job !== undefined && job.doneBytes !== doneBytes) {
        doneBytes = job.doneBytes
        movedAt = performance.now()
      }
      if (performance.now() - movedAt > this.#limits.stallMs) throw this.#refused('the commit does not go on')
      await sleep(pauseMs)
    }
  }
}
