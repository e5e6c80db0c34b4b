/**
 * The table of session.ts, cell by cell: what is not listed here must answer VSS_BAD_STATE.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Failure } from '../base/failure.ts'
import { type SessionCall, type SessionState, sessionCalls, sessionStates, transition } from './session.ts'

/** Written out a second time, by hand, from the order of the calls in VSS's own pages. */
const legal = `
  initializeForBackup    new               initialized
  setContext             initialized       initialized
  gatherWriterMetadata   initialized       discovered
  addComponent           discovered        discovered
  startSnapshotSet       discovered        set-open
  addToSnapshotSet       set-open          set-open
  prepareForBackup       set-open          prepared
  setBackupStamps        prepared          prepared
  doSnapshotSet          prepared          snapshot-created
  setBackupSucceeded     snapshot-created  snapshot-created
  backupComplete         snapshot-created  completed
  abortBackup            initialized       initialized
  abortBackup            discovered        discovered
  abortBackup            set-open          aborted
  abortBackup            prepared          aborted
  abortBackup            snapshot-created  aborted
  abortBackup            completed         completed
  abortBackup            aborted           aborted
  initializeForRestore   new               restore-loaded
  setSelectedForRestore  restore-loaded    restore-loaded
  preRestore             restore-loaded    restoring
  setFileRestoreStatus   restoring         restoring
  postRestore            restoring         restored`

const moves = new Map<string, string>()
for (const line of legal.trim().split('\n')) {
  const [call, from, to] = line.trim().split(/\s+/)
  moves.set(`${call} ${from}`, String(to))
}
for (const state of sessionStates) moves.set(`release ${state}`, 'released')

const every = <T>(visit: (call: SessionCall, state: SessionState) => T): T[] =>
  sessionCalls.flatMap((call) => sessionStates.map((state) => visit(call, state)))

describe('the states of a session', () => {
  test('a call in its place moves the session on', () => {
    const moved = every(
      (call, state) => moves.has(`${call} ${state}`) && transition(state, call) === moves.get(`${call} ${state}`),
    )
    assert.equal(moved.filter(Boolean).length, moves.size)
  })

  test('every other call answers VSS_BAD_STATE and names both the call and the state', () => {
    const refused = every((call, state) => {
      if (moves.has(`${call} ${state}`)) return false
      assert.throws(
        () => transition(state, call),
        (error) => {
          assert.ok(error instanceof Failure)
          assert.equal(error.code, 'VSS_BAD_STATE')
          assert.equal(error.message, `${call} is not possible in state ${state}`)
          return true
        },
      )
      return true
    })
    assert.equal(refused.filter(Boolean).length, sessionCalls.length * sessionStates.length - moves.size)
  })

  test('AbortBackup is ignored where nothing is under way, and never undoes a backup that is complete', () => {
    for (const state of ['initialized', 'discovered', 'completed', 'aborted'] as const) {
      assert.equal(transition(state, 'abortBackup'), state)
    }
  })

  test('a session is used once: nothing but another release leads out of released', () => {
    for (const call of sessionCalls) {
      if (call === 'release') assert.equal(transition('released', call), 'released')
      else assert.throws(() => transition('released', call), { code: 'VSS_BAD_STATE' })
    }
  })

  test('there is no abort of a restore', () => {
    for (const state of ['restore-loaded', 'restoring', 'restored'] as const) {
      assert.throws(() => transition(state, 'abortBackup'), { code: 'VSS_BAD_STATE' })
    }
  })
})
