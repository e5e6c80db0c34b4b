/**
 * The fault matrix of a backup by jobs with change tracking: the product's process fails, hangs, is cancelled and dies, and the
 * VM's own process dies. Afterwards the host is as it was, and the next backup is right to the last byte (S1, B1; laws 1, 2,
 * 3, 6, 7, 8). Each case takes three backups: of all pairs of call and fault some are run, spread over both; all of them
 * with UMBRA_TEST_EVERY_FAULT=1.
 */
import { after, describe, test } from 'node:test'
import type { Fault } from '../sim/faulty.ts'
import { backupJobScenarios } from './backup-job-scenarios.ts'
import { type Cases, everyFault } from './matrix.ts'
import { MatrixPool } from './matrix-pool.ts'

const pool = new MatrixPool()
after(() => pool.close())

const timeout = everyFault ? 900_000 : 110_000
const failing: readonly Fault[] = ['fail after', 'hang before', 'fail before', 'cancel after', 'hang after']

describe('the fault matrix of a backup by jobs', { concurrency: pool.size }, () => {
  /** One of so many, unless all of them are run. */
  const some = (oneOf: number) => ({ oneOf: everyFault ? 1 : oneOf })
  for (const [scenario, { dies, weight }] of Object.entries(backupJobScenarios)) {
    const run = (what: string, cases: Cases) =>
      test(`${scenario}, ${what}`, { timeout }, (t) => pool.run(t, { scenario, ...cases }))
    if (dies) {
      run('at some calls', { faults: ['cancel before', 'cancel after'], at: 'ports of jobs', ...some(5 * weight) })
      continue
    }
    run('killed after some calls', { faults: ['kill after'], at: 'jobs', ...some(3 * weight) })
    run('with some calls failing, hanging or cancelled', { faults: failing, at: 'ports of jobs', ...some(6 * weight) })
  }
})
