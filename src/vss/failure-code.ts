/** What a failure of a writer is in VSS's five codes (SetWriterFailure); the same for every writer. */
import { Failure } from '../base/failure.ts'
import { errorEntry } from '../errors.ts'
import type { WriterFailureCode } from './vocabulary.ts'

export function failureCodeOf(error: unknown): WriterFailureCode {
  if (error instanceof Failure && (error.code === 'DEADLINE_EXCEEDED' || error.code === 'GUEST_NOT_RESPONDING')) {
    return 'VSS_E_WRITERERROR_TIMEOUT'
  }
  const retry = errorEntry(error)?.retry
  if (retry === 'reduce-load') return 'VSS_E_WRITERERROR_OUTOFRESOURCES'
  return retry === 'retry' ? 'VSS_E_WRITERERROR_RETRYABLE' : 'VSS_E_WRITERERROR_NONRETRYABLE'
}
