/**
 * The helper VM as a reader of files: it has the disks of one VM from the beginning and answers requests of umbra-files
 * (helper-vm/umbra-files). What the disks' own kernel would do to them, such as replaying a journal, goes into a file that has no
 * name, is limited, and goes with QEMU; the exports themselves are only ever read.
 */
import { randomBytes } from 'node:crypto'
import { invariant } from '../base/failure.ts'
import { failure } from '../errors.ts'
import type { HelperVmImages } from './helper-vm-images.ts'
import { type HelperVmProcess, startHelperVmProcess } from './helper-vm-process.ts'
import { BoundedLines, forPeople } from './helper-vm-replies.ts'

/** A raw disk that an NBD server exports on a unix socket. */
export interface ExportedDisk {
  /** How the VM knew it, `vda`: at most 20 letters and digits. */
  readonly name: string
  readonly socketPath: string
  readonly exportName: string
}

export interface FilesVmOptions {
  readonly images: HelperVmImages
  readonly disks: readonly ExportedDisk[]
  readonly signal: AbortSignal
}

/** How a request ended: 0 when all is well; what it has to tell, cleaned for people. */
export interface AnswerEnd {
  readonly exit: number
  readonly notes: readonly string[]
}

export interface FilesVm extends AsyncDisposable {
  readonly pid: number
  /** One request at a time. Yields what it answers and returns how it ended; nobody goes on after breaking off. HELPER_VM_FAILED. */
  ask(words: readonly string[], limits?: AskLimits): AsyncGenerator<Buffer, AnswerEnd, void>
}

export interface AskLimits {
  /** How long it may be silent while it owes an answer. */
  readonly stallMs: number
}

const memoryMiB = 384
const defaultLimits: AskLimits = { stallMs: 5 * 60_000 }
/** Of the file that catches the writes of one disk. */
const largestOverlayBytes = 512 * 1024 * 1024
const mostDisks = 200
const mostNotes = 400
const markBytes = 32

/** Boots it; disposal kills it, and nothing is left. */
export async function startFilesVm(options: FilesVmOptions): Promise<FilesVm> {
  const { images, disks, signal } = options
  invariant(disks.length > 0 && disks.length <= mostDisks, 'there are disks to read')
  const process = await startHelperVmProcess({
    images,
    memoryMiB,
    signal,
    devices: disks.flatMap(diskWords),
    largestFileBytes: largestOverlayBytes,
  })
  return {
    pid: process.pid,
    ask: (words, { stallMs } = defaultLimits) => ask(process, words, stallMs, signal),
    [Symbol.asyncDispose]: () => process[Symbol.asyncDispose](),
  }
}

function diskWords({ name, socketPath, exportName }: ExportedDisk, index: number): string[] {
  invariant(/^[A-Za-z0-9]{1,20}$/.test(name), 'a disk has a plain name')
  const escaped = (text: string) => text.replaceAll(',', ',,')
  const server = `file.server.type=unix,file.server.path=${escaped(socketPath)},file.export=${escaped(exportName)}`
  return [
    '-drive',
    `if=none,id=disk${index},format=raw,snapshot=on,cache=unsafe,file.driver=nbd,${server}`,
    '-device',
    `scsi-hd,bus=scsi.0,channel=0,scsi-id=${index},lun=0,drive=disk${index},serial=${name}`,
  ]
}

async function* ask(
  process: HelperVmProcess,
  words: readonly string[],
  stallMs: number,
  signal: AbortSignal,
): AsyncGenerator<Buffer, AnswerEnd, void> {
  const mark = randomBytes(markBytes).toString('hex')
  const line = `files ${mark} ${words.map(encodeWord).join(' ')}`
  const answer = process.bytesAfter(line, `${words[0]} in the helper VM`, stallMs, signal)
  return yield* untilMark(answer, mark)
}

/** As printf's `%b` takes it: every byte but plain ones as `\0ooo`, so that a word can hold anything. */
export function encodeWord(word: string): string {
  invariant(word !== '', 'a word is not empty')
  const encoded = [...Buffer.from(word, 'latin1')].map((byte) => {
    const text = String.fromCharCode(byte)
    return /[A-Za-z0-9._/-]/.test(text) ? text : `\\0${byte.toString(8).padStart(3, '0')}`
  })
  return encoded.join('')
}

/** The bytes before the mark; then the lines after it say how it ended. */
export async function* untilMark(answer: AsyncIterable<Buffer>, mark: string): AsyncGenerator<Buffer, AnswerEnd, void> {
  const needle = Buffer.from(`\n${mark}\n`)
  let rest: Buffer = Buffer.alloc(0)
  let end: AnswerLines | undefined
  for await (const part of answer) {
    const bytes = rest.length === 0 ? part : Buffer.concat([rest, part])
    if (end === undefined) {
      const at = bytes.indexOf(needle)
      const until = at >= 0 ? at : Math.max(0, bytes.length - needle.length + 1)
      rest = bytes.subarray(at >= 0 ? at + needle.length : until)
      if (until > 0) yield bytes.subarray(0, until)
      if (at < 0) continue
      end = new AnswerLines()
      if (end.take(rest)) return end.value
      rest = Buffer.alloc(0)
    } else if (end.take(part)) return end.value
  }
  throw failure('HELPER_VM_FAILED', { reason: 'it broke off' })
}

class AnswerLines {
  readonly #lines = new BoundedLines()
  readonly #notes: string[] = []
  #exit = 0

  get value(): AnswerEnd {
    return { exit: this.#exit, notes: this.#notes }
  }

  /** True when that was all. */
  take(bytes: Buffer): boolean {
    const lines = this.#lines.take(bytes)
    for (const [index, line] of lines.entries()) {
      const [word, text = ''] = [line.slice(0, 4), line.slice(5)]
      if (word === 'exit' && /^\d{1,3}$/.test(text) && index === lines.length - 1) {
        this.#exit = Number(text)
        return true
      }
      if (word !== 'note' || this.#notes.length >= mostNotes) {
        throw failure('HELPER_VM_FAILED', { reason: 'it broke the protocol: its answer has no proper end' })
      }
      this.#notes.push(forPeople(text))
    }
    return false
  }
}
