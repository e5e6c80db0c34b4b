/**
 * Two accidents in a row: a process is killed, and its recovery is killed, refused or left hanging at any of its own calls.
 * The next recovery puts everything right; nothing that a VM needs has been thrown away meanwhile (S1; laws 2, 3, 7).
 */
import { after, describe, test } from 'node:test'
import { MatrixPool } from './matrix-pool.ts'
import { recoveryScenarios } from './recovery-scenarios.ts'

const pool = new MatrixPool()
after(() => pool.close())

describe('a recovery', { concurrency: pool.size }, () => {
  for (const scenario of Object.keys(recoveryScenarios)) {
    test(`after ${scenario}, hit at any call`, (t) =>
      pool.run(t, { scenario, faults: ['kill after', 'fail before', 'hang before'] }))
  }
})
