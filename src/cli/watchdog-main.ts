/**
 * The watchdog process of one session (src/requester/watchdog.ts): argument 1 is the session's journal.
 */
import { readFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import { runUndo } from '../base/cleanup.ts'
import { systemClock } from '../base/clock.ts'
import { openHypervisor, recover, thawSteps, undoHandlers } from '../compose.ts'
import { readJournal } from '../requester/journal.ts'
import { followSession } from '../requester/watchdog.ts'

const journal = process.argv[2] ?? ''
const thawLimitMs = 20_000
const pauseMs = 2000

// Connected before the session freezes anything, so that a thaw needs nothing new.
const { header } = readJournal(await readFile(journal, 'utf8'))
await using hypervisor = await openHypervisor({ connect: header.uri })
process.stdout.write('ready\n')

/** Umbra is alive but hangs with a guest or an application frozen: thaw, and leave the rest to it. */
async function thawAll(): Promise<void> {
  const { left } = readJournal(await readFile(journal, 'utf8'))
  const thaws = left.filter(({ undo }) => thawSteps.includes(undo))
  await Promise.allSettled(thaws.map((record) => runUndo(record, undoHandlers(hypervisor), systemClock, thawLimitMs)))
}

/** A guest that is too busy to answer may answer a moment later, and nobody else may come for hours. */
async function recoverAll(): Promise<void> {
  for (let triesLeft = 10; triesLeft > 0; triesLeft -= 1) {
    const recovered = await recover({ stateDirectory: dirname(dirname(journal)) }, journal)
    if (recovered.every(({ failed }) => failed.length === 0)) return
    await systemClock.sleep(pauseMs)
  }
}

const end = await followSession(process.stdin, systemClock, thawAll)
if (end === 'broken off') await recoverAll()
