/**
 * Who reads a guest's file systems for us: the port to the helper VM. Whatever it answers may have been made up by the guest
 * whose disks it has read.
 */

/** How a request ended: 0 when all is well, 3 when nothing was done; what there is to tell, fit for people. */
export interface AnswerEnd {
  readonly exit: number
  readonly notes: readonly string[]
}

export type Answer = AsyncGenerator<Buffer, AnswerEnd, void>

export interface GuestReader {
  /**
   * One request of helper-vm/umbra-files; words are bytes, one character each (latin1). One at a time; an answer is read to its
   * end, or the reader is of no more use. HELPER_VM_FAILED when it breaks off or stalls.
   */
  ask(words: readonly string[]): Answer
}

/** The whole answer, when it has at most so many bytes. */
export async function wholeAnswer(answer: Answer, mostBytes: number): Promise<{ bytes: Buffer; end: AnswerEnd }> {
  const parts: Buffer[] = []
  let length = 0
  for (;;) {
    const { done, value } = await answer.next()
    if (done) return { bytes: Buffer.concat(parts), end: value }
    length += value.length
    if (length > mostBytes) throw new RangeError(`an answer of more than ${mostBytes} bytes`)
    parts.push(value)
  }
}
