/**
 * umbra retention: which recovery points are kept and why, and the deletion of the others.
 */
import { type Command, InvalidArgumentError } from 'commander'
import { ageForm, parseAge } from '../../base/age.ts'
import { systemClock } from '../../base/clock.ts'
import type { Configuration } from '../../config.ts'
import { failure } from '../../errors.ts'
import {
  fitsVm,
  planRetention,
  type RetentionPoint,
  type RetentionPolicy,
  type RetentionRule,
} from '../../repository/retention/retention.ts'
import { type RetentionOutcome, readRetentionPoints, removePoints } from '../../repository/retention/retention-run.ts'
import { type CommandContext, openSettledRepository, type Report, type Run, recoverFirst } from '../command.ts'
import { bad, countText, doubtful, good, tableText, timeText } from '../output.ts'

type Kept = Omit<RetentionRule, 'vms'>

interface Options extends Omit<Kept, 'keepWithinMs'> {
  readonly vm: readonly string[]
  readonly keepWithin?: number
  readonly allowNone?: boolean
  readonly dryRun?: true
}

export function addRetention(program: Command, run: Run): void {
  program
    .command('retention')
    .summary('remove the recovery points that no rule keeps')
    .description(
      'Removes, without asking, the recovery points that no rule keeps: look with --dry-run first. What is said here takes ' +
        'the place of retention: in the configuration file.\n' +
        'Never removed: what is pinned, what can not be read, the newest of each VM, and VMs that no rule is for.',
    )
    .option('--vm <pattern>', 'only these VMs, by name (with * and ?) or UUID; may be repeated', collect, [])
    .option('--keep-last <n>', 'keep the last N of each VM', count)
    .option('--keep-hourly <n>', 'keep the newest of each of the last N hours that have one', count)
    .option('--keep-daily <n>', 'the same for days', count)
    .option('--keep-weekly <n>', 'for ISO weeks', count)
    .option('--keep-monthly <n>', 'for months', count)
    .option('--keep-yearly <n>', 'for years', count)
    .option('--keep-within <age>', 'keep what is younger than this: 36h, 14d, 8w', age)
    .option('--allow-none', 'the newest of a VM may go too')
    .option('--dry-run', 'tell what would be removed and change nothing')
    .addHelpText(
      'after',
      `
Examples:
  umbra retention --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --dry-run
  umbra retention --vm 'test-*' --keep-within 14d`,
    )
    .action((options: Options) => run((context) => retentionCommand(options, context), { unwinds: true }))
}

const collect = (pattern: string, before: readonly string[]): string[] => [...before, pattern]

function count(text: string): number {
  const number = /^\d{1,6}$/.test(text) ? Number(text) : Number.NaN
  if (number <= 100_000) return number
  throw new InvalidArgumentError('It must be a number from 0 to 100000.')
}

function age(text: string): number {
  const ms = parseAge(text)
  if (ms === undefined) throw new InvalidArgumentError(`It must be ${ageForm}.`)
  return ms
}

async function retentionCommand(options: Options, context: CommandContext): Promise<Report> {
  const { signal, screen } = context
  const dryRun = options.dryRun === true
  const policy = policyOf(options, context.settings)
  await using repository = await openSettledRepository(context.settings)
  await recoverFirst(context, 'continue')
  const points = await readRetentionPoints(repository)
  refuseUnknown(options.vm, points)
  const decisions = planRetention(points, policy, systemClock.now())
  const outcomes = dryRun ? planned(decisions) : await removePoints(repository, decisions, signal)
  const end = summary(outcomes, dryRun, repository.location)
  if (signal.aborted) screen.note(end.join('; ')) // deletions are not put back
  signal.throwIfAborted()
  return {
    document: { repository: repository.location, dryRun, points: outcomes.map((one) => pointDocument(one, dryRun)) },
    text: `${tableOf(outcomes, dryRun, screen.width)}\n${end.join('\n')}`.trimStart(),
    exitCode: outcomes.some(({ became }) => became === 'failed') ? 1 : 0,
  }
}

