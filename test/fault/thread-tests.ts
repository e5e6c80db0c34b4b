/**
 * Tests that do nearly nothing but asynchronous work, by the ten thousands of steps: they run on a thread, because the test runner
 * follows every promise of the main thread, which takes as long again.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { after, test } from 'node:test'
import { inspect } from 'node:util'
import { isMainThread, parentPort, Worker } from 'node:worker_threads'

/** Tests by their names, one after the other. `url`: of the file that calls this; the thread runs the same file. */
export function threadTests(url: string, tests: Readonly<Record<string, () => Promise<void>>>): void {
  if (!isMainThread) {
    parentPort?.on('message', async (name: string) => parentPort?.postMessage(await failureOf(tests[name])))
    return
  }
  let thread: Worker | undefined
  after(() => thread?.terminate())
  for (const name of Object.keys(tests)) {
    test(name, async () => {
      thread ??= new Worker(new URL(url))
      thread.postMessage(name)
      const [failed] = await once(thread, 'message')
      if (failed !== undefined) assert.fail(failed)
    })
  }
}

async function failureOf(run: (() => Promise<void>) | undefined): Promise<string | undefined> {
  try {
    assert.ok(run !== undefined)
    await run()
    return undefined
  } catch (error) {
    return inspect(error, { depth: 8 })
  }
}
