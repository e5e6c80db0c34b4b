/**
 * umbra points: the recovery points of the repository, newest last.
 */
import type { Command } from 'commander'
import { failure } from '../../errors.ts'
import type { Check, DamagedPoint, Pin, RecoveryPoint } from '../../repository/repository.ts'
import { type CommandContext, openSettledRepository, type Report, type Run, recoverFirst } from '../command.ts'
import { bytesText, tableText, timeText } from '../output.ts'
import { checkDocument, newestChecks, verdictText } from '../verdicts.ts'
import { backupContent, isCalled, sumOf, type VmRecord } from '../vm-record.ts'

export function addPoints(program: Command, run: Run): void {
  program
    .command('points')
    .summary('list the recovery points')
    .description('Lists the recovery points, newest last; with a VM only those that hold it.')
    .argument('[vm]', 'name or UUID')
    .action((vm: string | undefined) => run((context) => points(vm, context)))
}

interface ListedPoint {
  readonly point: RecoveryPoint
  readonly vms: readonly VmRecord[]
  readonly pin: Pin | undefined
  /** The newest verdict on each VM. */
  readonly checks: readonly Check[]
}

async function points(wanted: string | undefined, context: CommandContext): Promise<Report> {
  await using repository = await openSettledRepository(context.settings)
  await recoverFirst(context, 'continue')
  const pins = await repository.pins()
  const checked = await repository.checks()
  const all = (await repository.listPoints()).map((point) => {
    const checks = newestChecks(checked.get(point.id) ?? [])
    return { point, vms: backupContent(point.content).vms, pin: pins.get(point.id), checks }
  })
  const damaged = await repository.listDamagedPoints()
  const listed = wanted === undefined ? all : all.filter(({ vms }) => vms.some((vm) => isCalled(vm, wanted)))
  if (wanted !== undefined && listed.length === 0) {
    const known = [...new Set(all.flatMap(({ vms }) => vms.map(({ name }) => name)))]
    throw failure('VM_NOT_FOUND', { vm: `${wanted} in any recovery point`, known: known.join(', ') || 'none' })
  }
  return {
    document: { repository: repository.location, points: listed.map(pointDocument), damaged },
    text: listText(listed, damaged, repository.location, context.screen.width),
  }
}

function pointDocument({ point, vms, pin, checks }: ListedPoint) {
  return {
    id: point.id,
    createdAt: point.createdAt.toISOString(),
    vms: vms.map(({ name, uuid, method, recovery, consistency, disks }) => {
      return { name, uuid, method, ...(recovery && { recovery: recovery.way }), consistency, disks }
    }),
    ...sizes(vms),
    ...(pin && { pinned: pin }),
    ...(checks.length > 0 && { checks: checks.map(checkDocument) }),
  }
}

function sizes(vms: readonly VmRecord[]) {
  const disks = vms.flatMap((vm) => vm.disks)
  return {
    sizeBytes: sumOf(disks, 'sizeBytes'),
    readBytes: sumOf(disks, 'readBytes'),
    storedBytes: sumOf(disks, 'storedBytes'),
  }
}

function listText(
  listed: readonly ListedPoint[],
  damaged: readonly DamagedPoint[],
  location: string,
  width: number | undefined,
): string {
  const columns = [
    { head: 'RECOVERY POINT' },
    { head: 'TIME' },
    { head: 'SIZE', align: 'right' as const },
    { head: 'STORED', align: 'right' as const },
    { head: 'VMS' },
  ]
  const rows = listed.map((one) => {
    const { sizeBytes, storedBytes } = sizes(one.vms)
    const names = one.vms.map(({ name, consistency }) => `${name} (${consistency})`).join(', ')
    return [
      one.point.id,
      timeText(one.point.createdAt),
      bytesText(sizeBytes),
      bytesText(storedBytes),
      names + pinText(one) + one.checks.map((check) => `; ${verdictText(check, one.vms.length > 1)}`).join(''),
    ]
  })
  return [
    listed.length === 0 ? `there are no recovery points in ${location}` : tableText(columns, rows, width),
    ...damaged.map(({ id, reason }) => `${id} can not be read: ${reason}`),
  ].join('\n')
}

const pinText = ({ pin }: ListedPoint): string => (pin === undefined ? '' : `; pinned: ${pin.note}`)
