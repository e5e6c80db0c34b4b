/**
 * By which way the copies of a child-snapshot are rolled back (A1, A2): a pure function of the profile and of what the
 * guest told of its volumes. Source: "Improvements in Hyper-V Backup 2012 R2": on the host until 2012, hot-added to the
 * running VM over SCSI since; reading it back without any mount is new here.
 */
import type { RecoveryWay } from './auto-recovery.ts'
import { descriptionOf, listText, volumeText } from './child-snapshot-conditions.ts'
import type { GuestVolume } from './guest-requestor.ts'
import type { VirtualDisk, VmFacts } from './hypervisor.ts'
import type { BackupPolicy, Condition, GuestFacts, RecoveryPlan } from './method.ts'
import type { Profile } from './profile.ts'

export interface RecoveryChoice {
  readonly plan: RecoveryPlan
  /** Of the way that the profile prefers, or that was asked for. */
  readonly conditions: readonly Condition[]
  /** What keeps the way that was asked for from being taken. One that the profile prefers has another to fall back on. */
  readonly obstacles: readonly string[]
}

const preferred: Readonly<Record<Profile, RecoveryWay>> = {
  '2008': 'on-host',
  '2012': 'on-host',
  '2012r2': 'in-guest',
  modern: 'by-reading',
}

const becauseOf: Readonly<Record<RecoveryWay, string>> = {
  'by-reading': 'all volumes of the guest are classic LVM: their snapshots are read and written back without any mount',
  'on-host': 'a helper VM of the host rolls the copies back, as before 2012 R2',
  'in-guest': 'the copies are hot-added to the VM over SCSI, as in 2012 R2',
}

export function chooseRecovery(
  vm: VmFacts,
  guest: GuestFacts,
  { profile, recovery }: BackupPolicy,
  disks: readonly VirtualDisk[],
): RecoveryChoice {
  const volumes = descriptionOf(guest)?.volumes ?? []
  const wanted = recovery === 'auto' ? preferred[profile] : recovery
  const conditions = conditionsOf(wanted, vm, volumes)
  const unmet = conditions.filter(({ met }) => !met).map(({ detail }) => detail)
  const rolledBack = disks.flatMap(({ target }) => {
    const held = volumes.filter(({ targets }) => targets.includes(target))
    return held.length === 0 ? [] : [{ target, because: `holds ${listText(held.map(volumeText))}` }]
  })
  const what = { disks: rolledBack, volumes: volumes.map(({ where }) => where) }
  if (recovery !== 'auto') {
    return { plan: { way: wanted, because: 'asked for', ...what }, conditions, obstacles: unmet }
  }
  const [reason] = unmet
  const plan: RecoveryPlan =
    reason === undefined
      ? { way: wanted, because: becauseOf[wanted], ...what }
      : { way: 'on-host', because: `not ${wanted}: ${reason}`, ...what }
  return { plan, conditions, obstacles: [] }
}

function conditionsOf(way: RecoveryWay, vm: VmFacts, volumes: readonly GuestVolume[]): Condition[] {
  const neededFor = [way]
  switch (way) {
    case 'on-host':
      return []
    case 'by-reading': {
      const others = volumes.filter(({ kind }) => kind !== 'lvm')
      return [
        {
          name: 'every volume of the guest is a classic LVM volume',
          met: volumes.length > 0 && others.length === 0,
          detail: volumes.length === 0 ? 'volume kinds not known: the guest has not told of any' : kindsText(others),
          neededFor,
        },
      ]
    }
    case 'in-guest':
      return [
        {
          name: 'copies can be hot-added over SCSI',
          met: vm.hotAddsScsi,
          detail: vm.hotAddsScsi ? 'the VM has a virtio-scsi controller' : 'the VM has no virtio-scsi controller',
          neededFor,
        },
      ]
  }
}

const kindsText = (others: readonly GuestVolume[]): string =>
  others.length === 0 ? 'all of them' : `not a classic LVM volume: ${listText(others.map(volumeText))}`
