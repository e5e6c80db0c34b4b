/**
 * The Files writer and the copying provider pass the contracts of their roles; and what a hook may do wrong.
 */
import assert from 'node:assert/strict'
import { chmod, mkdir, readdir, readFile, rm, symlink, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { providerContract } from '../../test/contract/provider.contract.ts'
import { writerContract } from '../../test/contract/writer.contract.ts'
import { HostApplication } from '../../test/sim/host-application.ts'
import { undoLog } from '../../test/sim/undo-log.ts'
import { Cleanup } from '../base/cleanup.ts'
import type { ProviderSession } from '../vss/provider.ts'
import type { WriterSession } from '../vss/writer.ts'
import { CopyingProvider } from './copying-provider.ts'
import { DirectorySource } from './directory-source.ts'
import { FilesWriter } from './files-writer.ts'
import { filesUndoHandlers } from './undo.ts'

const writerOf = (application: HostApplication, more: object = {}) =>
  new FilesWriter({ directories: [{ ...application.settings, ...more }], instant: 'vm' })

writerContract('the Files writer', async () => {
  const application = await HostApplication.begin()
  return {
    writer: writerOf(application),
    undoHandlers: filesUndoHandlers,
    state: () => application.state(),
    [Symbol.asyncDispose]: () => application[Symbol.asyncDispose](),
  }
})

providerContract('the copying provider', async () => {
  const application = await HostApplication.begin()
  const workDirectory = join(application.base, 'work')
  const { components } = await writerOf(application).onIdentify()
  return {
    provider: new CopyingProvider({ workDirectory }),
    volumes: components.flatMap(({ volumes }) => volumes),
    undoHandlers: filesUndoHandlers,
    change: () => application.write('accounts', `balance ${crypto.randomUUID()}`),
    content: () => archiveOf(application.directory),
    residue: () => readdir(workDirectory).catch(() => []),
    [Symbol.asyncDispose]: () => application[Symbol.asyncDispose](),
  }
})

async function archiveOf(directory: string): Promise<Uint8Array> {
  await using source = await DirectorySource.open(directory)
  const bytes = new Uint8Array(source.sizeBytes)
  await source.read(0, bytes)
  return bytes
}

/** A process that has ended and that nobody has waited for yet is not alive. */
async function isAlive(pid: number): Promise<boolean> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => 'State:\tX')
  return !/^State:\s+[XZ]/m.test(status)
}

async function sessionOf(writer: FilesWriter): Promise<WriterSession & { controller: AbortController }> {
  const { components } = await writer.onIdentify()
  const controller = new AbortController()
  const undo = new Cleanup(undoLog().log, filesUndoHandlers)
  const emit = () => undefined
  return { snapshotSetId: crypto.randomUUID(), components, undo, emit, signal: controller.signal, controller }
}

