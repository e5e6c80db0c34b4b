/**
 * The body of a codec thread: takes a job, does it in the shared buffer, answers. See codec-threads.ts.
 */
import { parentPort } from 'node:worker_threads'
import { FormatError } from '../format.ts'
import type { RecordKeys } from '../keys/seal.ts'
import { decodeInPlace, encodeInPlace, type PlainRecord, type StoredForm, type StoredRecord } from './chunk-codec.ts'

interface Job {
  readonly memory: SharedArrayBuffer
  readonly at: number
  readonly length: number
  readonly keys: RecordKeys | undefined
}

export type CodecJob =
  | (Job & { readonly kind: 'encode'; readonly record: PlainRecord })
  | (Job & { readonly kind: 'decode'; readonly record: StoredRecord })

/** `damage` says why a record is none; `bug` is what should never happen. */
export type CodecAnswer =
  | { readonly stored: StoredForm }
  | { readonly decoded: true }
  | { readonly damage: string }
  | { readonly bug: string }

function answer(job: CodecJob): CodecAnswer {
  const buffer = Buffer.from(job.memory, job.at, job.length)
  try {
    if (job.kind === 'encode') return { stored: encodeInPlace(buffer, job.record, job.keys) }
    decodeInPlace(buffer, job.record, job.keys)
    return { decoded: true }
  } catch (error) {
    if (error instanceof FormatError) return { damage: error.message }
    return { bug: error instanceof Error ? `${error.stack}` : String(error) }
  }
}

const port = parentPort
port?.on('message', (job: CodecJob) => port.postMessage(answer(job)))
