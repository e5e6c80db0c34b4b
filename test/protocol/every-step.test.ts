/**
 * Every handler of a writer and every call of a provider, failing, hanging and refusing in turn, before and after its
 * deed. The host ends as it was before, or with a backup that is complete; there is no third state.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Failure, primaryError } from '../../src/base/failure.ts'
import { type Fault, faults } from '../sim/recording.ts'
import { backUp, before, countOf, stateOf, twoWriters } from './world.ts'

describe('every step of everybody, failing and hanging in turn', () => {
  const writerSteps = [
    'PrepareForBackup',
    'PrepareForSnapshot',
    'Freeze',
    'Thaw',
    'PostSnapshot',
    'outcomes',
    'BackupComplete',
    'BackupShutdown',
  ]
  const providerSteps = [
    'BeginPrepareSnapshot',
    'EndPrepareSnapshots',
    'PreCommitSnapshots',
    'CommitSnapshots',
    'PostCommitSnapshots',
    'PreFinalCommitSnapshots',
    'PostFinalCommitSnapshots',
  ]
  const matrix: [who: string, step: string, fault: Fault][] = faults.flatMap((fault) => [
    ...writerSteps.map((step) => ['VM Writer', step, fault] as [string, string, Fault]),
    ...providerSteps.map((step) => ['provider', step, fault] as [string, string, Fault]),
  ])
  /** After these the backup exists whatever is said. */
  const late = ['BackupComplete', 'BackupShutdown']

  for (const [who, step, fault] of matrix) {
    test(`${who} ${step}: ${fault}`, async () => {
      const host = twoWriters()
      host.recorder.breakStep(who, step, fault)
      const work = host.clock.drive(backUp(host))
      const outcome = await work.then(
        () => 'complete',
        (error) => {
          assert.doesNotMatch(String(primaryError(error)), /bug:|stuck:/)
          return 'failed'
        },
      )
      assert.equal(outcome, step === 'outcomes' && fault === 'veto' ? 'complete' : 'failed')
      assert.deepEqual(stateOf(host), before, 'the host is as it was')
      assert.deepEqual(host.recorder.violations, [])
      const freezes = host.recorder.entries.filter(({ event }) => event === 'Freeze').map((entry) => entry.who)
      const thaws = host.recorder.entries.filter(({ event }) => event === 'Thaw').map((entry) => entry.who)
      assert.deepEqual(thaws, freezes, 'a thaw follows every freeze, once')
      const heard = step === 'BeginPrepareSnapshot' ? 0 : 2
      assert.equal(countOf(host, 'BackupShutdown'), heard, 'who heard PrepareForBackup hears BackupShutdown')
      if (!late.includes(step) && outcome === 'failed') {
        assert.equal(countOf(host, 'BackupComplete'), 0, 'a set that failed is never called complete')
        assert.ok(countOf(host, 'Abort') >= heard)
      }
    })
  }

  for (const step of ['AbortSnapshots', 'DeleteSnapshots']) {
    test(`provider ${step}: what is left is told, and the failure before it comes first`, async () => {
      const host = twoWriters()
      host.recorder.breakStep('provider', step, 'fail')
      host.recorder.breakStep('VM Writer', 'PostSnapshot', 'veto')
      await assert.rejects(backUp(host), (error) => {
        const first = primaryError(error)
        assert.ok(error instanceof SuppressedError && first instanceof Failure)
        assert.equal(first.code, 'VSS_WRITER_VETO')
        return true
      })
      assert.equal(countOf(host, 'BackupShutdown'), 2)
      assert.equal(host.lock.held, false)
    })
  }
})
