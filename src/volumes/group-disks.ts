/**
 * The volume groups on the disks of one VM: which physical volume belongs to which, and which version of a group's
 * metadata is the newest. A physical volume is known by its UUID alone, never by the disk's name.
 * Source: vgck(8), pvs(8); lvm2's lib/metadata/metadata.c (vg_read) for what LVM itself refuses.
 */
import { type RevertDisk, refuse, type Stretch } from './disk-stretch.ts'
import { type Group, obstacleOf, parseGroup, stripedSegments, usedExtents } from './lvm-group.ts'
import { LvmTextError } from './lvm-text.ts'
import { stretchesOf } from './partitions.ts'
import { type PhysicalVolume as PhysicalVolumeWithTexts, type Range, readPhysicalVolume } from './physical-volume.ts'
import type { MappedSegment, VolumeMap } from './volume-map.ts'

/** Every area may hold another version; trees are held of this much text and no more. */
const mostTextBytes = 16 * 1024 * 1024

type PhysicalVolume = Omit<PhysicalVolumeWithTexts, 'texts'>

/** A physical volume with what its metadata areas say. */
export interface FoundVolume {
  readonly pv: PhysicalVolume
  readonly versions: readonly Group[]
  readonly damage: string | undefined
}

export async function findPhysicalVolumes(disks: readonly RevertDisk[]): Promise<readonly FoundVolume[]> {
  const found: FoundVolume[] = []
  const parsed = new Map<string, Group | string>()
  let parsedBytes = 0
  for (const disk of disks) {
    for (const stretch of await stretchesOf(disk)) {
      const read = await readPhysicalVolume(stretch)
      if (read === undefined) continue
      const { texts, ...pv } = read
      for (const text of texts.map((bytes) => bytes.toString('latin1'))) {
        if (parsed.has(text)) continue
        parsedBytes += text.length
        if (parsedBytes > mostTextBytes) refuse(disk.name, 'there is too much LVM metadata')
        parsed.set(text, groupOrReason(text))
      }
      const all = texts.map((bytes) => parsed.get(bytes.toString('latin1')))
      const versions = all.filter((one) => typeof one === 'object')
      found.push({ pv, versions, damage: pv.damage ?? all.find((one) => typeof one === 'string') })
    }
  }
  const uuids = new Map<string, string>()
  for (const { pv } of found) {
    const other = uuids.get(pv.uuid)
    if (other !== undefined) refuse(diskOf(pv), `it holds the same physical volume as ${other}`)
    uuids.set(pv.uuid, diskOf(pv))
  }
  return found
}

const diskOf = (pv: PhysicalVolume) => pv.stretch.disk.name

function groupOrReason(text: string): Group | string {
  try {
    return parseGroup(text)
  } catch (error) {
    if (error instanceof LvmTextError) return error.message
    throw error
  }
}

/** The newest version of every group; two that differ in their content and not in their number are refused. */
export function newestVersions(found: readonly FoundVolume[]): readonly Group[] {
  const groups = new Map<string, Group>()
  for (const { pv, versions } of found) {
    for (const version of versions) {
      const known = groups.get(version.shape.id)
      if (known === undefined || known.shape.seqno < version.shape.seqno) groups.set(version.shape.id, version)
      else if (known.shape.seqno === version.shape.seqno && contentOf(known) !== contentOf(version)) {
        refuse(diskOf(pv), `the group ${version.name} has two versions ${version.shape.seqno}`)
      }
    }
  }
  return [...groups.values()]
}

/** Without what surrounds it: the time of writing may differ from area to area. */
function contentOf({ name, text, root }: Group): string {
  const entry = root.get(name)
  return text.slice(entry?.begin, entry?.end)
}

/** A group that may be changed: all of its physical volumes are here, and nothing overlaps. */
export interface WholeGroup {
  readonly group: Group
  readonly members: ReadonlyMap<string, PhysicalVolume>
}

/** Refuses what could hold a part of one of the groups without saying so. */
export function refuseUnclaimed(found: readonly FoundVolume[], groups: readonly Group[]): void {
  const claimed = new Set(
    groups.flatMap(({ shape }) => Object.values(shape.physical_volumes).map((claimedVolume) => claimedVolume.id)),
  )
  for (const { pv, versions, damage } of found) {
    if (claimed.has(pv.uuid)) continue
    if (damage !== undefined) refuse(diskOf(pv), damage)
    const [outdated] = versions
    if (outdated !== undefined) refuse(diskOf(pv), `it was removed from the group ${outdated.name} while it was absent`)
    if (pv.used) refuse(diskOf(pv), 'it holds a physical volume of a group that is not known')
  }
}

