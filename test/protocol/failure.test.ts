/**
 * What goes wrong: vetoes, limits, aborts, cancellation. Whatever happens, the host ends as it was before.
 * Source: "Aborting VSS Operations", "Error Handling in Shadow Copy Providers", "Writer Errors and Vetoes".
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Failure, primaryError } from '../../src/base/failure.ts'
import { BackupComponents } from '../../src/vss/backup-components.ts'
import type { WriterFailureCode, WriterState } from '../../src/vss/vocabulary.ts'
import { Recorder, RecordingProvider, RecordingWriter, vetoOf } from '../sim/recording.ts'
import { assertTrace } from './trace.ts'
import { addEverything, backUp, before, countOf, stateOf, type TwoWriters, twoWriters, world } from './world.ts'

/** A backup that is carried up to doSnapshotSet and fails there; the session stays open for its status to be read. */
async function failing(host: TwoWriters) {
  const components = BackupComponents.initializeForBackup(host.service, 'full')
  await addEverything(components)
  await components.startSnapshotSet()
  await components.addVolumesOfComponents()
  const error = await host.clock
    .drive(components.prepareForBackup().then(() => components.doSnapshotSet()))
    .then(() => assert.fail('no failure'), primaryError)
  assert.ok(error instanceof Failure, String(error))
  return { components, error }
}

describe('a veto (V9)', () => {
  test('of one writer means that nothing is backed up; the other is thawed and aborted', async () => {
    const host = twoWriters()
    host.recorder.breakStep('Ledger Writer', 'Freeze', vetoOf('Ledger Writer', 'a posting is open'))
    await assert.rejects(backUp(host), {
      code: 'VSS_WRITER_VETO',
      message: 'no VM was backed up: Ledger Writer: a posting is open',
    })
    const from = host.recorder.entries.findIndex(({ event }) => event === 'Freeze')
    assertTrace(
      host.recorder.entries.slice(from),
      `
      Freeze           VM Writer
      Freeze           Ledger Writer
      Veto             Ledger Writer  a posting is open
      Thaw             VM Writer
      Thaw             Ledger Writer
      Abort            VM Writer
      Abort            Ledger Writer
      AbortSnapshots   provider
      BackupShutdown   VM Writer
      BackupShutdown   Ledger Writer
      DeleteSnapshots  provider`,
    )
    assert.deepEqual(stateOf(host), before)
  })

  test('does not silence the others: all are asked, all reasons are told at once', async () => {
    const host = twoWriters()
    const veto = vetoOf('VM Writer', 'the agent is silent', 'VSS_E_WRITERERROR_RETRYABLE', 'web01')
    host.recorder.breakStep('VM Writer', 'PrepareForSnapshot', veto)
    host.recorder.breakStep('Ledger Writer', 'PrepareForSnapshot', 'fail')
    const { components, error } = await failing(host)
    assert.deepEqual(error.context.reasons, ['web01: the agent is silent', 'Ledger Writer: PrepareForSnapshot failed'])
    await components[Symbol.asyncDispose]()
    assert.deepEqual(stateOf(host), before)
  })

  test('of a provider means the same, and there is no partial commit', async () => {
    const recorder = new Recorder()
    const vms = new RecordingWriter(recorder, 'VM Writer', [{ name: 'web01' }])
    const providers = [new RecordingProvider(recorder, 'good'), new RecordingProvider(recorder, 'bad', 'other')]
    const other = new RecordingWriter(recorder, 'Ledger Writer', [{ name: 'ledger' }])
    const identify = other.onIdentify.bind(other)
    other.onIdentify = async () => {
      const metadata = await identify()
      const components = metadata.components.map((component) => ({
        ...component,
        volumes: component.volumes.map((volume) => ({ ...volume, properties: { kind: 'other' } })),
      }))
      return { ...metadata, components }
    }
    recorder.breakStep('bad', 'CommitSnapshots', 'fail')
    await assert.rejects(backUp(world({ recorder, writers: [vms, other], providers })), { code: 'VSS_PROVIDER_VETO' })
    assert.deepEqual(
      providers.map(({ copies }) => copies.size),
      [0, 0],
    )
    assert.deepEqual(
      recorder.entries.filter(({ event }) => event === 'AbortSnapshots').map(({ who }) => who),
      ['good', 'bad'],
    )
  })
})

