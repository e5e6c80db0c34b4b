/**
 * The undo steps of files, by name. Records come back from a journal on disk and are therefore read, not trusted: nothing
 * is removed but what has a name, or the inode, that Umbra gave it.
 */
import { lstat, rename, rm } from 'node:fs/promises'
import { z } from 'zod'
import type { UndoHandlers } from '../base/cleanup.ts'
import { runCommand } from '../base/run-command.ts'
import { runHook } from './hook.ts'

const path = z.string().startsWith('/')
const ofOurs = path.regex(/\.umbra-(new|old)-[0-9a-f]{8}$/)
const removeLimitMs = 30 * 60_000

/** What the copying provider calls its copies. */
export const copySuffix = '.umbra-files'

const records = {
  thaw: z.object({ name: z.string(), directory: path, hook: path }),
  takeBack: z.object({ path, aside: ofOurs.nullable(), inode: z.string() }),
  removeTrees: z.object({ paths: z.array(ofOurs) }),
  removeCopy: z.object({ path: path.endsWith(copySuffix) }),
}

/** Those that can not wait for others: an application stands still until they are done. */
export const filesThawSteps: readonly string[] = ['thaw-files']

export const filesUndoHandlers: UndoHandlers = {
  'thaw-files': (record) => runHook('thaw', records.thaw.parse(record)),
  'remove-trees': async (record) => {
    for (const one of records.removeTrees.parse(record).paths) await removeTree(one)
  },
  'remove-copied-files': (record) => rm(records.removeCopy.parse(record).path, { force: true }),
  /** What was restored goes if it is there; the former directory comes back if it was set aside. */
  'take-back-files': async (record) => {
    const { path: place, aside, inode } = records.takeBack.parse(record)
    if ((await inodeOf(place)) === inode) await removeTree(place)
    if (aside !== null && (await inodeOf(aside)) !== undefined) await rename(aside, place)
  },
}

/** rm(1) goes by open handles, so that nobody who may write in the tree can lead it elsewhere; mounts are left alone. */
async function removeTree(tree: string): Promise<void> {
  if ((await inodeOf(tree)) === undefined) return
  await runCommand('rm', ['-rf', '--one-file-system', '--', tree], { deadlineMs: removeLimitMs, diesWithUs: true })
}

async function inodeOf(place: string): Promise<string | undefined> {
  try {
    return String((await lstat(place, { bigint: true })).ino)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}