/** Throws LvmTextError, or refuses, when the group is not whole or not the guest's own. */
export function wholeGroup(group: Group, groups: readonly Group[], found: readonly FoundVolume[]): WholeGroup {
  const fail = (reason: string) => {
    throw new LvmTextError(reason)
  }
  const obstacle = obstacleOf(group)
  if (obstacle !== undefined) fail(obstacle)
  if (groups.some((other) => other !== group && other.name === group.name)) {
    fail(`there are two groups ${group.name}`)
  }
  const members = new Map<string, PhysicalVolume>()
  for (const [name, { id, pe_start, pe_count }] of Object.entries(group.shape.physical_volumes)) {
    const member = found.find(({ pv }) => pv.uuid === id)
    if (member === undefined) throw new LvmTextError(`the group ${group.name} lacks its physical volume ${id}`)
    if ([...members.values()].includes(member.pv)) fail(`the group ${group.name} names ${id} twice`)
    const others = groups.filter((one) => one !== group)
    if (others.some(({ shape }) => Object.values(shape.physical_volumes).some((one) => one.id === id))) {
      fail(`two groups claim the physical volume ${id}`)
    }
    if (member.damage !== undefined) refuse(diskOf(member.pv), member.damage)
    checkRanges(member.pv, { offset: pe_start * 512, length: pe_count * group.shape.extent_size * 512 })
    members.set(name, member.pv)
  }
  checkExtents(group)
  return { group, members }
}

/** Label, metadata and data of a physical volume share no byte. */
function checkRanges(pv: PhysicalVolume, data: Range): void {
  const label = { offset: 0, length: 4 * 512 }
  const ranges = [label, ...pv.areas, data].sort((one, other) => one.offset - other.offset)
  let end = 0
  for (const { offset, length } of ranges) {
    if (offset < end) refuse(diskOf(pv), 'label, metadata and data of a physical volume overlap')
    end = offset + length
  }
  if (data.offset < pv.dataOffset || !Number.isSafeInteger(end) || end > pv.stretch.sizeBytes) {
    refuse(diskOf(pv), 'a physical volume is larger than its disk')
  }
}

/** Stretches of one disk must not overlap: a guest's partition table may say anything. */
export function refuseOverlaps(groups: readonly WholeGroup[]): void {
  const byDisk = Map.groupBy(
    groups.flatMap(({ members }) => [...members.values()]),
    (pv) => pv.stretch.disk,
  )
  for (const [disk, volumes] of byDisk) {
    let end = 0
    for (const { stretch } of volumes.sort((one, other) => one.stretch.offset - other.stretch.offset)) {
      if (stretch.offset < end) refuse(disk.name, 'partitions overlap')
      end = stretch.offset + stretch.sizeBytes
    }
  }
}

function checkExtents(group: Group): void {
  const used = Map.groupBy(usedExtents(group), ({ pv }) => pv)
  for (const [pv, ranges] of used) {
    // Parts of other kinds of volumes name volumes here, not disks.
    const facts = group.shape.physical_volumes[pv]
    if (facts === undefined) continue
    let end = 0
    for (const { first, count } of ranges.sort((one, other) => one.first - other.first)) {
      if (first < end) throw new LvmTextError(`volumes of the group ${group.name} overlap`)
      end = first + count
    }
    if (end > facts.pe_count) throw new LvmTextError(`a volume of the group ${group.name} ends beyond its disk`)
  }
}

/** Where the bytes of one of its linear or striped volumes lie. */
export function mapVolume({ group, members }: WholeGroup, volume: string): VolumeMap {
  const extentBytes = group.shape.extent_size * 512
  const segments = stripedSegments(group, volume).map((segment): MappedSegment => {
    const shareBytes = (segment.extent_count / segment.stripe_count) * extentBytes
    const stripes: Stretch[] = []
    for (let at = 0; at < segment.stripes.length; at += 2) {
      const [name, first] = [segment.stripes[at], segment.stripes[at + 1]]
      const facts = group.shape.physical_volumes[String(name)]
      const pv = members.get(String(name))
      if (facts === undefined || pv === undefined || typeof first !== 'number') {
        throw new LvmTextError(`${group.name}/${volume} lies on ${name}, which is no physical volume`)
      }
      const offset = pv.stretch.offset + facts.pe_start * 512 + first * extentBytes
      stripes.push({ disk: pv.stretch.disk, offset, sizeBytes: shareBytes })
    }
    return {
      start: segment.start_extent * extentBytes,
      sizeBytes: segment.extent_count * extentBytes,
      stripeBytes: segment.stripe_count === 1 ? shareBytes : segment.stripe_size * 512,
      stripes,
    }
  })
  return { sizeBytes: segments.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0), segments }
}
