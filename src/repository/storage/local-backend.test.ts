/**
 * The backend in a directory: the contract, and what only a directory has: write-asides of killed writers, full disks.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { backendContract } from '../../../test/contract/backend.contract.ts'
import { Failure } from '../../base/failure.ts'
import { ownProcessMark, processMarkText } from '../../base/process-mark.ts'
import { openLocalBackend } from './local-backend.ts'

async function temporaryPlace() {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-backend-'))
  return {
    folder,
    open: async () => openLocalBackend(folder),
    [Symbol.asyncDispose]: () => rm(folder, { recursive: true, force: true }),
  }
}

backendContract('directory', temporaryPlace)

test('what a dead process wrote aside is swept, what a living one or another host writes is not', async () => {
  await using place = await temporaryPlace()
  const own = await ownProcessMark()
  const child = spawn('true')
  await once(child, 'exit')
  const marks = {
    dead: { ...own, pid: child.pid ?? 0 },
    earlierBoot: { ...own, boot: '00000000' },
    sameNumber: { ...own, startTicks: own.startTicks + 1 },
    living: own,
    elsewhere: { ...own, host: '00000000' },
  }
  await mkdir(path.join(place.folder, 'tmp'))
  for (const mark of Object.values(marks))
    await writeFile(path.join(place.folder, 'tmp', `${processMarkText(mark)}-1-x`), 'x')
  await writeFile(path.join(place.folder, 'tmp', 'not-ours'), 'x')
  await using backend = await place.open()
  await backend.sweep()
  const left = (await readdir(path.join(place.folder, 'tmp'))).sort()
  const kept = ['not-ours', `${processMarkText(marks.living)}-1-x`, `${processMarkText(marks.elsewhere)}-1-x`]
  assert.deepEqual(left, kept.sort())
})

test('a put that fails says where, and leaves nothing', {
  skip: process.getuid?.() === 0 && 'root may write anywhere',
}, async () => {
  await using place = await temporaryPlace()
  await mkdir(path.join(place.folder, 'packs'))
  await chmod(path.join(place.folder, 'packs'), 0o500)
  await using backend = await place.open()
  await assert.rejects(backend.put('packs/a', [Buffer.from('x')]), (error) => {
    assert.ok(error instanceof Failure && error.code === 'REPOSITORY_IO')
    assert.match(error.message, /packs\/a/)
    return true
  })
  assert.deepEqual(await readdir(path.join(place.folder, 'tmp')), [])
})
