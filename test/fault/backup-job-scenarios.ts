/**
 * The backups of the fault matrix whose instant is a backup job with change tracking: a first one, one that builds on an
 * earlier recovery point, and both while the QEMU process of a VM dies and ours lives on.
 */
import type { BackupResult } from '../../src/requester/backup.ts'
import type { SimVmSpec } from '../sim/sim-world.ts'
import { type JobHost, jobPolicy, jobProcess, old95, prepareJobHost, web01 } from './backup-job-host.ts'
import { afterJobBackup } from './backup-job-judge.ts'
import type { Scenario } from './matrix.ts'

export interface BackupJobScenario extends Scenario<BackupResult, JobHost> {
  /** Whether a fault that would cancel the backup is the death of a VM's process. */
  readonly dies: boolean
  /** What a case takes, roughly. */
  readonly weight: number
}

interface Kind {
  readonly vms: Record<string, SimVmSpec>
  readonly earlier: boolean
}

const first: Kind = { vms: { web01 }, earlier: false }
const incremental: Kind = { vms: { web01, old95 }, earlier: true }

/** `dies`: a VM whose process dies at the call at which the plan would cancel the backup. */
function scenario(kind: Kind, dies?: string): BackupJobScenario {
  return {
    prepare: () => prepareJobHost(kind.vms, kind),
    async run(job, plan) {
      const { host } = job
      if (dies !== undefined)
        plan.signal.addEventListener('abort', () => {
          job.died = dies
          host.world.killVm(dies)
        })
      const signal = dies === undefined ? plan.signal : new AbortController().signal
      const incarnation = jobProcess(host, plan, { signal })
      return { incarnation, outcome: await incarnation.backup(jobPolicy) }
    },
    judge: afterJobBackup,
    dies: dies !== undefined,
    weight: kind.earlier ? 2 : 1,
  }
}

export const backupJobScenarios: Readonly<Record<string, BackupJobScenario>> = {
  'a first backup by a job': scenario(first),
  'an incremental backup by jobs of two VMs': scenario(incremental),
  'a first backup by a job, whose VM dies': scenario(first, 'web01'),
  'an incremental backup by jobs of two VMs, one of which dies': scenario(incremental, 'web01'),
}
