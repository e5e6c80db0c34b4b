/**
 * V1: the roles are contracts that anyone can implement. The Files writer of src/files works beside a writer of another
 * kind, each with its own provider, in one snapshot set, all or none; and its files come back.
 */
import assert from 'node:assert/strict'
import { readdir, rename } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { describe, test } from 'node:test'
import { Cleanup } from '../../src/base/cleanup.ts'
import { systemClock } from '../../src/base/clock.ts'
import { primaryError } from '../../src/base/failure.ts'
import { CopyingProvider } from '../../src/files/copying-provider.ts'
import { extractTree } from '../../src/files/extract-tree.ts'
import { FilesRestore } from '../../src/files/files-restore.ts'
import { FilesWriter } from '../../src/files/files-writer.ts'
import { filesUndoHandlers } from '../../src/files/undo.ts'
import { BackupComponents } from '../../src/vss/backup-components.ts'
import { refOf } from '../../src/vss/components.ts'
import { RestoreComponents } from '../../src/vss/restore-components.ts'
import type { ComponentRestorePlan } from '../../src/vss/restore-plan.ts'
import type { FileRestoreStatus } from '../../src/vss/vocabulary.ts'
import { filesIn, HostApplication } from '../sim/host-application.ts'
import { bytesAsSource, Recorder, RecordingProvider, RecordingWriter } from '../sim/recording.ts'
import { undoLog } from '../sim/undo-log.ts'
import { assertTrace } from './trace.ts'
import { addEverything, world } from './world.ts'

async function ledger() {
  const application = await HostApplication.begin()
  const recorder = new Recorder()
  const restore = new FilesRestore()
  const files = new FilesWriter({ directories: [application.settings], instant: 'set', restore })
  const vms = new RecordingWriter(recorder, 'VM Writer', [{ name: 'web01' }])
  const work = join(application.base, 'work')
  const copier = new CopyingProvider({ workDirectory: work, clock: systemClock })
  const provider = new RecordingProvider(recorder)
  const host = world({
    recorder,
    writers: [vms, files],
    providers: [provider, copier],
    undoHandlers: filesUndoHandlers,
  })
  return {
    ...host,
    application,
    vms,
    files,
    restore,
    provider,
    /** What is left of copies. */
    residue: () => readdir(work).catch(() => []),
    [Symbol.asyncDispose]: () => application[Symbol.asyncDispose](),
  }
}

/** Backs everything up and answers with the bytes of each copy. */
async function backUpFiles(host: Awaited<ReturnType<typeof ledger>>) {
  await using components = BackupComponents.initializeForBackup(host.service, 'full')
  await addEverything(components)
  await components.startSnapshotSet()
  await components.addVolumesOfComponents()
  await components.prepareForBackup()
  const { copies, instants } = await components.doSnapshotSet()
  await host.application.write('accounts', 'balance 999, written after the instant')
  const stored = new Map<string, Uint8Array>()
  for (const copy of copies) {
    await using source = await copy.open()
    const bytes = new Uint8Array(source.sizeBytes)
    await source.read(0, bytes)
    stored.set(copy.volume.id, bytes)
  }
  for (const component of components.selected) components.setBackupSucceeded(refOf(component), true)
  await components.backupComplete()
  return { stored, instants, documents: components.documents() }
}

type Made = Awaited<ReturnType<typeof backUpFiles>>

const archiveOf = ({ stored }: Made) => bytesAsSource(stored.get('ledger/files') ?? new Uint8Array(), 'ledger')
const unhurried = { signal: new AbortController().signal, onProgress: () => undefined }

/** What the requester does before PreRestore: the plan, and every file staged. */
async function stageFiles(host: Awaited<ReturnType<typeof ledger>>, made: Made): Promise<ComponentRestorePlan> {
  const all = made.documents.components.writers.flatMap(({ components }) => components)
  const one = all.find(({ component }) => component.writerId === host.files.id)
  assert.ok(one)
  const { component, metadata } = one
  const sizeBytes = made.stored.get('ledger/files')?.length ?? 0
  const request = { networks: {}, start: false }
  const plan = await host.restore.planRestore(
    { component, metadata, streams: { 'disks/files': sizeBytes }, documents: {} },
    request,
  )
  assert.deepEqual(plan.obstacles, [])
  for (const { staged } of plan.targets) {
    await host.service.undo.defer({ undo: 'remove-trees', paths: [staged] })
    await extractTree(archiveOf(made), staged, unhurried)
  }
  return plan
}

