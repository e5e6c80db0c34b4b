/**
 * The edge of the process: arguments in, exit code out. The first SIGINT or SIGTERM aborts the signal that every command
 * has, and everything unwinds; a second one exits at once and leaves the journal to the next start.
 */
import { CommanderError } from 'commander'
import { untilAborted } from '../base/async.ts'
import { readConfiguration } from '../config.ts'
import { failure } from '../errors.ts'
import { oneLine } from './output.ts'
import { buildProgram } from './program.ts'
import { Screen } from './screen.ts'
import { exitCodes, printFailure, tellFailure } from './told-failure.ts'

const words = process.argv.slice(2)
/** Known before the arguments are parsed, because they may be wrong. */
const json = words.slice(0, words.includes('--') ? words.indexOf('--') : undefined).includes('--json')
const screen = new Screen(json)
const cancellation = new AbortController()

for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(name, () => {
    if (cancellation.signal.aborted) process.exit(exitCodes.cancelled)
    screen.note('stopping, and putting everything back; a second signal leaves that to the next start')
    cancellation.abort(new DOMException(`cancelled by ${name}`, 'AbortError'))
  })
}

for (const event of ['uncaughtException', 'unhandledRejection'] as const) {
  process.on(event, (error: unknown) => void endWith(error).finally(() => process.exit(exitCodes.failed)))
}

async function main(): Promise<number> {
  const { signal } = cancellation
  let exitCode: number = exitCodes.done
  const program = await buildProgram(words, async (options, command, { unwinds = false } = {}) => {
    const settings = await readConfiguration(options)
    delete process.env.UMBRA_PASSPHRASE // not for hooks and other programs that are started
    const work = command({ settings, signal, screen })
    const report = await (unwinds ? work : untilAborted(work, signal))
    await screen.result(report.document, report.text)
    exitCode = report.exitCode ?? exitCodes.done
  })
  try {
    await program.parseAsync(words, { from: 'user' })
    return exitCode
  } catch (error) {
    if (!(error instanceof CommanderError)) return await endWith(error)
    if (error.exitCode === 0) return exitCodes.done // help or version, asked for
    const reason = error.code === 'commander.help' ? 'a command is missing' : withoutPrefix(error.message)
    return await endWith(failure('USAGE', { reason }))
  }
}

async function endWith(error: unknown): Promise<number> {
  const end = tellFailure(error, cancellation.signal.aborted)
  await printFailure(end, screen, json)
  return end.exitCode
}

const withoutPrefix = (message: string): string => oneLine(message).replace(/^error: /, '')

process.exit(await main())
