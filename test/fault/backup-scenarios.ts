/**
 * The backups of the fault matrix: two or three VMs with different methods, one instant for each or one for all.
 */
import type { BackupResult } from '../../src/requester/backup.ts'
import { type BackupPolicy, defaultPolicy } from '../../src/vm/method.ts'
import type { SimVmSpec } from '../sim/sim-world.ts'
import { Host, Incarnation, preparedOnce } from './harness.ts'
import { afterBackup } from './judge.ts'
import type { Scenario } from './matrix.ts'

const small = { sizeBytes: 256 * 1024 }
const twoDisks = { sda: small, sdb: small }
const oneDisk = { sda: small }

interface Kind {
  readonly policy: Partial<BackupPolicy>
  readonly vms: Readonly<Record<string, SimVmSpec>>
  readonly instants: readonly BackupPolicy['instant'][]
}

const shops = { shop: { disks: twoDisks }, till: { disks: oneDisk } }

/** Guest-freeze, checkpoint and a VM that is off; saved state of a running and of a paused VM; the guests' own snapshots. */
const methods: Readonly<Record<string, Kind>> = {
  'guest-freeze and checkpoint': {
    policy: { autoRecovery: false }, // so that auto freezes
    vms: {
      web01: { disks: twoDisks, nvram: Buffer.from('variables') },
      old95: { agent: 'none', disks: oneDisk },
      cold: { power: 'off', disks: oneDisk },
    },
    instants: ['vm', 'set'],
  },
  'saved state': {
    policy: { method: 'saved-state' },
    vms: { mail: { disks: twoDisks }, held: { power: 'paused', disks: oneDisk } },
    instants: ['vm', 'set'],
  },
  'child snapshot, rolled back by reading': {
    policy: { method: 'child-snapshot', recovery: 'by-reading' },
    vms: shops,
    instants: ['vm'],
  },
  'child snapshot, rolled back in the guest': {
    policy: { method: 'child-snapshot', recovery: 'in-guest' },
    vms: shops,
    instants: ['set'],
  },
}

export type BackupScenario = Scenario<BackupResult, { host: Host }>

function scenario({ policy, vms }: Kind, instant: BackupPolicy['instant']): BackupScenario {
  return {
    prepare: preparedOnce(async () => ({ host: await Host.create(vms) })),
    async run({ host }, plan) {
      const incarnation = new Incarnation(host, plan)
      return { incarnation, outcome: await incarnation.backup({ ...defaultPolicy, ...policy, instant }) }
    },
    judge: ({ host }, outcome) => afterBackup(host, outcome),
  }
}

export const backupScenarios: Readonly<Record<string, BackupScenario>> = Object.fromEntries(
  Object.entries(methods).flatMap(([name, kind]) =>
    kind.instants.map((instant) => [`a backup by ${name}, one instant for each ${instant}`, scenario(kind, instant)]),
  ),
)