describe('two unrelated writers in one snapshot set (V1)', () => {
  test('are frozen together, and each volume is copied by the provider that can', async () => {
    await using host = await ledger()
    const made = await backUpFiles(host)
    assert.deepEqual([...made.stored.keys()].toSorted(), ['ledger/files', 'web01/disk'])
    const out = join(host.application.base, 'out')
    await extractTree(archiveOf(made), out, unhurried)
    assert.deepEqual(await filesIn(out), { accounts: 'balance 10', journal: 'entry 1' })
    assert.deepEqual(made.instants.map(({ component }) => component).toSorted(), ['ledger', 'web01'])
    assertTrace(
      host.recorder.entries.filter(({ event }) => ['Freeze', 'CommitSnapshots', 'Thaw'].includes(event)),
      `
      Freeze           VM Writer
      Freeze           Umbra Files Writer
      CommitSnapshots  provider            web01 disk
      Thaw             VM Writer
      Thaw             Umbra Files Writer`,
    )
    assert.deepEqual(await host.application.calls(), ['freeze', 'thaw'])
    assert.deepEqual(await host.residue(), [])
    assert.equal(await host.application.frozen(), false)
  })

  for (const step of ['PrepareForSnapshot', 'Freeze', 'Thaw', 'PostSnapshot'] as const) {
    test(`a veto of the VMs at ${step} keeps the files from being backed up, and their application runs on`, async () => {
      await using host = await ledger()
      host.recorder.breakStep('VM Writer', step, 'fail-after')
      await assert.rejects(backUpFiles(host), { code: 'VSS_WRITER_VETO' })
      assert.equal(await host.application.frozen(), false)
      assert.deepEqual(await host.residue(), [])
      await host.application.write('journal', 'entry 2')
    })
  }

  for (const trouble of ['freeze fails', 'freeze hangs', 'thaw fails'] as const) {
    test(`a hook whose ${trouble} keeps the VMs from being backed up, and they run on`, async () => {
      await using host = await ledger()
      await host.application.trouble(trouble)
      const [freezeMs, code] = trouble === 'freeze hangs' ? [200, 'VSS_WRITER_TIMEOUT'] : [5_000, 'VSS_WRITER_VETO']
      const files = new FilesWriter({ directories: [{ ...host.application.settings, freezeMs }], instant: 'set' })
      const { vms } = host
      // The hook that can not thaw fails again when the session ends: what was wrong first is what counts.
      const backedUp = backUpFiles({ ...host, service: { ...host.service, writers: [vms, files] } })
      const failed = backedUp.catch((error) => Promise.reject(primaryError(error)))
      await assert.rejects(failed, { code, message: /ledger: / })
      assert.deepEqual([...vms.state.frozen], [], 'no VM is frozen')
      assert.deepEqual([...host.provider.copies.keys()], [], 'no copy of a VM is left')
      assert.deepEqual(await host.residue(), [])
      assert.equal(await host.application.frozen(), false)
    })
  }

  test('a tree that can not be copied keeps the VMs from being backed up', async () => {
    await using host = await ledger()
    const copier = new CopyingProvider({ workDirectory: join(host.application.base, 'work'), limitBytes: 1 })
    const service = { ...host.service, providers: [host.provider, copier] }
    await assert.rejects(backUpFiles({ ...host, service }), { code: 'VSS_PROVIDER_VETO', message: /ledger holds/ })
    assert.deepEqual([...host.provider.copies.keys()], [])
    assert.deepEqual(await host.application.calls(), [], 'nothing was frozen for it')
  })

  test('an application that was frozen when its host died is thawed by the undo record alone', async () => {
    await using host = await ledger()
    const { records, log } = undoLog()
    const undo = new Cleanup(log, {})
    const { components } = await host.files.onIdentify()
    const { signal } = host.controller
    const session = { snapshotSetId: 's', components, undo, emit: host.service.emit, signal }
    await host.files.onPrepareSnapshot(session)
    await host.files.onFreeze(session)
    assert.equal(await host.application.frozen(), true)
    const stored = JSON.parse(JSON.stringify([...records.values()])) as { undo: string }[]
    for (let run = 0; run < 2; run++) for (const record of stored) await filesUndoHandlers[record.undo]?.(record)
    assert.equal(await host.application.frozen(), false)
  })
})

const since = { accounts: 'balance 999, written after the instant', journal: 'entry 1' }

