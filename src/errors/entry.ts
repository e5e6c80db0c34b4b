/**
 * An entry of the page of failures: what happened, what to do about it, and what it means to programs.
 */

/** When trying again helps: as it is, with less at once, with more volumes in the set, or never. */
export type RetryClass = 'retry' | 'reduce-load' | 'add-volumes' | 'never'

export interface ErrorEntry {
  readonly message: string
  readonly hint: string
  readonly retry: RetryClass
  readonly httpStatus: number
  /** 1 failed, 2 wrong usage, 3 done but something is left to clean up. */
  readonly exitCode: 1 | 2 | 3
}

export const entry = (
  message: string,
  hint: string,
  retry: RetryClass = 'never',
  httpStatus = 500,
  exitCode: 1 | 2 | 3 = 1,
): ErrorEntry => ({ message, hint, retry, httpStatus, exitCode })
