/**
 * What must be true of a repository after a power cut, a kill or a failed operation: it opens, what it lists is whole, what was
 * reported as done is listed, the next backup works, and nothing half done is left.
 */
import assert from 'node:assert/strict'
import { Failure } from '../../src/base/failure.ts'
import type { Repository } from '../../src/repository/repository.ts'
import { errorCode } from '../../src/repository/storage/repository-files.ts'
import { bytesOf, chunkSizeBytes, copyOfLedger, directory, type Ledger, PowerCutProcess } from './power-cut-scenario.ts'
import type { UnsyncedFiles } from './unsynced-files.ts'
import { nothingUnsynced } from './unsynced-files-tree.ts'

/** The seed of the backup that follows. */
const nextSeed = 99

/**
 * What is said of packs nobody needs: those of a draft that is over are gone, or a collection follows and leaves none, or
 * nothing, because a collection was at work.
 */
export type PacksLeft = 'none of drafts' | 'none after a collection' | 'any'

/** Judges what a process finds in `files` that had no part in what happened. `files` is used up. */
export async function judge(files: UnsyncedFiles, ledger: Ledger, left: PacksLeft): Promise<void> {
  await forgetLivingWriters(files)
  const process = new PowerCutProcess(files, copyOfLedger(ledger))
  if (!ledger.created) await createAgain(process)
  const repository = await process.repository()
  await judgePoints(repository, process.ledger)
  await process.backUp(nextSeed)
  await judgeAfterAnotherCut(files, process.ledger)
  for (const name of await namesIn(files, 'drafts')) await repository.discardUnfinished(name.replace('.json', ''))
  if (left === 'none after a collection') {
    await repository.collect({ delayMs: 0 })
    await judgeAfterAnotherCut(files, process.ledger)
  }
  await judgeLeftovers(files, repository, left)
  const report = await repository.verify()
  assert.deepEqual([report.damage, report.damagedPoints], [[], []])
  await process.close()
}

/** What was reported as done is there, whatever state of the disk it began with. */
async function judgeAfterAnotherCut(files: UnsyncedFiles, ledger: Ledger): Promise<void> {
  const process = new PowerCutProcess(files.afterPowerCut(nothingUnsynced), ledger)
  await judgePoints(await process.repository(), ledger)
  await process.close()
}

/** A creation that was not reported has left a repository, or a place where one can be made. */
async function createAgain(process: PowerCutProcess): Promise<void> {
  await process.repository().catch((error: unknown) => {
    assert.ok(error instanceof Failure, String(error))
    assert.equal(error.code, 'REPOSITORY_NOT_ONE')
  })
  await process.create()
}

async function judgePoints(repository: Repository, ledger: Ledger): Promise<void> {
  assert.deepEqual(await repository.listDamagedPoints(), [])
  const points = await repository.listPoints()
  const listed = new Set(points.map(({ id }) => id))
  for (const [id, seed] of ledger.committed) {
    assert.ok(listed.has(id) || ledger.deleting.has(id), `point ${id} (seed ${seed}) was reported and is not listed`)
  }
  const pins = ledger.pinned.size === 0 ? new Map() : await repository.pins()
  for (const id of ledger.pinned) assert.ok(pins.has(id), `the pin of ${id} was reported and is not there`)
  for (const point of points) {
    const expected = bytesOf(Number(point.content.seed))
    await using source = await point.openStream('disk')
    const found = Buffer.alloc(source.sizeBytes, 0xaa)
    for (let at = 0; at < found.length; at += chunkSizeBytes) {
      await source.read(at, found.subarray(at, at + chunkSizeBytes))
    }
    assert.ok(found.equals(expected), `point ${point.id} has other bytes`)
    assert.equal(Buffer.from(await point.readDocument('seed')).toString(), `seed ${point.content.seed}`)
  }
}

async function judgeLeftovers(files: UnsyncedFiles, repository: Repository, left: PacksLeft): Promise<void> {
  assert.deepEqual(await namesIn(files, 'drafts'), [])
  assert.deepEqual(await namesIn(files, 'tmp'), [])
  if (left === 'any') return
  if (left === 'none after a collection') {
    const { discarded, swept, condemned, waiting } = await repository.collect({ dryRun: true, delayMs: 0 })
    assert.deepEqual([discarded.packs, swept.packs, condemned.packs, waiting], [0, 0, 0, []])
    return
  }
  for (const id of await namesIn(files, 'packs')) {
    const isPublished = (await namesIn(files, `indexes/${id}`)).length > 0
    assert.ok(isPublished || (await namesIn(files, `packs/${id}`)).length === 0, `packs of ${id} are left`)
  }
}

async function namesIn(files: UnsyncedFiles, folder: string): Promise<string[]> {
  const names: string[] = []
  try {
    for await (const { name } of files.entries(`${directory}/${folder}`)) names.push(name)
  } catch (error) {
    assert.equal(errorCode(error), 'ENOENT')
  }
  return names
}

/** This process plays the one that is gone as well: what was written aside gets the mark of an earlier boot. */
async function forgetLivingWriters(files: UnsyncedFiles): Promise<void> {
  for (const name of await namesIn(files, 'tmp')) {
    const ofEarlierBoot = name.replace(/^([0-9a-f]{8})-[0-9a-f]{8}-/, '$1-00000000-')
    await files.rename(`${directory}/tmp/${name}`, `${directory}/tmp/${ofEarlierBoot}`)
  }
}
