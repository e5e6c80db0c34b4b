/**
 * umbra verify: every byte read and hashed again; what is damaged is named by VM, disk and offset. Exit code 1 if any is.
 */
import type { Command } from 'commander'
import type { Damage, RecoveryPoint, Repository, VerifyReport } from '../../repository/repository.ts'
import { choosePoint } from '../choose-point.ts'
import { type CommandContext, openSettledRepository, type Report, type Run, recoverFirst } from '../command.ts'
import { bytesText, countText } from '../output.ts'
import { backupContent } from '../vm-record.ts'

export function addVerify(program: Command, run: Run): void {
  program
    .command('verify')
    .summary('read every byte of recovery points again')
    .description(
      'Reads and hashes every byte again. What is damaged is named by VM, disk and offset; then it exits with 1.',
    )
    .argument('[point...]', 'ids, or latest; all of them if none is named')
    .action((points: string[]) => run((context) => verify(points, context), { unwinds: true }))
}

/** A damaged range as its owner knows it. */
interface NamedDamage extends Damage {
  readonly vm?: string
  readonly disk?: string
}

async function verify(wanted: readonly string[], context: CommandContext): Promise<Report> {
  const { signal, screen } = context
  await using repository = await openSettledRepository(context.settings)
  await recoverFirst(context, 'continue')
  const report = await repository.verify({
    ...(wanted.length === 0 ? {} : { points: await idsOf(wanted, repository) }),
    signal,
    onProgress: screen.meter('verify'),
  })
  const points = report.damage.length === 0 ? [] : await repository.listPoints()
  const damage = report.damage.map((one) => nameDamage(one, points))
  const sound = damage.length === 0 && report.damagedPoints.length === 0
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
  return {
    ...damage,
    ...(vm === undefined ? {} : { vm: vm.name }),
    ...(folder === 'disks' && target !== undefined ? { disk: target } : {}),
  }
}

function reportText(
  { points, damagedPoints, chunks, bytesRead }: VerifyReport,
  damage: readonly NamedDamage[],
): string {
  const read = `${countText(points.length, 'recovery point')}, ${countText(chunks, 'chunk')}, ${bytesText(bytesRead)} read`
  if (damage.length === 0 && damagedPoints.length === 0) return `${read}: everything is sound`
  return [
    ...damagedPoints.map(({ id, reason }) => `${id}: can not be read: ${reason}`),
    ...damage.map(damageLine),
    `${read}: ${countText(damage.length + damagedPoints.length, 'damaged place')}`,
  ].join('\n')
}

function damageLine({ point, vm, disk, name, offset, length, reason }: NamedDamage): string {
  const what = [vm, disk ?? (vm === undefined ? name : name.split('/').slice(1).join('/'))].filter(Boolean).join(' ')
  return `${point}: ${what} at offset ${offset}, ${bytesText(length)}: ${reason}`
}
