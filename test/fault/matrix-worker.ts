/**
 * A thread of the fault matrix: takes a scenario and faults, answers with what ended badly.
 */
import { parentPort } from 'node:worker_threads'
import { backupJobScenarios } from './backup-job-scenarios.ts'
import { backupScenarios } from './backup-scenarios.ts'
import { type MatrixResult, runMatrix } from './matrix.ts'
import type { MatrixJob } from './matrix-pool.ts'
import { recoveryScenarios } from './recovery-scenarios.ts'
import { restoreScenarios } from './restore-scenarios.ts'

parentPort?.on('message', (job: MatrixJob) => {
  run(job).then(
    (result) => parentPort?.postMessage(result),
    (error) =>
      parentPort?.postMessage({ error: error instanceof Error ? (error.stack ?? error.message) : String(error) }),
  )
})

async function run({ scenario, ...cases }: MatrixJob): Promise<MatrixResult> {
  const backup = backupScenarios[scenario]
  if (backup !== undefined) return runMatrix(backup, cases)
  const job = backupJobScenarios[scenario]
  if (job !== undefined) return runMatrix(job, cases)
  const recovery = recoveryScenarios[scenario]
  if (recovery !== undefined) return runMatrix(recovery, cases)
  const restore = restoreScenarios[scenario]
  if (restore === undefined) throw new Error(`there is no scenario ${scenario}`)
  return runMatrix(restore, cases)
}
