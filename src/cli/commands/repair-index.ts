/**
 * umbra repository repair-index: makes the indexes again from the packs.
 */
import type { Command } from 'commander'
import type { RepairIndexReport } from '../../repository/repository.ts'
import { type CommandContext, openSettledRepository, type Report, type Run, recoverFirst } from '../command.ts'
import { countText } from '../output.ts'

interface Options {
  readonly dryRun?: true
}

/** Adds itself below `umbra repository`. */
export function addRepairIndex(repository: Command, run: Run): void {
  repository
    .command('repair-index')
    .summary('make the indexes again from the packs')
    .description(
      'Reads the end of every pack, and all of those that are damaged, and puts new indexes in place of the old ones. For a ' +
        'repository whose indexes are damaged or lost. Backups and restores may go on meanwhile; it may be interrupted.',
    )
    .option('--dry-run', 'read everything and change nothing')
    .action((options: Options) => run((context) => repairIndex(options, context), { unwinds: true }))
}

async function repairIndex(options: Options, context: CommandContext): Promise<Report> {
  const dryRun = options.dryRun === true
  await using repository = await openSettledRepository(context.settings)
  await recoverFirst(context, 'continue')
  const report = await repository.repairIndex({ dryRun, signal: context.signal })
  return {
    document: { repository: repository.location, dryRun, ...report },
    text: reportText(report, dryRun),
    exitCode: report.damagedPacks.length === 0 ? 0 : 1,
  }
}

function reportText(report: RepairIndexReport, dryRun: boolean): string {
  const { packs, records, damagedPacks, foreign, skippedDrafts, indexesPut, indexesRemoved } = report
  const indexes = (count: number) => `${count} ${count === 1 ? 'index' : 'indexes'}`
  const done = dryRun ? `would put ${indexesPut} and remove` : `${indexes(indexesPut)} put,`
  const end = dryRun ? indexes(indexesRemoved) : `${indexesRemoved} removed`
  return [
    ...damagedPacks.map((one) => `${one.pack}: ${one.reason}; ${countText(one.records, 'record')} could be proven`),
    ...foreign.map((key) => `${key}: no pack of this repository`),
    ...skippedDrafts.map(({ draft, writer }) => `${draft}: left alone, ${writer ?? 'nobody'} is writing it`),
    `${countText(packs, 'pack')} with ${countText(records, 'record')}: ${done} ${end}`,
    ...(damagedPacks.length === 0 ? [] : ['Run umbra verify: it names what can not be restored.']),
  ].join('\n')
}
