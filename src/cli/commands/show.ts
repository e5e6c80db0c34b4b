/**
 * umbra show: one recovery point: what it holds, what was achieved and why, and how the session went.
 */

import type { Command } from 'commander'
import { choosePoint } from '../choose-point.ts'
import { type CommandContext, openSettledRepository, type Report, type Run, recoverFirst } from '../command.ts'
import { durationText, tableText, timeText } from '../output.ts'
import { eventLine } from '../timeline.ts'
import { checkDocument, newestChecks, verdictText } from '../verdicts.ts'
import {
  backedUpColumns,
  backedUpRows,
  backupContent,
  conditionLines,
  identity,
  recoveryLines,
  remarks,
} from '../vm-record.ts'

export function addShow(program: Command, run: Run): void {
  program
    .command('show')
    .summary('show one recovery point')
    .description('Shows what a recovery point holds, what was achieved, and the events of its session.')
    .argument('<point>', 'id, its beginning, its last four letters, or latest')
    .action((point: string) => run((context) => show(point, context)))
}

async function show(wanted: string, context: CommandContext): Promise<Report> {
  await using repository = await openSettledRepository(context.settings)
  await recoverFirst(context, 'continue')
  const { id, createdAt, content, streams, documents } = await choosePoint(repository, wanted)
  const { vms, events, durationMs, skewMs } = backupContent(content)
  const checks = newestChecks((await repository.checks(id)).get(id) ?? [])
  const skew = vms.length > 1 ? `, ${durationText(skewMs)} between the first and the last copy` : ''
  const text = [
    `recovery point ${id}, made ${timeText(createdAt)} in ${durationText(durationMs)}${skew}`,
    '',
    tableText(backedUpColumns, vms.flatMap(backedUpRows), context.screen.width),
    '',
    ...vms.flatMap(remarks),
    ...vms.flatMap((vm) => ['', identity(vm), ...recoveryLines(vm), ...conditionLines(vm)]),
    ...checks.map((check) => `${verdictText(check, true)}`),
    '',
    ...events.map(eventLine),
  ].join('\n')
  const checked = checks.length === 0 ? {} : { checks: checks.map(checkDocument) }
  return { document: { id, createdAt: createdAt.toISOString(), ...content, ...checked, streams, documents }, text }
}
