/**
 * umbra collect: gives back the space of deleted recovery points.
 */
import { type Command, InvalidArgumentError } from 'commander'
import { parseAge } from '../../base/age.ts'
import type { CollectOptions, CollectReport } from '../../repository/repository.ts'
import { type CommandContext, openSettledRepository, type Report, type Run, recoverFirst } from '../command.ts'
import { bad, bytesText, countText, doubtful, good, timeText } from '../output.ts'

interface Options {
  readonly dryRun?: true
  readonly delay: number
  readonly repackBelow: number
  readonly maxRepack: number
  readonly giveUp?: string
  readonly without: readonly string[]
}

export function addCollect(program: Command, run: Run): void {
  program
    .command('collect')
    .summary('give back the space of deleted recovery points')
    .description(
      'Removes what no recovery point needs, in two steps: what is garbage today is marked, and what was marked long enough ' +
        'ago is removed. Backups, restores and everything else go on meanwhile. Run it once a day, after umbra retention.',
    )
    .option('--dry-run', 'tell what would be done and change nothing')
    .option('--delay <age>', 'how long what is marked stays: 24h, 3d, or 0 to remove at once', delay, 24 * 3_600_000)
    .option('--repack-below <percent>', 'copy the rest out of packs of which less is needed', percent, 0.5)
    .option('--max-repack <size>', 'copy at most so much in one run: 500M, 16G, 1T', size, 16 * 1024 ** 3)
    .option('--give-up <draft>', 'do not wait for this backup of another host any more; be sure that it has ended')
    .option('--without <point>', 'take this damaged recovery point for deleted; may be repeated', gather, [])
    .addHelpText(
      'after',
      `
Examples:
  umbra collect --dry-run
  umbra collect --delay 0                 the disk is full: space comes back now`,
    )
    .action((options: Options) => run((context) => collect(options, context), { unwinds: true }))
}

const gather = (one: string, before: readonly string[]): string[] => [...before, one]

function delay(text: string): number {
  const ms = /^0\s?[hdw]?$/.test(text.trim()) ? 0 : parseAge(text)
  if (ms === undefined) throw new InvalidArgumentError('It must be 0, or a number and h, d or w, as in 24h, 3d.')
  return ms
}

function percent(text: string): number {
  const [, number = ''] = /^(\d{1,3})\s?%?$/.exec(text.trim()) ?? []
  if (number === '' || Number(number) > 100) throw new InvalidArgumentError('It must be from 0% to 100%.')
  return Number(number) / 100
}

const units = { K: 1024, M: 1024 ** 2, G: 1024 ** 3, T: 1024 ** 4 } as const

function size(text: string): number {
  const [, number = '', unit = ''] = /^(\d{1,6})\s?([KMGT])?(?:i?B)?$/i.exec(text.trim()) ?? []
  if (number === '') throw new InvalidArgumentError('It must be a number and K, M, G or T, as in 500M, 16G.')
  return Number(number) * (units[unit.toUpperCase() as keyof typeof units] ?? 1)
}

async function collect(options: Options, context: CommandContext): Promise<Report> {
  await using repository = await openSettledRepository(context.settings)
  await recoverFirst(context, 'continue')
  const report = await repository.collect(repositoryOptions(options, context.signal))
  const sound = report.missing.records === 0 && report.damaged.length === 0
  return {
    document: { repository: repository.location, ...report },
    text: collectText(report, options.delay),
    exitCode: sound ? 0 : 1,
  }
}

function repositoryOptions(options: Options, signal: AbortSignal): CollectOptions {
  const { dryRun = false, giveUp, without } = options
  return {
    ...{ dryRun, without, signal },
    ...{ delayMs: options.delay, repackBelow: options.repackBelow, maxRepackBytes: options.maxRepack },
    ...(giveUp === undefined ? {} : { giveUp }),
  }
}

const packs = ({ packs: count, bytes }: { readonly packs: number; readonly bytes: number }) =>
  `${countText(count, 'pack')}, ${bytesText(bytes)}`

/** In the order in which it was done. */
export function collectText(report: CollectReport, delayMs: number): string {
  const { dryRun, total, discarded, swept, pardoned, condemned, repacked, mergedIndexes } = report
  const did = (done: string, planned: string) => (dryRun ? `would ${planned}` : done)
  const lines = [
    `${countText(report.points, 'recovery point')}; ${packs(total)}`,
    discarded.drafts.length > 0 &&
      `${did('cleared away', 'clear away')} ${countText(discarded.drafts.length, 'backup')} that died: ${packs(discarded)}`,
    swept.packs > 0 && good(`${did('removed', 'remove')}: ${packs(swept)}`),
    pardoned.packs > 0 && `needed again since ${dryRun ? 'they were' : 'being'} marked: ${packs(pardoned)}`,
    repacked.packs > 0 &&
      `${did('copied', 'copy')} ${bytesText(repacked.bytes)} out of ${countText(repacked.packs, 'pack')} that ${repacked.packs === 1 ? 'is' : 'are'} mostly garbage`,
    condemned.packs > 0 && `${did('marked', 'mark')}: ${packs(condemned)}`,
    mergedIndexes > 0 && `${did('merged', 'merge')} ${mergedIndexes} small indexes`,
    ...report.waiting.map((one) => doubtful(waitingText(one, delayMs))),
    ...report.kept
      .filter(({ reason }) => reason !== 'needed' && reason !== 'waiting')
      .map((one) => `kept, because ${one.text}: ${packs(one)}`),
    ...report.damaged.map(({ key, reason }) => bad(`${key} is damaged: ${reason}`)),
    report.missing.records > 0 && bad(missingText(report)),
  ].filter((line) => line !== false)
  return lines.length === 1 ? `${lines[0]}: there is nothing to collect` : lines.join('\n')
}

function waitingText(one: CollectReport['waiting'][number], delayMs: number): string {
  const until = delayMs === 0 ? '' : `until ${timeText(new Date(one.until))}`
  const drafts = one.drafts.length === 0 ? '' : `for the backup ${one.drafts.join(', ')} to end`
  return `waits ${[until, drafts].filter(Boolean).join(' and ') || 'for the next run'}: ${packs(one)}`
}

function missingText({ missing: { records } }: CollectReport): string {
  return `${countText(records, 'needed record')} can not be found in any index: umbra verify names the recovery points`
}
