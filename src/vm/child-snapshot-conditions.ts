/**
 * The conditions of child-snapshot beyond those of every method in which the guest takes part, each told in words (W6).
 * Pure. Source: "Backing Up and Restoring Virtual Machines", the list of conditions: integration service, snapshot file
 * location on the volume of the disks, basic disks, file systems that support snapshots, auto-recoverable copies.
 */
import { describeExclusion } from './exclusion.ts'
import type { GuestDescription, GuestVolume } from './guest-requestor.ts'
import type { VirtualDisk, VmFacts } from './hypervisor.ts'
import type { BackupPolicy, Condition, GuestFacts } from './method.ts'

/** One extent of LVM: less can not be a snapshot area. */
const leastRoomBytes = 4 * 1024 * 1024

/** Identifiers of systems (os-release, or the agent's own) that have neither LVM nor btrfs. Windows is told apart. */
const withoutSnapshots = ['freebsd', 'openbsd', 'netbsd', 'dragonfly', 'sunos', 'solaris', 'illumos', 'macos', 'darwin']

type Verdict = Omit<Condition, 'neededFor'>

/** What the guest told of its volumes, if it did. */
export const descriptionOf = (guest: GuestFacts): GuestDescription | undefined =>
  guest.answering && guest.requestor !== undefined && !('unavailable' in guest.requestor) ? guest.requestor : undefined

/** How a volume is called: the name people know, and what it lies on. */
export const volumeText = ({ mountPoint, type, where }: GuestVolume): string => `${mountPoint} (${type}, ${where})`

/** Long lists are cut: a guest may have hundreds of mounts. */
export function listText(items: readonly string[], most = 4): string {
  const rest = items.length - most
  return rest > 0 ? `${items.slice(0, most).join(', ')} and ${rest} more` : items.join(', ')
}

export function requestorConditions(
  vm: VmFacts,
  guest: GuestFacts,
  { autoRecovery }: BackupPolicy,
  disks: readonly VirtualDisk[],
): Condition[] {
  const verdicts = [
    recoverable(autoRecovery),
    knownSystem(guest),
    reachable(guest),
    ...ofVolumes(vm, descriptionOf(guest), disks),
    overlaysBeside(disks),
  ]
  return verdicts.map((verdict) => ({ ...verdict, neededFor: ['child-snapshot'] }))
}

function recoverable(autoRecovery: boolean): Verdict {
  return {
    name: 'copies may be rolled back (auto-recovery)',
    met: autoRecovery,
    detail: autoRecovery
      ? 'the context of the shadow copies allows it'
      : 'auto-recovery is not allowed: the copies could not be rolled back to the snapshot inside the guest',
  }
}

/** "Windows 2000: Backup Integration Service is not supported": what can not be supported is named, not tried. */
function knownSystem(guest: GuestFacts): Verdict {
  const name = 'guest operating system can take snapshots of itself'
  if (!guest.answering) return { name, met: false, detail: 'operating system not known: the agent does not answer' }
  const { os } = guest
  if (os === undefined) {
    const met = descriptionOf(guest) !== undefined
    return { name, met, detail: met ? 'its own answer shows it' : 'the agent does not tell the operating system' }
  }
  if (os.id === 'mswindows') {
    return {
      name,
      met: false,
      detail: `${os.name} is not supported by child-snapshot: guest-freeze runs its VSS writers`,
    }
  }
  const met = !withoutSnapshots.includes(os.id.toLowerCase())
  return { name, met, detail: met ? os.name : `${os.name} is not supported: it has neither LVM nor btrfs` }
}

function reachable(guest: GuestFacts): Verdict {
  const name = 'backup integration service in the guest'
  if (!guest.answering) return { name, met: false, detail: 'integration service not known: the agent does not answer' }
  const { requestor } = guest
  if (requestor === undefined)
    return { name, met: false, detail: 'integration service: the guest was not asked for it' }
  if ('unavailable' in requestor) {
    return { name, met: false, detail: `integration service can not be used: ${requestor.unavailable}` }
  }
  const detail = requestor.via === 'exec' ? 'the agent may run programs' : 'the package is installed'
  return { name, met: true, detail }
}

function ofVolumes(vm: VmFacts, told: GuestDescription | undefined, disks: readonly VirtualDisk[]): Verdict[] {
  const names = {
    snapshots: 'every file system of the guest supports snapshots',
    room: 'room for the snapshots inside the guest',
    basic: 'no array and no dynamic disk in the guest',
    whole: 'every volume of the guest lies on backed-up disks only',
  }
  if (told === undefined) {
    const why = 'not known: the guest has not told of its volumes'
    const about = { snapshots: 'file systems', room: 'room', basic: 'arrays', whole: 'disks of the volumes' }
    return Object.entries(names).map(([key, name]) => {
      return { name, met: false, detail: `${about[key as keyof typeof about]} ${why}` }
    })
  }
  return [
    { name: names.snapshots, ...snapshotsOfAll(told.volumes, disks) },
    { name: names.room, ...roomForAll(told.volumes) },
    {
      name: names.basic,
      met: told.arrays.length === 0,
      detail: told.arrays.length === 0 ? 'basic disks only' : `in use: ${listText(told.arrays)}`,
    },
    { name: names.whole, ...wholeOnDisks(vm, told, disks) },
  ]
}

