/**
 * A backup, told as VSS's own pages tell it: "Overview of Processing a Backup Under VSS".
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { BackupComponents } from '../../src/vss/backup-components.ts'
import { refOf } from '../../src/vss/components.ts'
import { writeBackupComponentsDocument, writeWriterMetadataDocument } from '../../src/vss/documents.ts'
import { Recorder, RecordingProvider, RecordingWriter } from '../sim/recording.ts'
import { assertTrace } from './trace.ts'
import { addEverything, backUp, twoWriters, world } from './world.ts'

describe('a backup (V2)', () => {
  test('has the order of the pages, with the providers where the pages have them', async () => {
    const host = twoWriters()
    await backUp(host)
    assertTrace(
      host.recorder.entries,
      `
      Identify                  VM Writer
      Identify                  Ledger Writer
      BeginPrepareSnapshot      provider       web01 vda
      BeginPrepareSnapshot      provider       web01 vdb
      BeginPrepareSnapshot      provider       ledger disk
      AddToSnapshotSet          web01: vda: provider
      AddToSnapshotSet          web01: vdb: provider
      AddToSnapshotSet          ledger: disk: provider
      PrepareForBackup          VM Writer
      PrepareForBackup          Ledger Writer
      PrepareForSnapshot        VM Writer
      PrepareForSnapshot        Ledger Writer
      EndPrepareSnapshots       provider
      Freeze                    VM Writer
      Freeze                    Ledger Writer
      PreCommitSnapshots        provider       web01 vda, web01 vdb, ledger disk
      CommitSnapshots           provider       web01 vda, web01 vdb, ledger disk
      PostCommitSnapshots       provider       web01 vda, web01 vdb, ledger disk
      Thaw                      VM Writer
      Thaw                      Ledger Writer
      PreFinalCommitSnapshots   provider
      PostSnapshot              VM Writer
      PostSnapshot              Ledger Writer
      PostFinalCommitSnapshots  provider
      Transfer                  requester      web01 vda
      Transfer                  requester      web01 vdb
      Transfer                  requester      ledger disk
      BackupComplete            VM Writer
      BackupComplete            Ledger Writer
      BackupShutdown            VM Writer
      BackupShutdown            Ledger Writer
      DeleteSnapshots           provider`,
    )
    assert.deepEqual(host.recorder.violations, [])
    assert.deepEqual(host.quiet, ['hold 60000', 'release'])
    assert.equal(host.lock.held, false)
    assert.equal(host.clock.pending, 0)
  })

  test('tells each writer which of its components arrived, though two have one of the same path', async () => {
    const host = twoWriters()
    await backUp(host)
    assert.deepEqual(host.vms.succeeded, [['\\web01', true]])
    assert.deepEqual(host.files.succeeded, [['\\ledger', true]])
  })

  test('leaves out a writer that has nothing selected: it hears Identify and no more', async () => {
    const host = twoWriters()
    await using components = BackupComponents.initializeForBackup(host.service, 'full')
    const [vms] = await components.gatherWriterMetadata()
    for (const component of vms?.components ?? []) components.addComponent(refOf(component))
    await components.startSnapshotSet()
    await components.addVolumesOfComponents()
    await components.prepareForBackup()
    await components.doSnapshotSet()
    const heard = host.recorder.entries.filter(({ who }) => who === 'Ledger Writer').map(({ event }) => event)
    assert.deepEqual(heard, ['Identify'])
  })

  test('goes on without a writer that could not answer Identify, and says so', async () => {
    const host = twoWriters()
    host.recorder.breakStep('Ledger Writer', 'Identify', 'hang')
    await host.clock.drive(backUp(host))
    const missing = host.recorder.entries.find(({ event }) => event === 'WriterMissing')
    assert.deepEqual(missing, {
      event: 'WriterMissing',
      who: 'Ledger Writer',
      about: 'Identify of Ledger Writer did not finish within 600000 ms',
    })
    assert.ok(host.recorder.entries.some(({ event, who }) => event === 'BackupComplete' && who === 'VM Writer'))
  })

  test('gives components with instants of their own a window each', async () => {
    const recorder = new Recorder()
    const vms = new RecordingWriter(recorder, 'VM Writer', [
      { name: 'web01', instant: 'web01' },
      { name: 'db01', instant: 'db01' },
    ])
    const host = world({ recorder, writers: [vms], providers: [new RecordingProvider(recorder)] })
    await backUp(host)
    const inside = ['Freeze', 'CommitSnapshots', 'Thaw', 'PreFinalCommitSnapshots', 'PostSnapshot']
    assertTrace(
      recorder.entries.filter(({ event }) => inside.includes(event)),
      `
      Freeze                   VM Writer
      CommitSnapshots          provider   web01 disk
      Thaw                     VM Writer
      Freeze                   VM Writer
      CommitSnapshots          provider   db01 disk
      Thaw                     VM Writer
      PreFinalCommitSnapshots  provider
      PostSnapshot             VM Writer`,
    )
    assert.deepEqual(host.quiet, ['hold 60000', 'release', 'hold 60000', 'release'])
  })

  test('ends in documents that name what was selected, what succeeded and what the writers left', async () => {
    const host = twoWriters()
    const { metadata, components } = (await backUp(host)).documents()
    assert.deepEqual(
      metadata.map(({ name, components: of }) => [name, of.map((one) => one.name)]),
      [
        ['VM Writer', ['web01']],
        ['Ledger Writer', ['ledger']],
      ],
    )
    assert.deepEqual(
      components.writers.map((writer) => writer.components.map(({ succeeded, metadata: left }) => [succeeded, left])),
      [[[true, { by: 'VM Writer' }]], [[true, { by: 'Ledger Writer' }]]],
    )
    for (const one of metadata) assert.match(writeWriterMetadataDocument(one), /^<WRITER_METADATA /)
    assert.match(writeBackupComponentsDocument(components), /backupType="full"/)
  })
})

describe('calls out of order answer VSS_BAD_STATE (V2)', () => {
  const badState = { code: 'VSS_BAD_STATE' }

  test('before the metadata were gathered nothing can be added', () => {
    const components = BackupComponents.initializeForBackup(twoWriters().service, 'full')
    const ref = { writerId: 'w', type: 'filegroup', logicalPath: '', name: 'web01' } as const
    assert.throws(() => components.addComponent(ref), badState)
  })

  test('metadata are gathered once', async () => {
    await using components = BackupComponents.initializeForBackup(twoWriters().service, 'full')
    await components.gatherWriterMetadata()
    await assert.rejects(components.gatherWriterMetadata(), badState)
  })

  test('volumes, preparation and the set itself each need the step before', async () => {
    await using components = BackupComponents.initializeForBackup(twoWriters().service, 'full')
    await assert.rejects(components.startSnapshotSet(), badState)
    await assert.rejects(components.addVolumesOfComponents(), badState)
    await assert.rejects(components.prepareForBackup(), badState)
    await assert.rejects(components.doSnapshotSet(), badState)
    await assert.rejects(components.backupComplete(), badState)
  })

  test('DoSnapshotSet is done once, also when the second call comes while the first is under way', async () => {
    const host = twoWriters()
    await using components = BackupComponents.initializeForBackup(host.service, 'full')
    await addEverything(components)
    await components.startSnapshotSet()
    await components.addVolumesOfComponents()
    await components.prepareForBackup()
    const first = components.doSnapshotSet()
    await assert.rejects(components.doSnapshotSet(), badState)
    await first
    await assert.rejects(components.doSnapshotSet(), badState)
    assert.equal(host.recorder.entries.filter(({ event }) => event === 'CommitSnapshots').length, 1)
  })

  test('a session that was released is not used again; releasing it twice is nothing', async () => {
    const host = twoWriters()
    const components = await backUp(host)
    assert.equal(components.state, 'released')
    await components[Symbol.asyncDispose]()
    await assert.rejects(components.gatherWriterMetadata(), badState)
    assert.equal(host.recorder.entries.filter(({ event }) => event === 'BackupShutdown').length, 2)
  })

  test('a component that no writer named is refused', async () => {
    await using components = BackupComponents.initializeForBackup(twoWriters().service, 'full')
    await components.gatherWriterMetadata()
    const stranger = { writerId: 'id of VM Writer', type: 'filegroup', logicalPath: '', name: 'db01' } as const
    assert.throws(() => components.addComponent(stranger), badState)
  })

  test('a second component of the same name is refused: its volumes could not be told apart', async () => {
    const recorder = new Recorder()
    const writers = ['A', 'B'].map((name) => new RecordingWriter(recorder, name, [{ name: 'data' }]))
    const host = world({ recorder, writers, providers: [new RecordingProvider(recorder)] })
    await using components = BackupComponents.initializeForBackup(host.service, 'full')
    await assert.rejects(addEverything(components), badState)
  })
})

describe('one set in creation at a time (V5)', () => {
  test('a second requester is told so at once, and again admitted once the first set exists', async () => {
    const host = twoWriters()
    const first = BackupComponents.initializeForBackup(host.service, 'full')
    await addEverything(first)
    await first.startSnapshotSet()

    await assert.rejects(backUp(host), { code: 'VSS_SNAPSHOT_SET_IN_PROGRESS' })
    assert.equal(host.lock.held, true, 'the one that was refused does not take the lock from its owner')

    await first.addVolumesOfComponents()
    await first.prepareForBackup()
    await first.doSnapshotSet()
    assert.equal(host.lock.held, false, 'the lock ends with the creation, not with the backup')
    await backUp(host)
    await first[Symbol.asyncDispose]()
  })

  test('the lock is given back when the creation fails', async () => {
    const host = twoWriters()
    host.recorder.breakStep('provider', 'CommitSnapshots', 'fail')
    await assert.rejects(backUp(host))
    assert.equal(host.lock.held, false)
  })

  test('the lock is given back when the requester leaves before the creation', async () => {
    const host = twoWriters()
    await backUp(host, 'startSnapshotSet')
    assert.equal(host.lock.held, false)
  })
})

describe('the copies (V8, V10)', () => {
  test('are writable in PostSnapshot only: not before, not after', async () => {
    const host = twoWriters()
    const attempts: string[] = []
    const attempt = (when: string) => {
      const copy = host.vms.copies[0] ?? remembered
      try {
        assert.ok(copy)
        host.provider.write(copy)
        attempts.push(`${when}: written`)
      } catch (error) {
        attempts.push(`${when}: ${(error as Error).message}`)
      }
    }
    const volume = { id: 'web01/vda', component: 'web01', caption: 'web01', name: 'vda', properties: {} }
    const remembered = { id: volume.id, volume, provider: 'provider', open: () => Promise.reject(new Error()) }
    host.recorder.at('VM Writer', 'Freeze', () => attempt('Freeze'))
    host.recorder.at('VM Writer', 'Thaw', () => attempt('Thaw'))
    host.recorder.at('VM Writer', 'PostSnapshot', () => attempt('PostSnapshot'))
    host.recorder.at('VM Writer', 'BackupComplete', () => attempt('BackupComplete'))
    await backUp(host)
    attempt('after the session')
    assert.deepEqual(attempts, [
      'Freeze: the copy of vda is prepared',
      'Thaw: the copy of vda is committed',
      'PostSnapshot: written',
      'BackupComplete: the copy of vda is read-only',
      'after the session: the copy of vda is gone',
    ])
  })

  test('of other writers are not handed to a writer', async () => {
    const host = twoWriters()
    await backUp(host)
    assert.deepEqual(
      host.vms.copies.map(({ id }) => id),
      ['web01/vda', 'web01/vdb'],
    )
    assert.deepEqual(
      host.files.copies.map(({ id }) => id),
      ['ledger/disk'],
    )
  })

  test('are made by the most specific provider that can', async () => {
    const recorder = new Recorder()
    const writers = [new RecordingWriter(recorder, 'VM Writer', [{ name: 'web01' }])]
    const general = new RecordingProvider(recorder, 'general')
    const specific = new RecordingProvider(recorder, 'specific')
    specific.supports = () => 2
    await backUp(world({ recorder, writers, providers: [general, specific] }))
    const committed = recorder.entries.filter(({ event }) => event === 'CommitSnapshots')
    assert.deepEqual(
      committed.map(({ who }) => who),
      ['specific'],
    )
  })

  test('a volume that no provider can copy fails the set before anybody is asked to prepare', async () => {
    const recorder = new Recorder()
    const writers = [new RecordingWriter(recorder, 'VM Writer', [{ name: 'web01', volumes: ['vda'] }])]
    const host = world({ recorder, writers, providers: [new RecordingProvider(recorder, 'tape', 'tape')] })
    await assert.rejects(backUp(host), { code: 'VSS_VOLUME_NOT_SUPPORTED', message: 'no provider can copy web01 vda' })
    assert.ok(!recorder.entries.some(({ event }) => event === 'PrepareForBackup'))
  })
})