describe('limits (V4)', () => {
  test('60 s from Freeze to Thaw: a provider that hangs is left behind, the writers are thawed and timed out', async () => {
    const host = twoWriters({ holdWritesMs: 120_000 })
    host.recorder.breakStep('provider', 'CommitSnapshots', 'hang')
    const { components, error } = await failing(host)
    assert.equal(error.code, 'VSS_WRITER_TIMEOUT')
    assert.equal(host.clock.monotonicMs(), 60_000)
    assert.deepEqual(
      components.writerStatus().map(({ state, vetoes }) => [state, vetoes[0]?.code]),
      [
        ['failed-at-freeze', 'VSS_E_WRITERERROR_TIMEOUT'],
        ['failed-at-freeze', 'VSS_E_WRITERERROR_TIMEOUT'],
      ],
    )
    assert.equal(countOf(host, 'Thaw'), 2)
    assert.equal(countOf(host, 'Abort'), 2)
    await components[Symbol.asyncDispose]()
    assert.deepEqual(stateOf(host), before)
  })

  test('a writer that does not answer Freeze is named, and timed out at the limit, not later', async () => {
    const host = twoWriters({ freezeMs: 20_000 })
    host.recorder.breakStep('Ledger Writer', 'Freeze', 'hang-after')
    const { components, error } = await failing(host)
    assert.equal(
      error.message,
      'freezing took too long (the window is 20000 ms): VM Writer: was still frozen; Ledger Writer: did not answer Freeze',
    )
    assert.equal(host.clock.monotonicMs(), 20_000)
    await components[Symbol.asyncDispose]()
    assert.deepEqual(stateOf(host), { ...before, timers: 0 })
  })

  test('10 s of held writes', async () => {
    const host = twoWriters()
    host.recorder.breakStep('provider', 'CommitSnapshots', 'hang-after')
    const { components, error } = await failing(host)
    assert.equal(error.code, 'VSS_HOLD_WRITES_TIMEOUT')
    assert.equal(host.clock.monotonicMs(), 10_000)
    await components[Symbol.asyncDispose]()
    assert.deepEqual(stateOf(host), before)
  })

  test('ten minutes for the slow events; the writer that is late is timed out', async () => {
    const host = twoWriters()
    host.recorder.breakStep('VM Writer', 'PrepareForSnapshot', 'hang')
    const { components, error } = await failing(host)
    assert.equal(
      error.message,
      'no VM was backed up: VM Writer: PrepareForSnapshot of VM Writer did not finish within 600000 ms',
    )
    const [vms, files] = components.writerStatus()
    assert.deepEqual([vms?.state, vms?.vetoes[0]?.code], ['failed-at-prepare-snapshot', 'VSS_E_WRITERERROR_TIMEOUT'])
    assert.equal(files?.state, 'stable', 'the other was told to abort and is as it was')
    await components[Symbol.asyncDispose]()
  })

  test('each of them can be lowered', async () => {
    const host = twoWriters({ prepareMs: 5_000, holdWritesMs: 500, freezeMs: 1_000 })
    host.recorder.breakStep('provider', 'CommitSnapshots', 'hang')
    const { components, error } = await failing(host)
    assert.equal(error.code, 'VSS_HOLD_WRITES_TIMEOUT')
    assert.equal(host.clock.monotonicMs(), 500)
    await components[Symbol.asyncDispose]()
  })
})

