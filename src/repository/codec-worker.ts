/**
 * The body of a codec thread: takes a job, does it in the shared buffer, answers. See codec-threads.ts.
 */
import { parentPort } from 'node:worker_threads'
import { decodeInPlace, encodeInPlace, type StoredForm, type StoredRecord } from './chunk-codec.ts'
import { FormatError } from './format.ts'

export type CodecJob =
  | { readonly kind: 'encode'; readonly buffer: SharedArrayBuffer; readonly plainBytes: number; readonly level: number }
  | { readonly kind: 'decode'; readonly buffer: SharedArrayBuffer; readonly record: StoredRecord }

/** `damage` says why a record is none; `bug` is what should never happen. */
export type CodecAnswer =
  | { readonly stored: StoredForm }
  | { readonly plainAt: number }
  | { readonly damage: string }
  | { readonly bug: string }

function answer(job: CodecJob): CodecAnswer {
  const buffer = Buffer.from(job.buffer)
  try {
    if (job.kind === 'encode') return { stored: encodeInPlace(buffer, job.plainBytes, job.level) }
    return { plainAt: decodeInPlace(buffer, job.record) }
  } catch (error) {
    if (error instanceof FormatError) return { damage: error.message }
    return { bug: error instanceof Error ? `${error.stack}` : String(error) }
  }
}

const port = parentPort
port?.on('message', (job: CodecJob) => port.postMessage(answer(job)))
