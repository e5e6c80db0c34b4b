/**
 * umbra verify: every byte read and hashed again; what is damaged is named by VM, disk and offset. Exit code 1 if any is.
 */
import { type Command, InvalidArgumentError } from 'commander'
import { ageForm, parseAge } from '../../base/age.ts'
import { failure } from '../../errors.ts'
import type { Damage, RecoveryPoint, Repository, VerifyReport } from '../../repository/repository.ts'
import { choosePoint } from '../choose-point.ts'
import { type CommandContext, openSettledRepository, type Report, type Run, recoverFirst } from '../command.ts'
import { bytesText, countText } from '../output.ts'
import { backupContent } from '../vm-record.ts'

interface Options {
  readonly sample?: number
  readonly seed?: number
  readonly notVerifiedFor?: number
  readonly resume?: true
}

export function addVerify(program: Command, run: Run): void {
  program
    .command('verify')
    .summary('read every byte of recovery points again')
    .description(
      'Reads and hashes every byte again. What is damaged is named by VM, disk and offset; then it exits with 1. The next ' +
        'backup stores anew what was found damaged, if it still is on the disks.',
    )
    .argument('[point...]', 'ids, or latest; everything if none is named')
    .option('--sample <percent>', 'read only so much, chosen at random: 5%', percent)
    .option('--seed <number>', 'choose the same sample again', seed)
    .option('--not-verified-for <age>', 'pass over what was verified later: 36h, 30d, 8w', age)
    .option('--resume', 'go on where the last run was interrupted')
    .addHelpText(
      'after',
      `
Examples:
  umbra verify --not-verified-for 30d     every night: nothing is read twice in a month
  umbra verify --sample 5%                every night another twentieth`,
    )
    .action((points: string[], options: Options) =>
      run((context) => verify(points, options, context), { unwinds: true }),
    )
}

function percent(text: string): number {
  const [, number = ''] = /^(\d{1,3}(?:\.\d{1,4})?)\s?%?$/.exec(text.trim()) ?? []
  if (number === '' || Number(number) > 100 || Number(number) <= 0) {
    throw new InvalidArgumentError('It must be above 0% and at most 100%.')
  }
  return Number(number) / 100
}

function seed(text: string): number {
  if (!/^\d{1,10}$/.test(text)) throw new InvalidArgumentError('It must be a number of at most 10 digits.')
  return Number(text)
}

function age(text: string): number {
  const ms = parseAge(text)
  if (ms === undefined) throw new InvalidArgumentError(`It must be ${ageForm}.`)
  return ms
}

/** A damaged range as its owner knows it, and everything that needs it. */
interface NamedDamage extends Omit<Damage, 'point'> {
  readonly points: readonly string[]
  readonly vm?: string
  readonly disk?: string
}

async function verify(wanted: readonly string[], options: Options, context: CommandContext): Promise<Report> {
  const { signal, screen } = context
  if (options.seed !== undefined && options.sample === undefined) {
    throw failure('USAGE', { reason: '--seed chooses a sample: say how much with --sample' })
  }
  await using repository = await openSettledRepository(context.settings)
  await recoverFirst(context, 'continue')
  const report = await repository.verify({
    ...(wanted.length === 0 ? {} : { points: await idsOf(wanted, repository) }),
    ...(options.sample === undefined ? {} : { sample: options.sample }),
    ...(options.seed === undefined ? {} : { seed: options.seed }),
    ...(options.notVerifiedFor === undefined ? {} : { notVerifiedForMs: options.notVerifiedFor }),
    ...(options.resume === true ? { resume: true } : {}),
    signal,
    onProgress: screen.meter('verify'),
  })
  const points = report.damage.length === 0 ? [] : await repository.listPoints()
  const damage = gather(report.damage.map((one) => nameDamage(one, points)))
  const sound = damage.length === 0 && report.damagedPoints.length === 0 && report.damagedIndexes.length === 0
  return {
    document: { repository: repository.location, sound, ...report, damage },
    text: reportText(report, damage),
    exitCode: sound ? 0 : 1,
  }
}

async function idsOf(wanted: readonly string[], repository: Repository): Promise<string[]> {
  const points = await Promise.all(wanted.map((one) => choosePoint(repository, one)))
  return points.map(({ id }) => id)
}

/** Streams are called UUID/disks/TARGET. */
function nameDamage(damage: Damage, points: readonly RecoveryPoint[]): NamedDamage {
  const [uuid, folder, target] = damage.name.split('/')
  const point = points.find(({ id }) => id === damage.point)
  const vm = point === undefined ? undefined : backupContent(point.content).vms.find((one) => one.uuid === uuid)
  const { point: id, ...rest } = damage
  return {
    ...rest,
    points: [id],
    ...(vm === undefined ? {} : { vm: vm.name }),
    ...(folder === 'disks' && target !== undefined ? { disk: target } : {}),
  }
}

/** The same place of the same disk is told once, with all points that need it. */
function gather(all: readonly NamedDamage[]): NamedDamage[] {
  const gathered = new Map<string, NamedDamage>()
  for (const one of all) {
    const { name, kind, offset, length, reason } = one
    const key = JSON.stringify([kind, name, offset, length, reason])
    const before = gathered.get(key)
    gathered.set(key, before === undefined ? one : { ...before, points: [...before.points, ...one.points] })
  }
  return [...gathered.values()]
}

function reportText(report: VerifyReport, damage: readonly NamedDamage[]): string {
  const { points, damagedPoints, damagedIndexes, spareDamage, chunks, bytesRead, packsRead, packsSkipped } = report
  const part = packsSkipped === 0 ? '' : ` (${packsRead} of ${countText(packsRead + packsSkipped, 'pack')})`
  const chosen = report.seed === undefined ? '' : `, sample ${report.seed}`
  const read = `${countText(points.length, 'recovery point')}, ${countText(chunks, 'chunk')}, ${bytesText(bytesRead)} read${part}${chosen}`
  const spare =
    spareDamage === 0 ? [] : [`${countText(spareDamage, 'damaged chunk')} that nothing needs: not used again`]
  const places = damage.length + damagedPoints.length + damagedIndexes.length
  if (places === 0) return [...spare, `${read}: everything is sound`].join('\n')
  return [
    ...damagedPoints.map(({ id, reason }) => `${id}: can not be read: ${reason}`),
    ...damagedIndexes.map(({ key, reason }) => `${key}: ${reason}; run umbra repository repair-index`),
    ...damage.map(damageLine),
    ...spare,
    `${read}: ${countText(places, 'damaged place')}`,
    ...(damage.length === 0
      ? []
      : ['The next backup of these disks stores anew what they still hold; verify again after it.']),
  ].join('\n')
}

function damageLine({ points, vm, disk, name, offset, length, reason }: NamedDamage): string {
  const what = [vm, disk ?? (vm === undefined ? name : name.split('/').slice(1).join('/'))].filter(Boolean).join(' ')
  return `${points.join(', ')}: ${what} at offset ${offset}, ${bytesText(length)}: ${reason}`
}
