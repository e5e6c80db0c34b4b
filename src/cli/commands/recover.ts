/**
 * umbra recover: undoes what interrupted sessions left. Every other command does it too, at its start.
 */
import type { Command } from 'commander'
import { describeError } from '../../base/failure.ts'
import { recover } from '../../compose.ts'
import { type RecoveredInstant, recoverInstant } from '../../requester/instant.ts'
import { listRecords } from '../../requester/instant-record.ts'
import { type CommandContext, type Report, type Run, recoveredText } from '../command.ts'
import { instantEnvironment, openForInstant, openInstantHypervisor } from '../instant-environment.ts'

export function addRecover(program: Command, run: Run): void {
  program
    .command('recover')
    .summary('undo what interrupted sessions left')
    .description(
      'Undoes what sessions left that were killed: thaws, resumes, merges, removes. Serves the disks of instant restores\n' +
        'again whose server is gone, and goes on pulling them in. Exits with 3 if steps remain.',
    )
    .action(() => run(recoverCommand, { unwinds: true }))
}

async function recoverCommand({ settings }: CommandContext): Promise<Report> {
  const sessions = await recover(settings)
  const instants = await recoverInstants(settings)
  const lines = sessions.flatMap((session) => [
    recoveredText(session),
    ...session.undone.map((step) => `  undone: ${step}`),
    ...session.failed.map((step) => `  NOT UNDONE: ${step}`),
  ])
  lines.push(...instants.flatMap(recoveredInstantText))
  const remains = [...sessions, ...instants].some(({ failed }) => failed.length > 0)
  return {
    document: { sessions, instants },
    text: lines.length === 0 ? 'no session was interrupted' : lines.join('\n'),
    exitCode: remains ? 3 : 0,
  }
}

/** What serves the disks of VMs that run from recovery points runs again. */
async function recoverInstants(settings: CommandContext['settings']): Promise<RecoveredInstant[]> {
  const { records, unreadable } = await listRecords(settings.stateDirectory)
  const recovered = unreadable.map((path): RecoveredInstant => ({ name: path, done: [], failed: ['can not be read'] }))
  for (const record of records) {
    try {
      await using hypervisor = await openInstantHypervisor({ connect: record.uri })
      const environment = instantEnvironment(settings, hypervisor)
      const one = await recoverInstant(record, (location) => openForInstant(settings, location), environment)
      if (one !== undefined) recovered.push(one)
    } catch (error) {
      recovered.push({ name: record.name, done: [], failed: [describeError(error)] })
    }
  }
  return recovered
}

const recoveredInstantText = ({ name, done, failed }: RecoveredInstant): string[] => [
  `the instant restore ${name} was interrupted`,
  ...done.map((step) => `  done: ${step}`),
  ...failed.map((step) => `  NOT DONE: ${step}`),
]
