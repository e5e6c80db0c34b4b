/**
 * The power goes, the process is killed, or an operation of the disk fails, after every single operation of a scenario:
 * no listed recovery point is ever lost. What is done is in power-cut-scenario.ts, what must be true in power-cut-judge.ts.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { after, before, describe, it } from 'node:test'
import { Worker } from 'node:worker_threads'
import { matrices, withoutHardLinks } from './power-cut-matrix.ts'
import { scenarios } from './power-cut-scenario.ts'

let thread: Worker

before(() => {
  thread = new Worker(new URL('./power-cut-thread.ts', import.meta.url))
})

after(() => thread.terminate())

for (const { name: scenario, collects } of scenarios) {
  describe(scenario, () => {
    for (const matrix of Object.keys(matrices)) {
      if (matrix === withoutHardLinks && collects) continue // a collection puts as a backup does
      it(matrix, async () => {
        thread.postMessage({ scenario, matrix })
        const [failed] = await once(thread, 'message')
        if (failed !== undefined) assert.fail(failed)
      })
    }
  })
}
