/**
 * Where a command's words go. Standard output holds the result and nothing else: text for people, or with --json exactly
 * one document. Notes and progress go to standard error; progress only when that is a terminal.
 */
import { systemClock } from '../base/clock.ts'
import { type Progress, ProgressMeter } from '../requester/progress.ts'
import { oneLine, printable } from './output.ts'
import { progressText } from './progress-line.ts'

type Stream = NodeJS.WriteStream

export class Screen {
  readonly #json: boolean
  readonly #stdout: Stream
  readonly #stderr: Stream
  #progressShown = false

  constructor(json: boolean, stdout: Stream = process.stdout, stderr: Stream = process.stderr) {
    this.#json = json
    this.#stdout = stdout
    this.#stderr = stderr
    // Whoever read us has gone (umbra points | head): no reason to stop in the middle of a backup.
    for (const stream of [stdout, stderr]) stream.on('error', () => undefined)
  }

  /** Columns that text may take; undefined when it goes to a file. */
  get width(): number | undefined {
    return this.#stdout.isTTY ? this.#stdout.columns : undefined
  }

  /** With --json: one document, and nothing beside it. */
  get isForPrograms(): boolean {
    return this.#json
  }

  /** Bytes as they are, taken when it resolves; false when nobody reads them any more. */
  readonly raw = (bytes: Uint8Array): Promise<boolean> => {
    this.#clearProgress()
    return new Promise((resolve) => this.#stdout.write(bytes, (error) => resolve(error == null)))
  }

  /** A part of the result that can not wait for its end. */
  readonly say = (line: string): void => {
    if (this.#json) return
    this.#clearProgress()
    this.#stdout.write(`${printable(line)}\n`)
  }

  readonly note = (line: string): void => {
    this.#clearProgress()
    this.#stderr.write(`${printable(`umbra: ${oneLine(line)}`)}\n`)
  }

  /** As it is; for the second line of a failure, and the trace of a bug. */
  readonly noteMore = (text: string): void => {
    this.#stderr.write(`${printable(text)}\n`)
  }

  readonly progress = (progress: Progress): void => {
    if (!this.#stderr.isTTY) return
    this.#stderr.write(`\r\u001b[2K${printable(progressText(progress, this.#stderr.columns ?? 80))}`)
    this.#progressShown = true
  }

  /** For work that tells only how many bytes are done. */
  meter(what: string): (bytesDone: number, bytesTotal: number) => void {
    const meter = new ProgressMeter(systemClock, this.progress)
    let begun = false
    let told = 0
    return (bytesDone, bytesTotal) => {
      if (!begun) meter.begin(what, bytesTotal)
      begun = true
      meter.advance(bytesDone - told)
      told = bytesDone
    }
  }

  /** The end of a command: its document or its text, wholly written when it resolves. */
  async result(document: unknown, text: string): Promise<void> {
    this.#clearProgress()
    const output = this.#json ? JSON.stringify(document, null, 2) : printable(text)
    if (output !== '') await written(this.#stdout, `${output}\n`)
    await written(this.#stderr, '')
  }

  #clearProgress(): void {
    if (this.#progressShown) this.#stderr.write('\r\u001b[2K')
    this.#progressShown = false
  }
}

function written(stream: Stream, text: string): Promise<void> {
  return new Promise((resolve) => stream.write(text, () => resolve()))
}
