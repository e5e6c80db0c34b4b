/**
 * The fault matrix of a backup: every call of every port fails, hangs, is cancelled and is the last one of its process, in
 * turn. Afterwards the host is as it was and a point is complete or not there (S1; laws 1, 2, 3, 6, 7, 8, 12).
 */
import { after, describe, test } from 'node:test'
import { backupScenarios } from './backup-scenarios.ts'
import { MatrixPool } from './matrix-pool.ts'

const pool = new MatrixPool()
after(() => pool.close())

describe('the fault matrix of a backup', { concurrency: pool.size }, () => {
  for (const scenario of Object.keys(backupScenarios)) {
    test(`${scenario}, killed before any call`, (t) => pool.run(t, { scenario, faults: ['kill before'] }))
    test(`${scenario}, killed after any call`, (t) => pool.run(t, { scenario, faults: ['kill after'] }))
    test(`${scenario}, with any call of the hypervisor or a guest hanging`, (t) =>
      pool.run(t, { scenario, faults: ['hang before', 'hang after'], at: 'hypervisor' }))
    // Saved state does the same at one instant as at several.
    if (scenario === 'a backup by saved state, one instant for each set') continue
    test(`${scenario}, with any call failing`, (t) =>
      pool.run(t, { scenario, faults: ['fail before'], at: 'may fail' }))
    test(`${scenario}, with any deed done and reported as failed`, (t) =>
      pool.run(t, { scenario, faults: ['fail after'], at: 'ports' }))
    test(`${scenario}, cancelled at any call`, (t) => pool.run(t, { scenario, faults: ['cancel after'], at: 'ports' }))
  }
})
