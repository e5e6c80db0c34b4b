/**
 * The watchdog process of one session (src/requester/watchdog.ts). The first line it is told is the path of the session's
 * journal; when there is none it has nothing to do.
 */
import { open } from 'node:fs/promises'
import { dirname } from 'node:path'
import { runUndo } from '../base/cleanup.ts'
import { systemClock } from '../base/clock.ts'
import { openHypervisor, recover, thawSteps, undoHandlers } from '../compose.ts'
import { readJournal } from '../requester/journal.ts'
import { followSession, linesOf } from '../requester/watchdog.ts'

const thawLimitMs = 20_000
const pauseMs = 2000

const lines = linesOf(process.stdin)
const { value: journal } = await lines.next()
if (journal === undefined) process.exit()

// The journal open and the hypervisor connected before the session freezes anything, so that a thaw needs nothing new.
await using file = await open(journal)
const { header } = readJournal(await journalText())
await using hypervisor = await openHypervisor({ connect: header.uri })
process.stdout.write('ready\n')

async function journalText(): Promise<string> {
  const text = Buffer.alloc((await file.stat()).size)
  const { bytesRead } = await file.read(text, 0, text.length, 0)
  return text.toString('utf8', 0, bytesRead)
}

/** Umbra is alive but hangs with a guest or an application frozen: thaw, and leave the rest to it. */
async function thawAll(): Promise<void> {
  const { left } = readJournal(await journalText())
  const thaws = left.filter(({ undo }) => thawSteps.includes(undo))
  await Promise.allSettled(thaws.map((record) => runUndo(record, undoHandlers(hypervisor), systemClock, thawLimitMs)))
}

/** A guest that is too busy to answer may answer a moment later, and nobody else may come for hours. */
async function recoverAll(journal: string): Promise<void> {
  for (let triesLeft = 10; triesLeft > 0; triesLeft -= 1) {
    const recovered = await recover({ stateDirectory: dirname(dirname(journal)) }, journal)
    if (recovered.every(({ failed }) => failed.length === 0)) return
    await systemClock.sleep(pauseMs)
  }
}

const end = await followSession(lines, systemClock, thawAll)
if (end === 'broken off') await recoverAll(journal)
