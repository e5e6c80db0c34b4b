/**
 * The fault matrix of a restore. Afterwards the former VM is back with its bytes and its power state, or the restored one is
 * complete; the original of a copy is never touched (S1, R1 to R3; laws 1, 2, 3, 7, 9).
 */
import { after, describe, test } from 'node:test'
import { MatrixPool } from './matrix-pool.ts'
import { restoreScenarios } from './restore-scenarios.ts'

const pool = new MatrixPool()
after(() => pool.close())

describe('the fault matrix of a restore', { concurrency: pool.size }, () => {
  for (const scenario of Object.keys(restoreScenarios)) {
    // One thing after the other: before a call is after the call before it.
    test(`${scenario}, killed after any call`, (t) => pool.run(t, { scenario, faults: ['kill after'] }))
    test(`${scenario}, with any call failing`, (t) => pool.run(t, { scenario, faults: ['fail before'] }))
    test(`${scenario}, with any deed of the hypervisor done and reported as failed`, (t) =>
      pool.run(t, { scenario, faults: ['fail after'], at: 'ports' }))
    test(`${scenario}, cancelled at any call`, (t) => pool.run(t, { scenario, faults: ['cancel after'], at: 'ports' }))
    test(`${scenario}, with any call of the hypervisor hanging until it is killed`, (t) =>
      pool.run(t, { scenario, faults: ['hang before', 'hang after'], at: 'hypervisor' }))
  }
})
