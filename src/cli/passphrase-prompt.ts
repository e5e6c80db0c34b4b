/**
 * Asks for a passphrase on a terminal, without echo. The question goes to standard error: standard output is the result's.
 */
import { failure } from '../errors.ts'

/** The part of a terminal that is used. */
export interface TerminalInput extends NodeJS.ReadableStream {
  readonly isTTY?: boolean
  setRawMode?(mode: boolean): unknown
}

export interface Terminal {
  readonly input: TerminalInput
  readonly output: NodeJS.WritableStream & { readonly isTTY?: boolean }
}

export const processTerminal: Terminal = { input: process.stdin, output: process.stderr }

/** Whether there is somebody to ask. */
export function canAsk({ input, output }: Terminal = processTerminal): boolean {
  return input.isTTY === true && output.isTTY === true && input.setRawMode !== undefined
}

/** What was typed up to Enter. Rejects with an AbortError on ^C, and with KEY_INVALID when the terminal ends. */
export async function askPassphrase(question: string, terminal: Terminal = processTerminal): Promise<string> {
  const { input, output } = terminal
  output.write(`${question}: `)
  input.setRawMode?.(true)
  input.setEncoding('utf8')
  input.resume() // it was paused after the question before
  try {
    return await typedLine(input)
  } finally {
    input.setRawMode?.(false)
    input.pause()
    output.write('\n')
  }
}

/** The same twice, because nobody sees what is typed. */
export async function askNewPassphrase(terminal: Terminal = processTerminal): Promise<string> {
  const typed = await askPassphrase('new passphrase', terminal)
  if ((await askPassphrase('once more', terminal)) === typed) return typed
  throw failure('KEY_INVALID', { what: 'the passphrase', reason: 'the two differ' })
}

const enter = ['\r', '\n']
const endOfInput = '\u0004'
const interrupt = '\u0003'
const eraseCharacter = ['\u007f', '\b']
const eraseLine = '\u0015'

function typedLine(input: TerminalInput): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  let letters: string[] = []
  const take = (data: string | Buffer) => {
    for (const letter of String(data)) {
      if (enter.includes(letter) || letter === endOfInput) return resolve(letters.join(''))
      if (letter === interrupt) return reject(new DOMException('cancelled by ^C', 'AbortError'))
      if (eraseCharacter.includes(letter)) letters.pop()
      else if (letter === eraseLine) letters = []
      else letters.push(letter)
    }
  }
  const ended = () => reject(failure('KEY_INVALID', { what: 'the passphrase', reason: 'the terminal was closed' }))
  input.on('data', take).on('end', ended)
  return promise.finally(() => input.off('data', take).off('end', ended))
}