function snapshotsOfAll(volumes: readonly GuestVolume[], disks: readonly VirtualDisk[]): Omit<Verdict, 'name'> {
  if (volumes.length === 0) return { met: false, detail: 'the guest has no local file system mounted' }
  const without = volumes.flatMap((volume) => {
    const { kind, obstacle } = volume
    if (obstacle === undefined && kind !== 'other') return []
    return [`${volumeText(volume)}: ${obstacle ?? 'neither on LVM nor btrfs'}`]
  })
  if (without.length > 0) return { met: false, detail: `no snapshot can be taken of ${listText(without)}` }
  const unused = disks.filter(({ target }) => !volumes.some(({ targets }) => targets.includes(target)))
  const asItIs = unused.map(({ target }) => target).join(', ')
  const rest = unused.length === 0 ? '' : `; nothing mounted on ${asItIs}: copied as at the instant of the host`
  return { met: true, detail: `${listText(volumes.map(volumeText))}${rest}` }
}

/** Volumes of one group share its room: each needs an area of its own. */
function roomForAll(volumes: readonly GuestVolume[]): Omit<Verdict, 'name'> {
  const groups = Map.groupBy(
    volumes.filter(({ kind }) => kind === 'lvm'),
    ({ where }) => where.slice(0, where.lastIndexOf('/')),
  )
  const tooFull = [...groups].flatMap(([group, members]) => {
    const roomBytes = Math.min(...members.map((volume) => volume.roomBytes))
    const neededBytes = members.length * leastRoomBytes
    return roomBytes < neededBytes
      ? [`volume group ${group} has ${mebibytes(roomBytes)} free of ${mebibytes(neededBytes)}`]
      : []
  })
  const others = volumes.filter(
    ({ kind, roomBytes }) => (kind === 'thin' || kind === 'btrfs') && roomBytes < leastRoomBytes,
  )
  tooFull.push(...others.map((volume) => `${volumeText(volume)} is full`))
  if (tooFull.length > 0) return { met: false, detail: `too little room for snapshots: ${listText(tooFull)}` }
  const rooms = [...groups].map(([group, [first]]) => `${mebibytes(first?.roomBytes ?? 0)} free in ${group}`)
  return { met: true, detail: rooms.length > 0 ? listText(rooms) : roomWithoutGroups(volumes) }
}

const roomWithoutGroups = (volumes: readonly GuestVolume[]): string =>
  volumes.length === 0 ? 'no volume that would need room' : 'snapshots share the space of their volumes'

const mebibytes = (bytes: number): string => `${Math.floor(bytes / (1024 * 1024))} MiB`

/** A snapshot of a volume that is only partly in the backup could never be read again. */
function wholeOnDisks(vm: VmFacts, told: GuestDescription, disks: readonly VirtualDisk[]): Omit<Verdict, 'name'> {
  const known = new Set(disks.map(({ target }) => target))
  const spread = told.volumes.flatMap((volume) => {
    if (volume.targets.length === 0) return [`${volumeText(volume)} lies on a disk that is not known`]
    const missing = volume.targets.filter((target) => !known.has(target))
    return missing.map(
      (target) => `${volumeText(volume)} lies on ${target}, which is not backed up${reasonOf(vm, target)}`,
    )
  })
  const stray = told.strayDevices.map((device) => `${device} is not a disk of this VM that can be backed up`)
  const problems = [...spread, ...stray]
  return problems.length > 0
    ? { met: false, detail: listText(problems) }
    : {
        met: true,
        detail: listText([...new Set(told.volumes.flatMap(({ targets }) => targets))].sort()) || 'no volumes',
      }
}

function reasonOf({ disks }: VmFacts, target: string): string {
  const disk = disks.find((one) => one.target === target)
  const reason = disk === undefined ? undefined : describeExclusion(disk)
  return reason === undefined ? '' : ` (${reason})`
}

/** "The Snapshot File Location … is set to be the same volume in the host operating system as the VHD files." */
function overlaysBeside(disks: readonly VirtualDisk[]): Verdict {
  const elsewhere = disks.filter(({ image }) => image === undefined || !('file' in image.storage))
  return {
    name: 'overlays lie on the same volume as the disks',
    met: elsewhere.length === 0,
    detail:
      elsewhere.length === 0
        ? 'each beside its image file'
        : `${listText(elsewhere.map(({ target, location }) => `${target} (${location})`))}: not an image file, its overlay lies elsewhere`,
  }
}