describe('a restore (R1, R3)', () => {
  async function restore(host: Awaited<ReturnType<typeof ledger>>, status: FileRestoreStatus | undefined) {
    const made = await backUpFiles(host)
    const plan = await stageFiles(host, made)
    host.recorder.entries.length = 0
    const { writers, undo, emit } = host.service
    const all = made.documents.components.writers.flatMap(({ components }) => components)
    await using components = RestoreComponents.initializeForRestore({ writers, undo, emit }, all)
    components.setSelectedForRestore(plan.component)
    await components.preRestore()
    if (status !== 'none') for (const { staged, path } of plan.targets) await rename(staged, path)
    if (status !== undefined) components.setFileRestoreStatus(plan.component, status)
    await components.postRestore()
  }

  test('goes PreRestore, files, PostRestore, and only the writer concerned hears of it', async () => {
    await using host = await ledger()
    await restore(host, 'all')
    assertTrace(
      host.recorder.entries.filter(({ event }) => event !== 'Files'),
      `
      PreRestore   Umbra Files Writer
      PostRestore  Umbra Files Writer`,
    )
    await host.service.undo[Symbol.asyncDispose]()
    assert.deepEqual(await filesIn(host.application.directory), { accounts: 'balance 10', journal: 'entry 1' })
    assert.deepEqual(await besides(host), [], 'nothing is left beside it')
  })

  for (const status of ['failed', 'none', 'undefined', undefined] as const) {
    test(`with the file status ${status ?? 'not even told'} ends in a veto, and what was there before comes back`, async () => {
      await using host = await ledger()
      await assert.rejects(restore(host, status), { code: 'VSS_WRITER_VETO', message: /^no VM was restored: ledger: / })
      assert.deepEqual(await filesIn(host.application.directory), since)
      await host.service.undo[Symbol.asyncDispose]()
      assert.deepEqual(await filesIn(host.application.directory), since)
      assert.deepEqual(await besides(host), [])
    })
  }

  for (const placed of [false, true]) {
    test(`that ends between PreRestore and PostRestore, the files ${placed ? '' : 'not '}in place, is put right by the undo`, async () => {
      await using host = await ledger()
      const made = await backUpFiles(host)
      const plan = await stageFiles(host, made)
      const all = made.documents.components.writers.flatMap(({ components }) => components)
      const { writers, undo, emit } = host.service
      {
        await using components = RestoreComponents.initializeForRestore({ writers, undo, emit }, all)
        components.setSelectedForRestore(plan.component)
        await components.preRestore()
        assert.equal((await besides(host)).length, 2, 'the former directory stands aside, the new one is staged')
        if (placed) for (const { staged, path } of plan.targets) await rename(staged, path)
      }
      await undo[Symbol.asyncDispose]()
      assert.deepEqual(await filesIn(host.application.directory), since)
      assert.deepEqual(await besides(host), [])
    })
  }

  test('never removes what somebody else has put into the place meanwhile', async () => {
    await using host = await ledger()
    const { directory } = host.application
    const record = { undo: 'take-back-files', path: directory, aside: null, inode: '1' }
    await filesUndoHandlers['take-back-files']?.(record)
    assert.deepEqual(await filesIn(directory), { accounts: 'balance 10', journal: 'entry 1' })
  })

  test('takes its calls in order only, and never an unknown component', async () => {
    await using host = await ledger()
    const made = await backUpFiles(host)
    const all = made.documents.components.writers.flatMap(({ components }) => components)
    const { writers, undo, emit } = host.service
    await stageFiles(host, made)
    const components = RestoreComponents.initializeForRestore({ writers, undo, emit }, all)
    const ref = { writerId: host.files.id, type: 'filegroup', logicalPath: '', name: 'ledger' } as const
    assert.throws(() => components.setFileRestoreStatus(ref, 'all'), { code: 'VSS_BAD_STATE' })
    await assert.rejects(components.postRestore(), { code: 'VSS_BAD_STATE' })
    assert.throws(() => components.setSelectedForRestore({ ...ref, name: 'other' }), { code: 'VSS_BAD_STATE' })
    await components.preRestore()
    assert.throws(() => components.setSelectedForRestore(ref), { code: 'VSS_BAD_STATE' })
    await assert.rejects(components.preRestore(), { code: 'VSS_BAD_STATE' })
    await components[Symbol.asyncDispose]()
    await assert.rejects(components.postRestore(), { code: 'VSS_BAD_STATE' })
  })

  test('gathers the vetoes of all writers, and tells them once', async () => {
    await using host = await ledger()
    const made = await backUpFiles(host)
    const all = made.documents.components.writers.flatMap(({ components }) => components)
    const { writers, undo, emit } = host.service
    await stageFiles(host, made)
    await using components = RestoreComponents.initializeForRestore({ writers, undo, emit }, all)
    for (const { component } of all) components.setSelectedForRestore(component)
    await components.preRestore()
    await assert.rejects(components.postRestore(), {
      message:
        /^no VM was restored: web01: files: undefined; ledger: .*not all of its files were restored \(undefined\)$/,
    })
  })
})

/** What lies beside the directory that a restore put there. */
async function besides({ application }: Awaited<ReturnType<typeof ledger>>): Promise<string[]> {
  return (await readdir(dirname(application.directory))).filter((name) => name.includes('.umbra-'))
}
