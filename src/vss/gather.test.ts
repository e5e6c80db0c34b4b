/**
 * One event to all writers: everybody is asked, every no is gathered, the sum is judged once (law 10).
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { ManualClock } from '../../test/sim/manual-clock.ts'
import { Recorder, RecordingProvider, RecordingWriter, vetoOf } from '../../test/sim/recording.ts'
import { undoLog } from '../../test/sim/undo-log.ts'
import { Cleanup } from '../base/cleanup.ts'
import { refOf } from './components.ts'
import { judge, type Participant, Providers, Writers } from './gather.ts'
import { chooseProvider, type Provider, type Volume } from './provider.ts'
import { defaultLimits } from './vocabulary.ts'

async function sandbox(names: readonly string[]) {
  const recorder = new Recorder()
  const clock = new ManualClock()
  const controller = new AbortController()
  const session = {
    snapshotSetId: 'set',
    undo: new Cleanup(undoLog().log, {}),
    emit: recorder.emit,
    signal: controller.signal,
  }
  const recorded = names.map((name) => new RecordingWriter(recorder, name, [{ name: `vm of ${name}` }]))
  const participants = await Promise.all(
    recorded.map(async (writer): Promise<Participant> => {
      const { components } = await writer.onIdentify()
      return { writer, components: components.map(refOf), state: 'stable', vetoes: [] }
    }),
  )
  return {
    recorder,
    clock,
    controller,
    session,
    recorded,
    writers: new Writers(participants, session, defaultLimits, clock),
  }
}

const volume: Volume = { id: 'v', component: 'c', caption: 'c', name: 'v', properties: { kind: 'recorded' } }

describe('an event to all writers', () => {
  test('is answered by each, though the first says no', async () => {
    const { writers, recorder } = await sandbox(['A', 'B', 'C'])
    recorder.breakStep('A', 'PrepareForBackup', 'veto')
    recorder.breakStep('C', 'PrepareForBackup', 'fail')
    await assert.rejects(writers.prepareForBackup(), {
      code: 'VSS_WRITER_VETO',
      message: 'no VM was backed up: A: no to PrepareForBackup; C: PrepareForBackup failed',
    })
    assert.deepEqual(
      writers.participants.map(({ state }) => state),
      ['failed-at-prepare-backup', 'stable', 'failed-at-prepare-backup'],
    )
  })

  test('a veto is also an event, with the component as people know it', async () => {
    const { writers, recorder } = await sandbox(['A'])
    recorder.breakStep('A', 'PrepareForBackup', vetoOf('A', 'no agent', undefined, 'web01'))
    await assert.rejects(writers.prepareForBackup())
    assert.deepEqual(recorder.entries.at(-1), { event: 'Veto', who: 'A', about: 'web01: no agent' })
  })

  test('a writer that failed stays failed while it is told to thaw and to abort', async () => {
    const { writers, recorder } = await sandbox(['A'])
    recorder.breakStep('A', 'PrepareForSnapshot', 'veto')
    await assert.rejects(writers.prepareForSnapshot())
    await writers.abort()
    await writers.backupShutdown()
    assert.equal(writers.participants[0]?.state, 'failed-at-prepare-snapshot')
  })

  test('goes at an instant only to the writers of that instant, with only their components', async () => {
    const { writers, recorder } = await sandbox(['A', 'B'])
    await writers.ofInstant(['vm of B']).freeze(new AbortController().signal)
    assert.deepEqual(
      recorder.entries.map(({ event, who }) => `${event} ${who}`),
      ['Freeze B'],
    )
  })

  test('Freeze gets a signal that aborts with its window and with the session', async () => {
    for (const which of ['window', 'session']) {
      const { writers, recorded, controller } = await sandbox(['A'])
      const window = new AbortController()
      await writers.ofInstant(['vm of A']).freeze(window.signal)
      const signal = recorded[0]?.signals.get('Freeze')
      assert.equal(signal?.aborted, false)
      const aborted = which === 'window' ? window : controller
      aborted.abort()
      assert.equal(signal?.aborted, true, which)
    }
  })
})

describe('the judgement', () => {
  const timeout = vetoOf('A', 'slow', 'VSS_E_WRITERERROR_TIMEOUT')

  test('is silent without vetoes', () => {
    judge('Freeze', defaultLimits, [])
  })

  test('is VSS_WRITER_TIMEOUT when all that went wrong in Freeze was time', () => {
    assert.throws(() => judge('Freeze', defaultLimits, [timeout, timeout]), { code: 'VSS_WRITER_TIMEOUT' })
    assert.throws(() => judge('Freeze', defaultLimits, [timeout, vetoOf('B', 'no')]), { code: 'VSS_WRITER_VETO' })
    assert.throws(() => judge('PostSnapshot', defaultLimits, [timeout]), { code: 'VSS_WRITER_VETO' })
  })
})

describe('the providers of a set', () => {
  test('are all asked, and all their reasons are told at once', async () => {
    const { session, clock, recorder } = await sandbox(['A'])
    const providers = ['one', 'two', 'three'].map((name) => new RecordingProvider(recorder, name))
    recorder.breakStep('one', 'EndPrepareSnapshots', 'fail')
    recorder.breakStep('three', 'EndPrepareSnapshots', 'veto')
    const inSession = { ...session, abandon: () => undefined }
    const all = new Providers(new Map(providers.map((one) => [one, [volume]])), inSession, defaultLimits, clock)
    await assert.rejects(all.endPrepareSnapshots(), {
      message: 'the copies could not be made: EndPrepareSnapshots failed; no to EndPrepareSnapshots',
    })
    assert.deepEqual(
      recorder.entries.map(({ who }) => who),
      ['one', 'two', 'three'],
    )
  })

  test('may not hang outside the windows either', async () => {
    const { session, clock, recorder } = await sandbox(['A'])
    const provider = new RecordingProvider(recorder, 'slow')
    recorder.breakStep('slow', 'EndPrepareSnapshots', 'hang')
    const inSession = { ...session, abandon: () => undefined }
    const all = new Providers(new Map([[provider, [volume]]]), inSession, defaultLimits, clock)
    await assert.rejects(clock.drive(all.endPrepareSnapshots()), {
      message: 'the copies could not be made: EndPrepareSnapshots of slow did not finish within 600000 ms',
    })
  })
})

describe("VSS's choice of a provider", () => {
  const scoring = (name: string, score: number) => ({ name, supports: () => score }) as unknown as Provider

  test('is the most specific that can, and the first of equals', async () => {
    const [none, general, specific, equal] = [scoring('n', 0), scoring('g', 1), scoring('s', 5), scoring('e', 5)]
    assert.equal(await chooseProvider([none, general, specific, equal], volume), specific)
    assert.equal(await chooseProvider([general, none], volume), general)
    assert.equal(await chooseProvider([none], volume), undefined)
    assert.equal(await chooseProvider([], volume), undefined)
  })
})
