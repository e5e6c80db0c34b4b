/**
 * The thread of power-cut.test.ts: runs one matrix after the other, and answers each with what failed, as text.
 */
import { inspect } from 'node:util'
import { parentPort } from 'node:worker_threads'
import { runMatrix } from './power-cut-matrix.ts'

parentPort?.on('message', ({ scenario, matrix }: { scenario: string; matrix: string }) => {
  runMatrix(scenario, matrix).then(
    () => parentPort?.postMessage(undefined),
    (error) => parentPort?.postMessage(inspect(error, { depth: 8 })),
  )
})
