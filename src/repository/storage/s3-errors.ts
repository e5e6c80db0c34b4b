/**
 * What an object store answers when it does not do what it was asked: which of it passes by itself, and how the rest is told.
 * Codes: the list of error codes of Amazon S3, and those that Ceph, MinIO and Swift use instead.
 */
import { describeError, Failure } from '../../base/failure.ts'
import { type ErrorCode, failure } from '../../errors.ts'

/** What an error says, whoever made it: the store, the SDK or the network. */
interface StoreWords {
  readonly code: string
  /** Of HTTP; undefined when there was no answer. */
  readonly status: number | undefined
  readonly message: string
}

function storeWords(error: unknown): StoreWords {
  if (!(error instanceof Error)) return { code: '', status: undefined, message: String(error) }
  const { $metadata, code } = error as { $metadata?: { httpStatusCode?: number }; code?: unknown }
  const status = $metadata?.httpStatusCode
  // The SDK puts the code of an answer into the name; a system error has it in `code`.
  return { code: typeof code === 'string' ? code : error.name, status, message: error.message }
}

const cutOffCode = 'CUT_OFF'
const passingCodes = new Set([
  ...['InternalError', 'ServiceUnavailable', 'SlowDown', 'Throttling', 'ThrottlingException', 'TooManyRequests'],
  ...['RequestTimeout', 'RequestLimitExceeded', 'OperationAborted', 'ConditionalRequestConflict'],
  ...['BadDigest', 'IncompleteBody', 'XAmzContentSHA256Mismatch'], // the body was spoiled on its way
  ...[
    'TimeoutError',
    'ECONNRESET',
    'ECONNREFUSED',
    'ECONNABORTED',
    'EPIPE',
    'ETIMEDOUT',
    'EHOSTUNREACH',
    'ENETUNREACH',
  ],
  ...['ENETDOWN', 'EAI_AGAIN', 'ENOTFOUND', 'ERR_STREAM_PREMATURE_CLOSE', 'HPE_INVALID_CONSTANT', cutOffCode],
])
const passingStatuses = new Set([408, 425, 429, 500, 502, 503, 504])

/** An answer that ended before all of it had come, or that is no answer; trying again may help. */
export function cutOff(message: string): Error {
  return Object.assign(new Error(message), { code: cutOffCode })
}

/** True when the same request may succeed in a moment. */
export function isPassing(error: unknown): boolean {
  if (error instanceof Failure) return false
  const { code, status } = storeWords(error)
  return passingCodes.has(code) || (status !== undefined && passingStatuses.has(status))
}

/** True when there was no answer at all, so that nobody knows what became of the request. */
export function isUnanswered(error: unknown): boolean {
  return storeWords(error).status === undefined
}

/** The object is not there. */
export function isMissing(error: unknown): boolean {
  const { code, status } = storeWords(error)
  return status === 404 && code !== 'NoSuchBucket'
}

/** A condition of the request does not hold: the object is there. */
export function isTaken(error: unknown): boolean {
  const { code, status } = storeWords(error)
  return status === 412 || code === 'PreconditionFailed'
}

/** The range begins behind the end of the object. */
export function isBehindEnd(error: unknown): boolean {
  const { code, status } = storeWords(error)
  return status === 416 || code === 'InvalidRange'
}

/** The store does not know a header of the request. */
export function isNotImplemented(error: unknown): boolean {
  const { code, status } = storeWords(error)
  return status === 501 || code === 'NotImplemented'
}

const failureCodes: ReadonlyMap<string, ErrorCode> = new Map([
  ...each('REPOSITORY_NO_BUCKET', ['NoSuchBucket']),
  ...each('REPOSITORY_CREDENTIALS', ['InvalidAccessKeyId', 'SignatureDoesNotMatch', 'InvalidToken', 'ExpiredToken']),
  ...each('REPOSITORY_CREDENTIALS', ['CredentialsProviderError', 'TokenProviderError', 'InvalidSecurity']),
  ...each('REPOSITORY_REGION', ['PermanentRedirect', 'TemporaryRedirect', 'AuthorizationHeaderMalformed']),
  ...each('REPOSITORY_REGION', ['IllegalLocationConstraintException']),
  ...each('REPOSITORY_CLOCK_SKEW', ['RequestTimeTooSkewed', 'RequestExpired']),
  ...each('REPOSITORY_FULL', ['QuotaExceeded', 'ServiceQuotaExceeded', 'InsufficientCapacity', 'StorageFull']),
  ...each('REPOSITORY_FULL', ['XMinioStorageFull', 'XMinioAdminBucketQuotaExceeded', 'InsufficientStorage']),
  ...each('REPOSITORY_ACCESS_DENIED', ['AccessDenied', 'AllAccessDisabled', 'AccountProblem', 'Forbidden']),
])

function each(failureCode: ErrorCode, codes: readonly string[]): [string, ErrorCode][] {
  return codes.map((code) => [code, failureCode])
}

const failureStatuses: ReadonlyMap<number, ErrorCode> = new Map([
  [301, 'REPOSITORY_REGION'],
  [307, 'REPOSITORY_REGION'],
  [401, 'REPOSITORY_CREDENTIALS'],
  [403, 'REPOSITORY_ACCESS_DENIED'],
  [507, 'REPOSITORY_FULL'],
])

/**
 * The failure that tells `error` to an operator, in the store's own words. `path` names bucket and key. What is told
 * already, and bugs, are passed through.
 */
export function s3Failure(error: unknown, path: string, neededBytes = 0): unknown {
  if (error instanceof Failure) return error
  const { code, status, message } = storeWords(error)
  const isOfTheSdk = status !== undefined || failureCodes.has(code) || isPassing(error)
  if (!isOfTheSdk && !isRegionMissing(error)) return error
  if (isMissing(error)) return failure('REPOSITORY_OBJECT_MISSING', { path })
  const coded = isRegionMissing(error) ? 'REPOSITORY_REGION' : (failureCodes.get(code) ?? byStatus(status))
  const reason = oneLine(status === undefined ? describeError(error) : answerText({ code, status, message }))
  return failure(coded, { path, reason, neededBytes })
}

const byStatus = (status: number | undefined) =>
  (status === undefined ? undefined : failureStatuses.get(status)) ?? 'REPOSITORY_IO'

const isRegionMissing = (error: unknown) => error instanceof Error && /^Region is missing/.test(error.message)

/** An answer without a body has neither code nor message, and the SDK makes something up. */
function answerText({ code, status, message }: StoreWords): string {
  const isUnknown = (text: string) => text === '' || /^Unknown(Error)?$/.test(text) || text === String(status)
  const words = [code, message].filter((text, index, all) => !isUnknown(text) && all.indexOf(text) === index)
  return [...words, `HTTP ${status}`].join(', ')
}

/** What a store says goes into a line of a terminal: no control characters, and not without end. */
const oneLine = (text: string) => text.replace(/[^\P{C}]+/gu, ' ').slice(0, 500)
