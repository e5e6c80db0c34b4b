/**
 * V1: the roles are contracts that anyone can implement. A host application with files of its own works beside a writer
 * of another kind, each with its own provider, in one snapshot set; and its files come back.
 */
import assert from 'node:assert/strict'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { Cleanup, memoryUndoLog } from '../../src/base/cleanup.ts'
import { BackupComponents } from '../../src/vss/backup-components.ts'
import { refOf } from '../../src/vss/components.ts'
import { RestoreComponents } from '../../src/vss/restore-components.ts'
import type { FileRestoreStatus } from '../../src/vss/vocabulary.ts'
import { FileApplication, FileProvider, FileWriter, fileUndoHandlers } from '../sim/file-writer.ts'
import { ManualClock } from '../sim/manual-clock.ts'
import { Recorder, RecordingProvider, RecordingWriter } from '../sim/recording.ts'
import { assertTrace } from './trace.ts'
import { addEverything, world } from './world.ts'

async function ledger() {
  const base = await mkdtemp(join(tmpdir(), 'umbra-ledger-'))
  const directory = join(base, 'ledger')
  await mkdir(directory)
  const application = new FileApplication(directory)
  await application.write('accounts', 'balance 10')
  await application.write('journal', 'entry 1')
  const recorder = new Recorder()
  const clock = new ManualClock()
  const files = new FileWriter(application)
  const vms = new RecordingWriter(recorder, 'VM Writer', [{ name: 'web01' }])
  const copier = new FileProvider(clock)
  const provider = new RecordingProvider(recorder)
  const host = world({
    recorder,
    clock,
    writers: [vms, files],
    providers: [provider, copier],
    undoHandlers: fileUndoHandlers,
  })
  return {
    ...host,
    application,
    directory,
    vms,
    files,
    copier,
    provider,
    [Symbol.asyncDispose]: () => rm(base, { recursive: true }),
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
  const stored = new Map<string, string>()
  for (const copy of copies) {
    await using source = await copy.open()
    const bytes = new Uint8Array(source.sizeBytes)
    await source.read(0, bytes)
    stored.set(copy.volume.id, new TextDecoder().decode(bytes))
  }
  for (const component of components.selected) components.setBackupSucceeded(refOf(component), true)
  await components.backupComplete()
  return { stored, instants, documents: components.documents() }
}

describe('two unrelated writers in one snapshot set (V1)', () => {
  test('are frozen together, and each volume is copied by the provider that can', async () => {
    await using host = await ledger()
    const { stored, instants } = await backUpFiles(host)
    assert.deepEqual(
      [...stored],
      [
        ['web01/disk', 'web01/disk'],
        ['ledger/accounts', 'balance 10'],
        ['ledger/journal', 'entry 1'],
      ],
    )
    assert.deepEqual(instants.map(({ component }) => component).toSorted(), ['ledger', 'web01'])
    assertTrace(
      host.recorder.entries.filter(({ event }) => ['Freeze', 'CommitSnapshots', 'Thaw'].includes(event)),
      `
      Freeze           VM Writer
      Freeze           Ledger Writer
      CommitSnapshots  provider       web01 disk
      Thaw             VM Writer
      Thaw             Ledger Writer`,
    )
    assert.deepEqual(host.copier.residue, [])
    assert.equal(await host.application.frozen(), false)
  })

  test('a veto of the one keeps the other from being backed up, and its application runs on', async () => {
    await using host = await ledger()
    host.recorder.breakStep('VM Writer', 'Freeze', 'fail-after')
    await assert.rejects(backUpFiles(host), { code: 'VSS_WRITER_VETO' })
    assert.equal(await host.application.frozen(), false)
    assert.deepEqual(host.copier.residue, [])
    await host.application.write('journal', 'entry 2')
  })

  test('an application that was frozen when its host died is thawed by the undo record alone', async () => {
    await using host = await ledger()
    const log = memoryUndoLog()
    const records: { undo: string }[] = []
    const undo = new Cleanup(
      {
        ...log,
        add: async (record) => {
          records.push(record)
          return log.add(record)
        },
      },
      {},
    )
    const session = {
      snapshotSetId: 's',
      components: [],
      undo,
      emit: host.service.emit,
      signal: host.controller.signal,
    }
    await host.files.onPrepareSnapshot(session)
    await host.files.onFreeze()
    assert.equal(await host.application.frozen(), true)
    const stored = JSON.parse(JSON.stringify(records)) as { undo: string }[]
    for (let run = 0; run < 2; run++) for (const record of stored) await fileUndoHandlers[record.undo]?.(record)
    assert.equal(await host.application.frozen(), false)
  })
})

describe('a restore (R1, R3)', () => {
  async function restore(host: Awaited<ReturnType<typeof ledger>>, status: FileRestoreStatus | undefined) {
    const { stored, documents } = await backUpFiles(host)
    const all = documents.components.writers.flatMap(({ components }) => components)
    const [one] = all.filter(({ component }) => component.writerId === host.files.id)
    assert.ok(one)
    host.recorder.entries.length = 0
    const { writers, undo, emit } = host.service
    await using components = RestoreComponents.initializeForRestore({ writers, undo, emit }, all)
    components.setSelectedForRestore(one.component)
    await components.preRestore()
    for (const name of ['accounts', 'journal']) {
      if (status === 'none') break
      await writeFile(join(host.directory, name), String(stored.get(`ledger/${name}`)))
      if (status !== 'all') break
    }
    if (status !== undefined) components.setFileRestoreStatus(one.component, status)
    await components.postRestore()
  }

  test('goes PreRestore, files, PostRestore, and only the writer concerned hears of it', async () => {
    await using host = await ledger()
    await restore(host, 'all')
    assertTrace(
      host.recorder.entries,
      `
      PreRestore   Ledger Writer
      PostRestore  Ledger Writer`,
    )
    assert.deepEqual(await host.application.state(), { accounts: 'balance 10', journal: 'entry 1' })
  })

  for (const status of ['failed', 'none', 'undefined', undefined] as const) {
    test(`with the file status ${status ?? 'not even told'} ends in a veto, and what was there before comes back`, async () => {
      await using host = await ledger()
      await assert.rejects(restore(host, status), { code: 'VSS_WRITER_VETO', message: /^no VM was restored: ledger: / })
      assert.deepEqual(await host.application.state(), {
        accounts: 'balance 999, written after the instant',
        journal: 'entry 1',
      })
    })
  }

  test('that ends between PreRestore and PostRestore is put right by the session undo', async () => {
    await using host = await ledger()
    const { documents } = await backUpFiles(host)
    const former = await host.application.state()
    const all = documents.components.writers.flatMap(({ components }) => components)
    const { writers, undo, emit } = host.service
    {
      await using components = RestoreComponents.initializeForRestore({ writers, undo, emit }, all)
      for (const { component } of all) {
        if (component.writerId === host.files.id) components.setSelectedForRestore(component)
      }
      await components.preRestore()
      assert.notDeepEqual(await host.application.state(), former)
    }
    await undo[Symbol.asyncDispose]()
    assert.deepEqual(await host.application.state(), former)
  })

  test('takes its calls in order only, and never an unknown component', async () => {
    await using host = await ledger()
    const { documents } = await backUpFiles(host)
    const all = documents.components.writers.flatMap(({ components }) => components)
    const { writers, undo, emit } = host.service
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
    const { documents } = await backUpFiles(host)
    const all = documents.components.writers.flatMap(({ components }) => components)
    const { writers, undo, emit } = host.service
    await using components = RestoreComponents.initializeForRestore({ writers, undo, emit }, all)
    for (const { component } of all) components.setSelectedForRestore(component)
    await components.preRestore()
    await assert.rejects(components.postRestore(), {
      message: 'no VM was restored: web01: files: undefined; ledger: its files are restored as: undefined',
    })
  })
})
