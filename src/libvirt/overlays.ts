/**
 * Puts overlays on the disks of a VM in one transaction (API reference of libvirt: virDomainSnapshotCreateXML with
 * DISK_ONLY, ATOMIC, NO_METADATA and REUSE_EXT; "Snapshot XML format"). The files are made beforehand, so that the
 * instant is a single call; for a VM that is off it is one new definition. Either all disks named get theirs or none.
 */
import { lstat, rm } from 'node:fs/promises'
import { isAbsolute } from 'node:path'
import { invariant } from '../base/failure.ts'
import { failure } from '../errors.ts'
import type { DiskImage, OverlayPlan } from '../vm/hypervisor.ts'
import type { DomainCalls } from './domain-calls.ts'
import { setDiskImage } from './domain-edit.ts'
import { readDomain } from './domain-xml.ts'
import { isFailure } from './libvirt-errors.ts'
import { makeOverlay, pathTaken } from './overlay-file.ts'
import { power } from './power.ts'
import { snapshotFlags, xmlFlags } from './protocol.ts'
import { escapeXml } from './xml-dom.ts'

/** Overlay files that lie ready, with all that the instant needs to know. */
export interface PreparedOverlays {
  readonly uuid: string
  readonly plans: readonly OverlayPlan[]
  readonly whenRunning: boolean
  /** The description of the transaction, or the definition on the overlays when the VM is off. */
  readonly xml: string
  /** The definition that is to be put back when it goes wrong; only for a VM that is off. */
  readonly formerDefinition?: string
}

const now = xmlFlags.secure

/** Makes the overlay files. Nothing of the VM changes; takes as long as it takes. */
export async function prepareOverlays(
  domains: DomainCalls,
  uuid: string,
  plans: readonly OverlayPlan[],
): Promise<PreparedOverlays> {
  const state = await power(domains, uuid)
  const vm = domains.nameOf(uuid)
  if (state === 'gone') throw failure('VM_NOT_FOUND', { vm, known: 'others' })
  if (state === 'saved') {
    throw failure('VM_STATE', { vm, state, reason: 'its memory image would go on with the disks beneath' })
  }
  const whenRunning = state !== 'off'
  const xml = await domains.xml(uuid, whenRunning ? now : xmlFlags.secure | xmlFlags.inactive)
  const { disks } = readDomain(xml, vm)
  const bases = plans.map((plan) => ({ ...plan, base: baseOf(vm, disks, plan.target) }))
  for (const { overlay } of plans) {
    invariant(isAbsolute(overlay), `the path of an overlay is absolute: ${overlay}`)
    if (await exists(overlay)) throw pathTaken(vm, overlay)
  }
  const made: string[] = []
  try {
    for (const { target, overlay, base } of bases) {
      const sizeBytes = await domains.diskSize(uuid, target).catch(() => undefined)
      await makeOverlay(overlay, base, sizeBytes)
      made.push(overlay)
    }
  } catch (error) {
    await discard(made)
    throw error
  }
  if (whenRunning) return { uuid, plans, whenRunning, xml: transactionXml(disks, plans) }
  const onOverlays = plans.reduce((text, plan) => setDiskImage(text, plan.target, overlayImage(plan)), xml)
  return { uuid, plans, whenRunning, xml: onOverlays, formerDefinition: xml }
}

const overlayImage = ({ overlay }: OverlayPlan): DiskImage => ({ format: 'qcow2', storage: { file: overlay } })

async function exists(path: string): Promise<boolean> {
  return await lstat(path).then(
    () => true,
    () => false,
  )
}

function baseOf(vm: string, disks: ReturnType<typeof readDomain>['disks'], target: string): DiskImage {
  const disk = disks.find((candidate) => candidate.target === target)
  if (disk?.image === undefined) {
    const reason =
      disk === undefined ? `it does not have a disk ${target}` : `its disk ${target} can not carry an overlay`
    throw failure('VM_STATE', { vm, state: 'not what was planned for', reason })
  }
  return disk.image
}

/** Every disk is named: libvirt would put overlays on those it does not find. */
function transactionXml(disks: ReturnType<typeof readDomain>['disks'], plans: readonly OverlayPlan[]): string {
  const elements = disks
    .filter((disk) => !disk.passThrough)
    .map(({ target }) => {
      const plan = plans.find((candidate) => candidate.target === target)
      if (plan === undefined) return `<disk name='${escapeXml(target)}' snapshot='no'/>`
      const source = `<driver type='qcow2'/><source file='${escapeXml(plan.overlay)}'/>`
      return `<disk name='${escapeXml(target)}' snapshot='external' type='file'>${source}</disk>`
    })
  return `<domainsnapshot><disks>${elements.join('')}</disks></domainsnapshot>`
}

/** The instant. When it rejects because it was refused, no overlay file is left. */
export async function putOverlaysOn(domains: DomainCalls, prepared: PreparedOverlays): Promise<void> {
  const { uuid, xml, whenRunning } = prepared
  try {
    if (whenRunning) {
      const { diskOnly, atomic, noMetadata, reuseExisting } = snapshotFlags
      await domains.snapshot(uuid, xml, diskOnly | atomic | noMetadata | reuseExisting)
    } else {
      await defineOnOverlays(domains, prepared)
    }
  } catch (error) {
    // Nobody knows what a daemon did whose answer did not come: then the files stay, and mergeOverlay finds out.
    const unknown = isFailure(error, 'HYPERVISOR_UNREACHABLE') || isFailure(error, 'DEADLINE_EXCEEDED')
    if (!unknown && !(await anyInPlace(domains, prepared))) await discardOverlays(prepared)
    throw error
  }
}

async function defineOnOverlays(
  domains: DomainCalls,
  { uuid, xml, formerDefinition }: PreparedOverlays,
): Promise<void> {
  invariant(formerDefinition !== undefined, 'a VM that is off has a definition')
  const refuseUnlessOff = async () => {
    const state = await power(domains, uuid)
    if (state === 'off') return
    throw failure('VM_STATE', { vm: domains.nameOf(uuid), state, reason: 'it was off when its overlays were prepared' })
  }
  await refuseUnlessOff()
  await domains.define(xml)
  try {
    await refuseUnlessOff()
  } catch (error) {
    // Started in between, before or after the new definition: only its XML of now tells on what it runs.
    const started = readDomain(await domains.xml(uuid, 0)).disks
    const { disks } = readDomain(xml)
    const onOverlays = disks.every((disk) => started.find((d) => d.target === disk.target)?.location === disk.location)
    if (onOverlays) return
    await domains.define(formerDefinition)
    throw error
  }
}

async function anyInPlace(domains: DomainCalls, { uuid, plans }: PreparedOverlays): Promise<boolean> {
  const texts = [await domains.xml(uuid, 0), await domains.xml(uuid, xmlFlags.inactive)]
  const locations = texts.flatMap((text) => readDomain(text).disks.map((disk) => disk.location))
  return plans.some(({ overlay }) => locations.includes(overlay))
}

/** For overlays that were prepared and are not wanted any more. */
export const discardOverlays = ({ plans }: PreparedOverlays): Promise<void> =>
  discard(plans.map((plan) => plan.overlay))

async function discard(paths: readonly string[]): Promise<void> {
  for (const path of paths) await rm(path, { force: true })
}