describe('the hook of a directory', () => {
  it('that fails is a veto in its own words, and is thawed all the same', async () => {
    await using application = await HostApplication.begin()
    await application.trouble('freeze fails')
    const writer = writerOf(application)
    const session = await sessionOf(writer)
    await writer.onPrepareSnapshot(session)
    const [veto] = await writer.onFreeze(session)
    assert.equal(veto?.component, 'ledger')
    assert.match(veto?.reason ?? '', /could not freeze it: .*the ledger is being closed/)
    assert.equal(await application.frozen(), true, 'a freeze that reported failure may still have frozen')
    assert.deepEqual(await writer.onThaw(session), [])
    assert.equal(await application.frozen(), false)
  })

  it('that hangs is killed at its limit, which is a veto for time', async () => {
    await using application = await HostApplication.begin()
    await application.trouble('freeze hangs')
    const writer = writerOf(application, { freezeMs: 200 })
    const session = await sessionOf(writer)
    await writer.onPrepareSnapshot(session)
    const beganMs = Date.now()
    const [veto] = await writer.onFreeze(session)
    assert.ok(Date.now() - beganMs < 5_000)
    assert.equal(veto?.code, 'VSS_E_WRITERERROR_TIMEOUT')
    // A process that was killed takes a moment to be gone.
    const pid = await application.hangingPid()
    for (let waits = 0; waits < 500 && (await isAlive(pid)); waits += 1) await sleep(10)
    assert.equal(await isAlive(pid), false, 'what the hook has started is killed too')
    await writer.onThaw(session)
    assert.equal(await application.frozen(), false)
    assert.deepEqual(await application.calls(), ['freeze', 'thaw'])
  })

  it('that hangs when the window closes is killed before its thaw begins', async () => {
    await using application = await HostApplication.begin()
    await application.trouble('freeze hangs')
    const writer = writerOf(application)
    const session = await sessionOf(writer)
    await writer.onPrepareSnapshot(session)
    const freezing = writer.onFreeze(session)
    while (!(await application.frozen())) await new Promise(setImmediate)
    const thawing = writer.onThaw(session)
    await sleep(100)
    assert.deepEqual(await application.calls(), ['freeze'], 'no thaw overtakes a freeze')
    session.controller.abort(new Error('the window has expired'))
    assert.deepEqual(await thawing, [])
    assert.equal((await freezing).length, 1)
    assert.equal(await application.frozen(), false)
    assert.deepEqual(await application.calls(), ['freeze', 'thaw'])
  })

  it('whose thaw fails is a veto, and stays registered to be tried again', async () => {
    await using application = await HostApplication.begin()
    await application.trouble('thaw fails')
    const writer = writerOf(application)
    const session = await sessionOf(writer)
    await writer.onPrepareSnapshot(session)
    await writer.onFreeze(session)
    assert.equal((await writer.onThaw(session)).length, 1)
    await application.trouble('none')
    await session.undo[Symbol.asyncDispose]()
    assert.deepEqual(await application.calls(), ['freeze', 'thaw', 'thaw'])
  })

  it('may leave a program in the background that holds the application at rest', async () => {
    await using application = await HostApplication.begin()
    const { hook } = application.settings
    const pidFile = join(application.base, 'holder')
    await writeFile(
      hook,
      `#!/bin/sh\n[ $1 = freeze ] && { sleep 60 & echo $! > ${pidFile}; exit 0; }\nkill $(cat ${pidFile})\n`,
    )
    const writer = writerOf(application)
    const session = await sessionOf(writer)
    await writer.onPrepareSnapshot(session)
    assert.deepEqual(await writer.onFreeze(session), [])
    process.kill(Number(await readFile(pidFile, 'utf8')), 0)
    assert.deepEqual(await writer.onThaw(session), [])
  })

  it('that is missing, not to be run, or anybody may write, is an obstacle at Identify', async () => {
    await using application = await HostApplication.begin()
    const obstacles = async () => (await writerOf(application).onIdentify()).components[0]?.obstacles ?? []
    const { hook } = application.settings
    assert.deepEqual(await obstacles(), [])
    await chmod(hook, 0o777)
    assert.match((await obstacles()).join(), /can be changed by others/)
    await chmod(hook, 0o644)
    assert.match((await obstacles()).join(), /can not be run/)
    await rm(hook)
    assert.match((await obstacles()).join(), /there is no hook/)
    await rm(application.directory, { recursive: true })
    assert.match((await obstacles()).join(), /there is no directory/)
    await symlink('/etc', application.directory)
    assert.match((await obstacles()).join(), /is not a directory/)
  })
})

describe('the copying provider', () => {
  const providerSession = (): ProviderSession => ({
    snapshotSetId: 's',
    undo: new Cleanup(undoLog().log, filesUndoHandlers),
    emit: () => undefined,
    signal: new AbortController().signal,
    abandon: () => undefined,
  })

  it('refuses a tree above its limit before anything is frozen, and says what could be done', async () => {
    await using application = await HostApplication.begin()
    await truncate(join(application.directory, 'accounts'), 3 * 1024 * 1024)
    const provider = new CopyingProvider({ workDirectory: join(application.base, 'work'), limitBytes: 2 * 1024 * 1024 })
    const { components } = await writerOf(application).onIdentify()
    const session = providerSession()
    for (const volume of components[0]?.volumes ?? []) await provider.beginPrepareSnapshot(session, volume)
    await assert.rejects(provider.endPrepareSnapshots(session), {
      code: 'FILES_TOO_LARGE',
      message: /holds 4194304 bytes; while writes are held at most 2097152/,
      hint: /btrfs or XFS.*filesCopyLimitBytes/,
    })
    await provider.abortSnapshots(session)
    assert.deepEqual(await readdir(join(application.base, 'work')), [])
  })

  it('refuses to copy a directory into itself', async () => {
    await using application = await HostApplication.begin()
    const workDirectory = join(application.directory, 'state/work')
    await mkdir(workDirectory, { recursive: true })
    const { components } = await writerOf(application).onIdentify()
    for (const volume of components[0]?.volumes ?? []) {
      await assert.rejects(new CopyingProvider({ workDirectory }).beginPrepareSnapshot(providerSession(), volume), {
        code: 'FILES_NOT_COPIED',
      })
    }
  })
})

describe('the undo steps of files', () => {
  for (const record of [
    { undo: 'remove-trees', paths: ['/etc'] },
    { undo: 'remove-trees', paths: ['/srv/web.umbra-old-00000000/../web'] },
    { undo: 'remove-copied-files', path: '/etc/passwd' },
    { undo: 'take-back-files', path: '/srv/web', aside: '/etc', inode: '2' },
    { undo: 'thaw-files', name: 'x', directory: '/x', hook: 'relative' },
  ]) {
    it(`refuse a record of theirs that names something else: ${JSON.stringify(record)}`, async () => {
      await assert.rejects(async () => filesUndoHandlers[record.undo]?.(record), { name: 'ZodError' })
    })
  }
})
