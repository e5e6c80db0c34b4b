/**
 * The journal against kill -9 for real: a child process does deeds (files that it makes) under a journal and is killed at
 * every point of its script. Whatever was done is undone by the next process, and by nobody twice at once (laws 1, 2; S1).
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import type { UndoHandlers } from '../base/cleanup.ts'
import { recoverInterrupted } from './journal.ts'

/** The points at which the child says where it is, and is killed. */
const points = [
  'begun',
  'first registered',
  'first done',
  'second registered',
  'second done',
  'first replaced',
  'held',
  'second undone while held',
  'released',
  'all undone',
] as const

const script = `
  import { rm, writeFile } from 'node:fs/promises'
  import { Cleanup } from '${new URL('../base/cleanup.ts', import.meta.url).href}'
  import { Journal } from '${new URL('./journal.ts', import.meta.url).href}'
  import { ownProcessMark, processMarkText } from '${new URL('../base/process-mark.ts', import.meta.url).href}'
  const [place, killAt] = process.argv.slice(1)
  const at = (point) => {
    if (point !== killAt) return
    process.kill(process.pid, 'SIGKILL')
    for (;;); // nothing happens after it
  }
  const handlers = { 'remove-file': ({ path }) => rm(path, { force: true }) }
  const content = { session: 'crash', what: 'backup', startedAt: '', uri: 'sim:///', process: processMarkText(await ownProcessMark()) }
  const journal = await Journal.create(place + '/journal', content)
  at('begun')
  const undo = new Cleanup(journal, handlers)
  const first = await undo.defer({ undo: 'remove-file', path: place + '/first' })
  at('first registered')
  await writeFile(place + '/first', '')
  at('first done')
  const second = await undo.defer({ undo: 'remove-file', path: place + '/second' })
  at('second registered')
  await writeFile(place + '/second', '')
  at('second done')
  await undo.supersede(first, { undo: 'remove-file', path: place + '/first' })
  at('first replaced')
  journal.hold(60000)
  at('held')
  await undo.run(second)
  at('second undone while held')
  journal.release()
  at('released')
  await undo[Symbol.asyncDispose]()
  at('all undone')
  await journal[Symbol.asyncDispose]()
  process.stdout.write('ended')
`

let directory = ''
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'umbra-crash-'))
})
after(() => rm(directory, { recursive: true }))

const handlers: UndoHandlers = { 'remove-file': ({ path }) => rm(String(path), { force: true }) }
const options = { handlersFor: async () => handlers }

async function child(killAt: string): Promise<{ place: string; signal: string | null }> {
  const place = await mkdtemp(join(directory, 'case-'))
  await mkdir(join(place, 'journal'))
  const args = ['--input-type=module-typescript', '-e', script, '--', place, killAt]
  const running = spawn(process.execPath, args, { stdio: ['ignore', 'ignore', 'inherit'] })
  const [, signal] = (await once(running, 'exit')) as [number | null, string | null]
  return { place, signal }
}

describe('a session killed by SIGKILL', { concurrency: 2 }, () => {
  for (const point of points) {
    test(`at "${point}" is undone by the next process`, async () => {
      const { place, signal } = await child(point)
      assert.equal(signal, 'SIGKILL')
      // Two at once, as two commands that start at the same time: one waits for the other.
      const [one, other] = await Promise.all([1, 2].map(() => recoverInterrupted(join(place, 'journal'), options)))
      assert.equal((one?.length ?? 0) + (other?.length ?? 0), 1)
      assert.deepEqual([...(one ?? []), ...(other ?? [])][0]?.failed, [])
      assert.deepEqual(await readdir(place), ['journal'])
      assert.deepEqual(await readdir(join(place, 'journal')), [])
    })
  }

  test('never leaves nothing at all', async () => {
    const { place, signal } = await child('never')
    assert.equal(signal, null)
    assert.deepEqual(await readdir(place), ['journal'])
    assert.deepEqual(await readdir(join(place, 'journal')), [])
  })
})