/** What is said on the command line is the whole policy; else the configuration's. */
function policyOf(
  { vm, allowNone = false, dryRun: _, keepWithin, ...counts }: Options,
  { retention }: Configuration,
): RetentionPolicy {
  const kept: Kept = keepWithin === undefined ? counts : { ...counts, keepWithinMs: keepWithin }
  const said = Object.values(kept).some((value) => value !== undefined)
  const rules = said ? [{ vms: ['*'], ...kept }] : retention
  if (rules === undefined) {
    const reason =
      'nothing says what to keep: use --keep-last, --keep-daily and the like, or retention: in the configuration file'
    throw failure('USAGE', { reason })
  }
  return { rules, allowNone, ...(vm.length === 0 ? {} : { only: vm }) }
}

/** A misspelt name must not look like a VM of which nothing has to go. */
function refuseUnknown(patterns: readonly string[], points: readonly RetentionPoint[]): void {
  const held = points.flatMap(({ vms }) => vms)
  const unknown = patterns.filter((pattern) => !held.some((vm) => fitsVm(vm, pattern)))
  if (unknown.length === 0) return
  const known = [...new Set(held.map(({ name }) => name))].sort().join(', ') || 'none'
  throw failure('VM_NOT_FOUND', { vm: `${unknown.join(', ')} in any recovery point`, known })
}

const planned = (decisions: ReturnType<typeof planRetention>): RetentionOutcome[] =>
  decisions.map((decision) => ({ decision, became: decision.keep ? 'kept' : 'not reached' }))

function pointDocument({ decision, became, failure: why }: RetentionOutcome, dryRun: boolean) {
  const { point, keep, reasons } = decision
  return {
    id: point.id,
    ...(point.createdAtMs === undefined ? {} : { createdAt: new Date(point.createdAtMs).toISOString() }),
    vms: point.vms,
    ...(point.pinned === undefined ? {} : { pinned: { note: point.pinned } }),
    keep,
    reasons,
    ...(dryRun ? {} : { became }),
    ...(why === undefined ? {} : { error: { code: why.code, message: why.message } }),
  }
}

function tableOf(outcomes: readonly RetentionOutcome[], dryRun: boolean, width: number | undefined): string {
  if (outcomes.length === 0) return ''
  const columns = ['RECOVERY POINT', 'TIME', 'VMS', '', 'WHY'].map((head) => ({ head }))
  const rows = outcomes.map((outcome) => {
    const { point, reasons } = outcome.decision
    const time = point.createdAtMs === undefined ? 'unknown' : timeText(new Date(point.createdAtMs))
    const names = shortened(
      point.vms.map(({ name }) => name),
      ', ',
    )
    const why = outcome.failure === undefined ? shortened(reasons, '; ') : outcome.failure.message
    return [point.id, time, names, fateText(outcome, dryRun), why]
  })
  return `${tableText(columns, rows, width)}\n`
}

/** A set may hold a hundred VMs, each with its reasons; the document has them all. */
function shortened(items: readonly string[], between: string): string {
  const [some, more] = [items.slice(0, 3), items.length - 3]
  return [...some, ...(more > 0 ? [`${more} more`] : [])].join(between)
}

function fateText({ became }: RetentionOutcome, dryRun: boolean): string {
  if (became === 'kept') return good('keep')
  if (dryRun) return doubtful('remove')
  return became === 'failed' ? bad('failed') : doubtful(became)
}

/** In clauses, the first of them whole. */
function summary(outcomes: readonly RetentionOutcome[], dryRun: boolean, location: string): string[] {
  if (outcomes.length === 0) return [`there are no recovery points in ${location}`]
  const numberOf = (wanted: RetentionOutcome['became']) => outcomes.filter(({ became }) => became === wanted).length
  const [removed, failed, left] = [numberOf('removed'), numberOf('failed'), numberOf('not reached')]
  const all = countText(outcomes.length, 'recovery point')
  if (dryRun) return [`${left} of ${all} would be removed`, 'nothing was changed']
  return [
    `${removed} of ${all} ${removed === 1 ? 'was' : 'were'} removed`,
    ...(failed > 0 ? [`${failed} could not be removed`] : []),
    ...(left > 0 ? [`${left} more would have been`] : []),
    ...(removed > 0 ? ['their space comes back with umbra collect'] : []),
  ]
}
