/**
 * Runs parts of the fault matrix on threads of their own: beside each other, and without the test runner's hooks on every
 * promise, which would double the time.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { availableParallelism } from 'node:os'
import type { TestContext } from 'node:test'
import { Worker } from 'node:worker_threads'
import type { Cases, MatrixResult } from './matrix.ts'

export interface MatrixJob extends Cases {
  readonly scenario: string
}

export class MatrixPool {
  readonly size = Math.min(4, availableParallelism())
  readonly #idle: Worker[] = []
  readonly #all: Worker[] = []

  /** Fails with every case that ended badly, each with what it takes to run it again. */
  async run(t: TestContext, job: MatrixJob): Promise<void> {
    const worker = this.#idle.pop() ?? this.#start()
    worker.postMessage(job)
    const [result] = (await once(worker, 'message')) as [MatrixResult | { error: string }]
    this.#idle.push(worker)
    if ('error' in result) assert.fail(result.error)
    t.diagnostic(`${result.cases} cases`)
    assert.equal(result.bad.length, 0, `${result.bad.length} of ${result.cases} ended badly\n${result.bad.join('\n')}`)
  }

  async close(): Promise<void> {
    for (const worker of this.#all) await worker.terminate()
  }

  #start(): Worker {
    const worker = new Worker(new URL('./matrix-worker.ts', import.meta.url))
    this.#all.push(worker)
    return worker
  }
}