describe('abort (V3)', () => {
  const calls = [
    'addComponent',
    'startSnapshotSet',
    'addToSnapshotSet',
    'prepareForBackup',
    'doSnapshotSet',
    'setBackupSucceeded',
  ]
  for (const [index, call] of calls.entries()) {
    test(`leaving after ${call} leaves the host as it was`, async () => {
      const host = twoWriters()
      await backUp(host, call)
      assert.deepEqual(stateOf(host), before)
      const told = index >= calls.indexOf('prepareForBackup')
      assert.equal(countOf(host, 'Abort'), told ? 2 : 0, 'writers that heard of the backup hear of its end')
      assert.equal(countOf(host, 'BackupShutdown'), told ? 2 : 0)
      assert.equal(countOf(host, 'BackupComplete'), 0)
    })
  }

  test('is ignored when nothing is under way', async () => {
    const host = twoWriters()
    await using components = BackupComponents.initializeForBackup(host.service, 'full')
    await components.abortBackup()
    await components.gatherWriterMetadata()
    await components.abortBackup()
    assert.equal(components.state, 'discovered')
  })

  test('may come any number of times', async () => {
    const host = twoWriters()
    await using components = BackupComponents.initializeForBackup(host.service, 'full')
    await addEverything(components)
    await components.startSnapshotSet()
    await components.prepareForBackup()
    for (let i = 0; i < 3; i++) await components.abortBackup()
    assert.equal(countOf(host, 'Abort'), 2)
    assert.equal(components.state, 'aborted')
  })

  test('is not sent after a backup that is complete', async () => {
    const host = twoWriters()
    await backUp(host)
    assert.equal(countOf(host, 'Abort'), 0)
  })

  test('BackupShutdown comes also when the requester throws', async () => {
    const host = twoWriters()
    const requester = async () => {
      await using components = BackupComponents.initializeForBackup(host.service, 'full')
      await addEverything(components)
      await components.startSnapshotSet()
      await components.addVolumesOfComponents()
      await components.prepareForBackup()
      await components.doSnapshotSet()
      throw new Error('the requester died')
    }
    await assert.rejects(requester(), { message: 'the requester died' })
    assert.deepEqual(
      [countOf(host, 'Abort'), countOf(host, 'BackupShutdown'), countOf(host, 'DeleteSnapshots')],
      [2, 2, 1],
    )
    assert.deepEqual(stateOf(host), before)
  })

  test('goes on with the providers when a writer fails at it', async () => {
    const host = twoWriters()
    host.recorder.breakStep('VM Writer', 'Abort', 'fail')
    host.recorder.breakStep('provider', 'CommitSnapshots', 'fail')
    await assert.rejects(backUp(host), (error) => {
      assert.equal((primaryError(error) as Failure).code, 'VSS_PROVIDER_VETO', 'what went wrong first is what is told')
      return true
    })
    assert.equal(countOf(host, 'AbortSnapshots'), 1)
    assert.deepEqual(stateOf(host), before)
  })
})

describe('a cancelled session', () => {
  test('fails with the reason of the signal itself, and no writer is blamed', async () => {
    const host = twoWriters()
    const { onPrepareSnapshot } = host.files
    host.files.onPrepareSnapshot = async (session) => {
      host.controller.abort()
      session.signal.throwIfAborted()
      return onPrepareSnapshot.call(host.files, session)
    }
    await assert.rejects(backUp(host), (error) => primaryError(error) === host.controller.signal.reason)
    assert.equal(countOf(host, 'Veto'), 0)
    assert.deepEqual(stateOf(host), before)
  })

  test('is put right by events that do not know the cancelled signal (law 3)', async () => {
    const host = twoWriters()
    host.recorder.at('provider', 'CommitSnapshots', () => {
      host.controller.abort()
      host.controller.signal.throwIfAborted()
    })
    await assert.rejects(backUp(host), { name: 'AbortError' })
    for (const event of ['Thaw', 'Abort', 'BackupShutdown']) {
      assert.equal(host.vms.signals.get(event)?.aborted, false, event)
    }
    assert.equal(host.vms.signals.get('Freeze')?.aborted, true)
    assert.deepEqual(stateOf(host), before)
  })
})

