/**
 * The states of a requester's session, as one table and one pure function. A call out of order answers VSS_BAD_STATE.
 * Source: "Overview of Backup Initialization" to "Overview of Backup Termination", and the same pages for restore.
 * The steps inside DoSnapshotSet are not states but windows: see windows.ts.
 */
import { failure } from '../errors.ts'

export const sessionStates = [
  'new',
  'initialized',
  'discovered',
  'set-open',
  'prepared',
  'snapshot-created',
  'completed',
  'aborted',
  'restore-loaded',
  'restoring',
  'restored',
  'released',
] as const
export type SessionState = (typeof sessionStates)[number]

export const sessionCalls = [
  'initializeForBackup',
  'setContext',
  'gatherWriterMetadata',
  'addComponent',
  'startSnapshotSet',
  'addToSnapshotSet',
  'prepareForBackup',
  'setBackupStamps',
  'doSnapshotSet',
  'setBackupSucceeded',
  'backupComplete',
  'abortBackup',
  'initializeForRestore',
  'setSelectedForRestore',
  'preRestore',
  'setFileRestoreStatus',
  'postRestore',
  'release',
] as const
export type SessionCall = (typeof sessionCalls)[number]

type Row = Readonly<Partial<Record<SessionState, SessionState>>>

const anyState: Row = Object.fromEntries(sessionStates.map((state) => [state, 'released' as const]))

/** call -> (state before -> state after). What is missing is VSS_BAD_STATE. */
const transitions: Readonly<Record<SessionCall, Row>> = {
  initializeForBackup: { new: 'initialized' },
  setContext: { initialized: 'initialized' },
  gatherWriterMetadata: { initialized: 'discovered' },
  addComponent: { discovered: 'discovered' },
  startSnapshotSet: { discovered: 'set-open' },
  addToSnapshotSet: { 'set-open': 'set-open' },
  prepareForBackup: { 'set-open': 'prepared' },
  setBackupStamps: { prepared: 'prepared' },
  doSnapshotSet: { prepared: 'snapshot-created' },
  setBackupSucceeded: { 'snapshot-created': 'snapshot-created' },
  backupComplete: { 'snapshot-created': 'completed' },
  // With nothing under way AbortBackup is ignored, as in VSS; a second one too.
  abortBackup: {
    initialized: 'initialized',
    discovered: 'discovered',
    'set-open': 'aborted',
    prepared: 'aborted',
    'snapshot-created': 'aborted',
    completed: 'completed',
    aborted: 'aborted',
  },
  initializeForRestore: { new: 'restore-loaded' },
  setSelectedForRestore: { 'restore-loaded': 'restore-loaded' },
  preRestore: { 'restore-loaded': 'restoring' },
  setFileRestoreStatus: { restoring: 'restoring' },
  postRestore: { restoring: 'restored' },
  release: anyState,
}

/** The state after `call`, or VSS_BAD_STATE naming both. */
export function transition(state: SessionState, call: SessionCall): SessionState {
  const next = transitions[call][state]
  if (next === undefined) throw failure('VSS_BAD_STATE', { call, state })
  return next
}
