/**
 * Change-tracking points on libvirt: its checkpoints, one dirty bitmap of the same name in the image of each disk (API
 * reference of libvirt, module libvirt-domain-checkpoint). How they behave is written down in docs/change-tracking.md.
 */
import { invariant } from '../base/failure.ts'
import { type ChangeTracking, type TrackingPoint, trackingPointName } from '../vm/backup-job.ts'
import { type ImageContents, imageContents, imageMark, untrackable } from './checkpoints-image.ts'
import { type CheckpointDocument, checkpointXml, readCheckpoint, withCreationTime } from './checkpoints-xml.ts'
import type { DomainCalls } from './domain-calls.ts'
import type { DomainDisk } from './domain-disks.ts'
import { readDomain } from './domain-xml.ts'
import { isFailure, libvirtCode } from './libvirt-errors.ts'
import { checkpointCreateFlags, checkpointDeleteFlags, checkpointXmlFlags, libvirtCodes, xmlFlags } from './protocol.ts'

/** Disks that a backup job can copy. */
export const jobDisks = (disks: readonly DomainDisk[]): DomainDisk[] =>
  disks.filter(({ passThrough, device, readOnly, location }) => {
    return !passThrough && device === 'disk' && !readOnly && location !== ''
  })

export async function changeTracking(domains: DomainCalls, uuid: string): Promise<ChangeTracking> {
  const active = await domains.isActive(uuid)
  const xml = await domains.xml(uuid, active ? 0 : xmlFlags.inactive)
  const disks = jobDisks(readDomain(xml, domains.nameOf(uuid)).disks)
  const points = await checkpoints(domains, uuid, active)
  const known = await Promise.all(
    disks.map(async (disk) => {
      const contents = await imageContents(disk)
      const image = await imageMark(disk, await domains.diskSize(uuid, disk.target).catch(() => undefined))
      const reason = untrackable(disk, contents)
      return { target: disk.target, image, internalStates: contents.states, contents, reason }
    }),
  )
  return {
    points: points.map(({ targets: _targets, ...point }): TrackingPoint => point),
    disks: known.map(({ contents: _contents, reason, ...disk }) =>
      reason === undefined ? disk : { ...disk, untrackable: reason },
    ),
    forgotten: forgottenPoints(
      points,
      known.map(({ contents }) => contents),
    ),
  }
}

/** Oldest first. */
async function checkpoints(domains: DomainCalls, uuid: string, active: boolean): Promise<CheckpointDocument[]> {
  const found: CheckpointDocument[] = []
  for (const name of await domains.checkpoints(uuid)) {
    const point = await checkpoint(domains, uuid, name, active)
    if (point !== undefined) found.push(point)
  }
  return found.sort((a, b) => a.createdMs - b.createdMs)
}

/** Undefined when it is gone by now. */
async function checkpoint(
  domains: DomainCalls,
  uuid: string,
  name: string,
  active: boolean,
): Promise<CheckpointDocument | undefined> {
  const { withoutDomain, size } = checkpointXmlFlags
  try {
    const xml = await domains.checkpointXml(uuid, name, active ? withoutDomain | size : withoutDomain)
    return readCheckpoint(xml, domains.nameOf(uuid), active)
  } catch (error) {
    if (libvirtCode(error) === libvirtCodes.noCheckpoint) return undefined
    // Turned off since: only the sizes need a running VM.
    if (active && libvirtCode(error) === libvirtCodes.operationInvalid)
      return await checkpoint(domains, uuid, name, false)
    throw error
  }
}

function forgottenPoints(points: readonly TrackingPoint[], images: readonly ImageContents[]): string[] {
  const names = new Set(images.flatMap(({ bitmaps }) => bitmaps))
  for (const { name } of points) names.delete(name)
  return [...names].filter((name) => trackingPointName.test(name)).sort()
}

/**
 * libvirt removes a checkpoint only if every disk of it has its bitmap. So the disks that have none are taken out of it first;
 * and one that libvirt has forgotten, while its bitmaps lie in the images, is made known again.
 */
export async function removeTrackingPoint(domains: DomainCalls, uuid: string, name: string): Promise<void> {
  invariant(trackingPointName.test(name), `${name} is no tracking point of ours`)
  try {
    const active = await domains.isActive(uuid)
    const point = await checkpoint(domains, uuid, name, active)
    if (!active) {
      if (point !== undefined) await deletePoint(domains, uuid, name, checkpointDeleteFlags.metadataOnly)
      return
    }
    if (point === undefined) await removeForgotten(domains, uuid, name)
    else await removeKnown(domains, uuid, point)
  } catch (error) {
    if (!isFailure(error, 'VM_NOT_FOUND')) throw error
  }
}

async function removeKnown(domains: DomainCalls, uuid: string, point: CheckpointDocument): Promise<void> {
  const { name, createdMs, disks } = point
  try {
    await deletePoint(domains, uuid, name, 0)
    return
  } catch (error) {
    if (libvirtCode(error) !== libvirtCodes.internalError) throw error
  }
  // One of its bitmaps is missing. Each of the others goes by itself.
  for (const { target } of disks) {
    await redefine(domains, uuid, name, createdMs, [target])
    await deletePoint(domains, uuid, name, 0).catch(ignoreMissingBitmap)
  }
  await deletePoint(domains, uuid, name, checkpointDeleteFlags.metadataOnly)
}

async function removeForgotten(domains: DomainCalls, uuid: string, name: string): Promise<void> {
  const { disks } = readDomain(await domains.xml(uuid, 0), domains.nameOf(uuid))
  for (const disk of jobDisks(disks)) {
    if (!(await imageContents(disk)).bitmaps.includes(name)) continue
    await redefine(domains, uuid, name, 0, [disk.target])
    await deletePoint(domains, uuid, name, 0).catch(ignoreMissingBitmap)
    await deletePoint(domains, uuid, name, checkpointDeleteFlags.metadataOnly)
  }
}

async function redefine(
  domains: DomainCalls,
  uuid: string,
  name: string,
  createdMs: number,
  targets: readonly string[],
): Promise<void> {
  const disks = targets.map((target) => ({ target, track: true }))
  const xml = withCreationTime(checkpointXml(name, disks), createdMs)
  await domains.checkpointCreate(uuid, xml, checkpointCreateFlags.redefine)
}

async function deletePoint(domains: DomainCalls, uuid: string, name: string, flags: number): Promise<void> {
  try {
    await domains.checkpointDelete(uuid, name, flags)
  } catch (error) {
    if (libvirtCode(error) !== libvirtCodes.noCheckpoint) throw error
  }
}

function ignoreMissingBitmap(error: unknown): void {
  if (libvirtCode(error) !== libvirtCodes.internalError) throw error
}
