/**
 * A stream as a disk that is read once, from its beginning to its end: what the reader of archives takes. Its length is not known
 * before its end; beyond that there are zeros, which end an archive, and `finish` says whether the stream's own end was there.
 */
import { invariant } from '../base/failure.ts'
import type { BlockSource } from '../disk/block-device.ts'
import { failure } from '../errors.ts'
import type { Answer, AnswerEnd } from './guest-reader.ts'

export interface SequentialSource extends BlockSource {
  /** Takes the short rest after `bytes`, the archive's length. GUEST_FILES_REFUSED when the stream has not so many. */
  finish(bytes: number): Promise<AnswerEnd>
}

/** An archive's last blocks and its padding. */
const mostRestBytes = 8 * 1024 * 1024

export function sequentialSource(answer: Answer): SequentialSource {
  let position = 0
  let rest: Buffer = Buffer.alloc(0)
  let end: AnswerEnd | undefined
  let streamBytes = 0
  let turn: Promise<unknown> = Promise.resolve()

  const next = async () => {
    const { done, value } = await answer.next()
    if (done) {
      end = value
      return
    }
    rest = value
    streamBytes += value.length
  }
  const fill = async (offset: number, target: Uint8Array) => {
    invariant(offset === position, 'a stream is read in order')
    position += target.length
    for (let done = 0; done < target.length; ) {
      if (rest.length === 0 && end === undefined) await next()
      if (rest.length === 0 && end !== undefined) {
        // A reader reads ahead, but what it goes on to read is not there.
        if (offset > streamBytes + mostRestBytes) throw cutOff(end)
        target.fill(0, done)
        return
      }
      const taken = rest.subarray(0, target.length - done)
      target.set(taken, done)
      rest = rest.subarray(taken.length)
      done += taken.length
    }
  }
  return {
    sizeBytes: Number.MAX_SAFE_INTEGER,
    read(offset, target) {
      const reading = turn.then(() => fill(offset, target))
      turn = reading.catch(() => undefined)
      return reading
    },
    async *extents(offset, length) {
      yield { offset, length, data: true }
    },
    async finish(bytes) {
      await turn
      for (let taken = 0; end === undefined; ) {
        taken += rest.length
        if (taken > mostRestBytes) throw failure('GUEST_FILES_REFUSED', { reason: 'the archive goes on after its end' })
        await next()
      }
      if (streamBytes < bytes) throw cutOff(end)
      return end
    },
    async [Symbol.asyncDispose]() {
      await answer.return({ exit: 0, notes: [] })
    },
  }
}

const cutOff = ({ notes }: AnswerEnd): Error =>
  failure('GUEST_FILES_REFUSED', { reason: `the archive is cut off: ${notes.join('; ')}` })
