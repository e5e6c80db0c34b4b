/**
 * The plan of a revert by reading: which volumes get which chunks back, and the next version of their groups' metadata.
 * It reads, checks everything there is to check, and writes nothing. See docs/guest-protocol.md, "What lies on the disks".
 */
import { isDeepStrictEqual } from 'node:util'
import { failure } from '../errors.ts'
import type { RevertDisk } from './disk-stretch.ts'
import { checkStore, type ExceptionStore, openStore, StoreError } from './exception-store.ts'
import {
  findPhysicalVolumes,
  mapVolume,
  newestVersions,
  refuseOverlaps,
  refuseUnclaimed,
  type WholeGroup,
  wholeGroup,
} from './group-disks.ts'
import { type Group, parseGroup, textWithout } from './lvm-group.ts'
import { LvmTextError } from './lvm-text.ts'
import { type MetadataChange, placeText } from './metadata-change.ts'
import type { VolumeMap } from './volume-map.ts'

export interface PlannedVolume {
  readonly group: string
  readonly volume: string
  /** The volume with the exception store. */
  readonly area: string
  readonly chunks: number
  readonly origin: VolumeMap
  readonly store: ExceptionStore
}

export interface RevertPlan {
  readonly volumes: readonly PlannedVolume[]
  readonly changes: readonly MetadataChange[]
}

/** The plan for all volumes of the set on these disks. Rejects with VOLUMES_NOT_UNDERSTOOD or GUEST_SET_LOST. */
export async function planRevert(vm: string, set: string, disks: readonly RevertDisk[]): Promise<RevertPlan> {
  const all = disks.map(({ name }) => name).join(', ')
  const refuseSet = (reason: string, cause?: unknown) => failure('VOLUMES_NOT_UNDERSTOOD', { disk: all, reason }, cause)
  try {
    const found = await findPhysicalVolumes(disks)
    const groups = newestVersions(found)
    refuseUnclaimed(found, groups)
    const concerned = groups.filter((group) => areasOf(group, set).length > 0)
    if (concerned.length === 0) throw refuseSet(`there is no snapshot of the set ${set}`)
    const whole = concerned.map((group) => wholeGroup(group, groups, found))
    refuseOverlaps(whole)
    const volumes: PlannedVolume[] = []
    for (const one of whole) volumes.push(...(await planGroup(vm, set, one)))
    return { volumes, changes: whole.map((one) => planChange(set, one)) }
  } catch (error) {
    throw error instanceof LvmTextError ? refuseSet(error.message, error) : error
  }
}

const setTag = (set: string) => `umbra.set=${set}`
const originTag = 'umbra.origin='

const areasOf = ({ shape }: Group, set: string): string[] =>
  Object.entries(shape.logical_volumes)
    .filter(([, { tags }]) => tags.includes(setTag(set)))
    .map(([name]) => name)

async function planGroup(vm: string, set: string, whole: WholeGroup): Promise<PlannedVolume[]> {
  const { name: group, shape } = whole.group
  const areas = areasOf(whole.group, set)
  const planned: PlannedVolume[] = []
  for (const area of areas) {
    const tags = shape.logical_volumes[area]?.tags ?? []
    const volumes = tags.filter((tag) => tag.startsWith(originTag)).map((tag) => tag.slice(originTag.length))
    const [volume = ''] = volumes
    if (!tags.includes('umbra') || volumes.length !== 1 || !area.startsWith(`umbra_${set}_`)) {
      throw new LvmTextError(`${group}/${area} has our tag and is not ours`)
    }
    if (planned.some((other) => other.volume === volume) || areas.includes(volume)) {
      throw new LvmTextError(`${group}/${area} is a second snapshot of ${volume}`)
    }
    const origin = mapVolume(whole, volume)
    try {
      const store = await openStore(mapVolume(whole, area))
      planned.push({ group, volume, area, chunks: await checkStore(store, origin.sizeBytes), origin, store })
    } catch (error) {
      if (!(error instanceof StoreError)) throw error
      if (!error.overflowed) throw new LvmTextError(`${group}/${area} ${error.message}`, { cause: error })
      throw failure('GUEST_SET_LOST', { vm, reason: `the snapshot area of ${group}/${volume} overflowed` }, error)
    }
  }
  return planned
}

function planChange(set: string, { group, members }: WholeGroup): MetadataChange {
  const areas = areasOf(group, set)
  const text = textWithout(group, areas)
  const seqno = group.shape.seqno + 1
  // What is about to be written is read as strictly as what was found, and may differ in this and nothing else.
  const left = Object.entries(group.shape.logical_volumes).filter(([name]) => !areas.includes(name))
  const expected = { ...group.shape, seqno, logical_volumes: Object.fromEntries(left) }
  if (!isDeepStrictEqual(parseGroup(text).shape, expected)) {
    throw new LvmTextError(`the snapshot can not be cut out of the metadata of ${group.name}`)
  }
  const metadataAreas = [...members.values()].flatMap((pv) => pv.areas).filter(({ ignored }) => !ignored)
  const bytes = Buffer.from(`${text}\0`, 'latin1')
  const places = metadataAreas.map((area) => placeText(area, bytes.length))
  return { group: group.name, seqno, text: bytes, places }
}
