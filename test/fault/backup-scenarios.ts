/**
 * The backups of the fault matrix: two or three VMs with different methods, one instant for each or one for all.
 */
import type { BackupResult } from '../../src/requester/backup.ts'
import type { BackupPolicy } from '../../src/vm/method.ts'
import type { SimVmSpec } from '../sim/sim-world.ts'
import { Host, Incarnation } from './harness.ts'
import { afterBackup } from './judge.ts'
import type { Scenario } from './matrix.ts'

const small = { sizeBytes: 256 * 1024 }
const twoDisks = { sda: small, sdb: small }
const oneDisk = { sda: small }

/** Guest-freeze, checkpoint and a VM that is off; and saved state of a running and of a paused VM. */
const methods: Readonly<Record<string, { method: BackupPolicy['method']; vms: Record<string, SimVmSpec> }>> = {
  'guest-freeze and checkpoint': {
    method: 'auto',
    vms: {
      web01: { disks: twoDisks, nvram: Buffer.from('variables') },
      old95: { agent: 'none', disks: oneDisk },
      cold: { power: 'off', disks: oneDisk },
    },
  },
  'saved state': {
    method: 'saved-state',
    vms: { mail: { disks: twoDisks }, held: { power: 'paused', disks: oneDisk } },
  },
}

export type BackupScenario = Scenario<BackupResult, { host: Host }>

function scenario(method: string, instant: BackupPolicy['instant']): BackupScenario {
  const { method: wanted, vms } = methods[method] as (typeof methods)[string]
  return {
    prepare: async () => ({ host: await Host.create(vms) }),
    async run({ host }, plan) {
      const incarnation = new Incarnation(host, plan)
      return { incarnation, outcome: await incarnation.backup({ method: wanted, require: 'crash', instant }) }
    },
    judge: ({ host }, outcome) => afterBackup(host, outcome),
  }
}

export const backupScenarios: Readonly<Record<string, BackupScenario>> = Object.fromEntries(
  Object.keys(methods).flatMap((method) =>
    (['vm', 'set'] as const).map((instant) => [
      `a backup by ${method}, one instant for each ${instant}`,
      scenario(method, instant),
    ]),
  ),
)
