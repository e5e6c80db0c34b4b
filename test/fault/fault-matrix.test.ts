/**
 * The fault matrix of a backup: every call of every port fails, hangs, is cancelled and is the last one of its process, in
 * turn. Afterwards the host is as it was and a point is complete or not there (S1; laws 1, 2, 3, 6, 7, 8, 12). With one instant
 * for the whole set every second call: the calls are those of one instant for each VM. UMBRA_TEST_EVERY_FAULT=1 runs all.
 */
import { after, describe, test } from 'node:test'
import { backupScenarios } from './backup-scenarios.ts'
import { everyFault } from './matrix.ts'
import { MatrixPool } from './matrix-pool.ts'

const pool = new MatrixPool()
after(() => pool.close())

describe('the fault matrix of a backup', { concurrency: pool.size }, () => {
  for (const scenario of Object.keys(backupScenarios)) {
    const oneOf = !everyFault && scenario.endsWith('for each set') ? 2 : 1
    // Nearly the same as after the call before.
    if (everyFault)
      test(`${scenario}, killed before any call`, (t) => pool.run(t, { scenario, faults: ['kill before'] }))
    test(`${scenario}, killed after any call`, (t) => pool.run(t, { scenario, faults: ['kill after'], oneOf }))
    test(`${scenario}, with any call of the hypervisor or a guest hanging`, (t) =>
      pool.run(t, { scenario, faults: ['hang before', 'hang after'], at: 'hypervisor', oneOf }))
    // Saved state does the same at one instant as at several.
    if (scenario === 'a backup by saved state, one instant for each set') continue
    test(`${scenario}, with any call failing`, (t) =>
      pool.run(t, { scenario, faults: ['fail before'], at: 'may fail', oneOf }))
    test(`${scenario}, with any deed done and reported as failed`, (t) =>
      pool.run(t, { scenario, faults: ['fail after'], at: 'ports', oneOf }))
    test(`${scenario}, cancelled at any call`, (t) =>
      pool.run(t, { scenario, faults: ['cancel after'], at: 'ports', oneOf }))
  }
})
