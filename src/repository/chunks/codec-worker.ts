/**
 * The body of a codec thread: takes a job, does it in the shared buffer, answers. See codec-threads.ts.
 */
import { parentPort } from 'node:worker_threads'
import { FormatError } from '../format.ts'
import type { RecordKeys } from '../keys/seal.ts'
import { decodeRecord, encodeInPlace, type PlainRecord, type StoredForm, type StoredRecord } from './chunk-codec.ts'

/** A part of memory that all threads see. */
interface Place {
  readonly memory: SharedArrayBuffer
  readonly at: number
  readonly length: number
}

interface Job {
  readonly place: Place
  readonly keys: RecordKeys | undefined
}

export type CodecJob =
  | (Job & { readonly kind: 'encode'; readonly record: PlainRecord })
  | (Job & { readonly kind: 'decode'; readonly record: StoredRecord; readonly from: Place | undefined })

/** `damage` says why a record is none; `bug` is what should never happen. */
export type CodecAnswer =
  | { readonly stored: StoredForm }
  | { readonly decoded: true }
  | { readonly damage: string }
  | { readonly bug: string }

const bufferAt = ({ memory, at, length }: Place) => Buffer.from(memory, at, length)

function answer(job: CodecJob): CodecAnswer {
  const buffer = bufferAt(job.place)
  try {
    if (job.kind === 'encode') return { stored: encodeInPlace(buffer, job.record, job.keys) }
    decodeRecord(buffer, job.record, job.keys, job.from && bufferAt(job.from))
    return { decoded: true }
  } catch (error) {
    if (error instanceof FormatError) return { damage: error.message }
    return { bug: error instanceof Error ? `${error.stack}` : String(error) }
  }
}

const port = parentPort
port?.on('message', (job: CodecJob) => port.postMessage(answer(job)))