describe('writer states and failure codes (V7)', () => {
  const cases: [event: string, state: WriterState][] = [
    ['PrepareForBackup', 'failed-at-prepare-backup'],
    ['PrepareForSnapshot', 'failed-at-prepare-snapshot'],
    ['Freeze', 'failed-at-freeze'],
    ['Thaw', 'failed-at-thaw'],
    ['PostSnapshot', 'failed-at-post-snapshot'],
  ]
  for (const [event, state] of cases) {
    test(`a no to ${event} is ${state}, with the writer's own code, until the session ends`, async () => {
      const host = twoWriters()
      const code: WriterFailureCode = 'VSS_E_WRITERERROR_OUTOFRESOURCES'
      host.recorder.breakStep('VM Writer', event, vetoOf('VM Writer', 'no memory', code))
      const { components } = await failing(host)
      const [vms, files] = components.writerStatus()
      assert.deepEqual([vms?.state, vms?.vetoes[0]?.code], [state, code])
      assert.deepEqual(files?.vetoes, [])
      await components[Symbol.asyncDispose]()
      assert.equal(components.writerStatus()[0]?.state, state, 'BackupShutdown does not hide it')
      assert.deepEqual(stateOf(host), before)
    })
  }

  test('an exception is a no that can not be retried', async () => {
    const host = twoWriters()
    host.recorder.breakStep('VM Writer', 'PrepareForSnapshot', 'fail')
    const { components } = await failing(host)
    assert.equal(components.writerStatus()[0]?.vetoes[0]?.code, 'VSS_E_WRITERERROR_NONRETRYABLE')
    await components[Symbol.asyncDispose]()
  })

  test('a writer goes through the states of VSS_WRITER_STATE and ends stable', async () => {
    const host = twoWriters()
    const seen: string[] = []
    const components = BackupComponents.initializeForBackup(host.service, 'full')
    const look = (event: string) =>
      host.recorder.at('VM Writer', event, () => seen.push(`${event}: ${components.writerStatus()[0]?.state}`))
    for (const event of [
      'PrepareForBackup',
      'PrepareForSnapshot',
      'Freeze',
      'Thaw',
      'PostSnapshot',
      'BackupComplete',
      'BackupShutdown',
    ]) {
      look(event)
    }
    await addEverything(components)
    await components.startSnapshotSet()
    await components.addVolumesOfComponents()
    await components.prepareForBackup()
    await components.doSnapshotSet()
    await components.backupComplete()
    await components[Symbol.asyncDispose]()
    assert.deepEqual(seen, [
      'PrepareForBackup: stable',
      'PrepareForSnapshot: stable',
      'Freeze: waiting-for-freeze',
      'Thaw: waiting-for-thaw',
      'PostSnapshot: waiting-for-post-snapshot',
      'BackupComplete: waiting-for-backup-complete',
      'BackupShutdown: stable',
    ])
  })

  test('a no to BackupComplete is told, but aborts nothing: the data are good', async () => {
    const host = twoWriters()
    host.recorder.breakStep('VM Writer', 'BackupComplete', 'veto')
    await assert.rejects(backUp(host), { code: 'VSS_WRITER_VETO' })
    assert.equal(countOf(host, 'Abort'), 0)
    assert.deepEqual(stateOf(host), before)
  })
})

describe('volumes that can not be prepared', () => {
  test('are all named at once', async () => {
    const host = twoWriters()
    host.recorder.breakStep('provider', 'BeginPrepareSnapshot', 'fail')
    await assert.rejects(backUp(host), (error) => {
      const first = primaryError(error)
      assert.ok(first instanceof Failure && first.code === 'VSS_PROVIDER_VETO')
      assert.equal((first.context.reasons as string[]).length, 3)
      return true
    })
  })
})
