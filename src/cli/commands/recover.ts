/**
 * umbra recover: undoes what interrupted sessions left. Every other command does it too, at its start.
 */
import type { Command } from 'commander'
import { recover } from '../../compose.ts'
import { type CommandContext, type Report, type Run, recoveredText } from '../command.ts'

export function addRecover(program: Command, run: Run): void {
  program
    .command('recover')
    .summary('undo what interrupted sessions left')
    .description(
      'Undoes what sessions left that were killed: thaws, resumes, merges, removes. Exits with 3 if steps remain.',
    )
    .action(() => run(recoverCommand, { unwinds: true }))
}

async function recoverCommand({ settings }: CommandContext): Promise<Report> {
  const sessions = await recover(settings)
  const lines = sessions.flatMap((session) => [
    recoveredText(session),
    ...session.undone.map((step) => `  undone: ${step}`),
    ...session.failed.map((step) => `  NOT UNDONE: ${step}`),
  ])
  const remains = sessions.some(({ failed }) => failed.length > 0)
  return {
    document: { sessions },
    text: lines.length === 0 ? 'no session was interrupted' : lines.join('\n'),
    exitCode: remains ? 3 : 0,
  }
}
