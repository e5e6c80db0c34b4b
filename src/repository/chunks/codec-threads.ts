/**
 * CodecThreads: compression, encryption and hashing beside the main thread, in buffers both share. Chosen by measurement over libuv's
 * pool: less memory (no buffer is left to the collector) and the main thread stays free for reading and writing.
 * Threads start with the first job that is worth the trip.
 */
import { availableParallelism } from 'node:os'
import { Worker } from 'node:worker_threads'
import { invariant } from '../../base/failure.ts'
import { ownProgram } from '../../base/own-programs.ts'
import { FormatError, recordHeaderBytes } from '../format.ts'
import type { RecordKeys } from '../keys/seal.ts'
import { AlignedBuffers, type SharedBuffer } from './aligned-buffers.ts'
import {
  decodeRecord,
  encodeInPlace,
  looksIncompressible,
  type PlainRecord,
  type StoredForm,
  type StoredRecord,
} from './chunk-codec.ts'
import type { CodecAnswer, CodecJob } from './codec-worker.ts'

/** A job below this is done on the spot: the trip to a thread would cost as much. */
const smallJobBytes = 64 * 1024
const mostThreads = 4

export interface CodecThreads {
  /** Jobs that keep all threads busy. */
  readonly jobsAtOnce: number
  /** A buffer of `bufferBytes`, its content anything; give it back. What follows a record's header there is aligned to pages. */
  takeBuffer(): SharedBuffer
  giveBuffer(buffer: SharedBuffer): void
  /** Replaces the plain bytes by their stored form. The buffer is the thread's until it resolves. */
  encode(buffer: SharedBuffer, record: PlainRecord): Promise<StoredForm>
  /** See decodeRecord. FormatError. Both buffers are the thread's meanwhile. */
  decode(buffer: SharedBuffer, record: StoredRecord, from?: SharedBuffer): Promise<void>
}

interface Thread {
  readonly worker: Worker
  /** The jobs it has, oldest first: a thread answers in order. */
  readonly waiting: PromiseWithResolvers<CodecAnswer>[]
}

/** The threads of this process, whichever repository they work for: they keep nothing between two jobs. */
const threads: Thread[] = []
const threadCount = Math.max(1, Math.min(availableParallelism(), mostThreads))

/**
 * `keys`: what is encoded and decoded is encrypted; they go to a thread with each job. Nothing to release: idle threads do
 * not keep the process alive.
 */
export function codecThreads(bufferBytes: number, keys: RecordKeys | undefined): CodecThreads {
  const buffers = buffersOf(bufferBytes)
  return {
    jobsAtOnce: threadCount * 2 + 1,
    takeBuffer: () => buffers.take(),
    giveBuffer: (buffer) => buffers.give(buffer),
    async encode(buffer, wanted) {
      const { plainBytes } = wanted
      const record = looksIncompressible(buffer.subarray(0, plainBytes)) ? { ...wanted, level: undefined } : wanted
      const isQuick = keys === undefined && record.level === undefined
      if (isQuick || plainBytes <= smallJobBytes) return encodeInPlace(buffer, record, keys)
      const reply = await run({ kind: 'encode', place: placeOf(buffer), record, keys })
      invariant('stored' in reply, `a codec thread failed: ${JSON.stringify(reply)}`)
      return reply.stored
    },
    async decode(buffer, record, from) {
      if (record.plainBytes <= smallJobBytes) return decodeRecord(buffer, record, keys, from)
      const reply = await run({ kind: 'decode', place: placeOf(buffer), record, keys, from: from && placeOf(from) })
      if ('damage' in reply) throw new FormatError(reply.damage)
      invariant('decoded' in reply, `a codec thread failed: ${JSON.stringify(reply)}`)
    },
  }
}

/** As the threads, they are the process's: of each size one pool. */
const pools = new Map<number, AlignedBuffers>()

function buffersOf(bufferBytes: number): AlignedBuffers {
  const pool = pools.get(bufferBytes) ?? new AlignedBuffers(bufferBytes, recordHeaderBytes)
  pools.set(bufferBytes, pool)
  return pool
}

const placeOf = ({ buffer, byteOffset, length }: SharedBuffer) => ({ memory: buffer, at: byteOffset, length })

function run(job: CodecJob): Promise<CodecAnswer> {
  const thread = leastBusyThread()
  const reply = Promise.withResolvers<CodecAnswer>()
  thread.waiting.push(reply)
  thread.worker.ref() // nobody may exit while a job is under way
  thread.worker.postMessage(job)
  return reply.promise
}

function leastBusyThread(): Thread {
  const busy = threads.length > 0 && threads.every(({ waiting }) => waiting.length > 0)
  if (threads.length === 0 || (busy && threads.length < threadCount)) threads.push(startThread())
  const [first, ...others] = threads
  invariant(first !== undefined, 'there is a thread')
  return others.reduce((one, other) => (other.waiting.length < one.waiting.length ? other : one), first)
}

/** For a job that follows at once: a worker that gets none would keep the process alive, unref does not count before it runs. */
function startThread(): Thread {
  const worker = new Worker(ownProgram('codec'), {
    resourceLimits: { maxYoungGenerationSizeMb: 2, maxOldGenerationSizeMb: 128 },
  })
  const thread: Thread = { worker, waiting: [] }
  worker.on('message', (reply: CodecAnswer) => {
    thread.waiting.shift()?.resolve(reply)
    if (thread.waiting.length === 0) worker.unref()
  })
  const end = (error: unknown) => {
    if (threads.includes(thread)) threads.splice(threads.indexOf(thread), 1)
    for (const reply of thread.waiting.splice(0)) reply.reject(error)
  }
  worker.on('error', end)
  worker.on('exit', () => end(new Error('a codec thread ended')))
  return thread
}
