/**
 * umbra vms: how each VM would be backed up, before anyone backs up.
 */
import type { Command } from 'commander'
import { openHypervisor, vmWriter } from '../../compose.ts'
import { failure } from '../../errors.ts'
import { type CommandContext, type Report, type Run, recoverFirst } from '../command.ts'
import { bytesText, countText, tableText } from '../output.ts'
import { conditionLines, isCalled, sumOf, type VmRecord, vmRecord } from '../vm-record.ts'

interface Options {
  readonly conditions?: true
}

type ListedVm = VmRecord & { readonly obstacles: readonly string[] }

export function addVms(program: Command, run: Run): void {
  program
    .command('vms')
    .summary('list the VMs and how each would be backed up')
    .description('Lists the VMs and the method that `auto` would take for each. With names: every condition in words.')
    .argument('[vm...]', 'only these, by name or UUID, with their conditions')
    .option('--conditions', 'print every condition of every VM, met or unmet')
    .action((names: string[], options: Options) => run((context) => vms(names, options, context)))
}

async function vms(names: readonly string[], options: Options, context: CommandContext): Promise<Report> {
  const { settings, screen } = context
  await using hypervisor = await openHypervisor(settings)
  await recoverFirst(context, 'continue')
  const writer = vmWriter(settings, hypervisor, { method: 'auto', require: 'crash', instant: 'vm' })
  const { components } = await writer.onIdentify()
  const all = components.map((component) => ({ ...vmRecord(component.plan), obstacles: component.obstacles }))
  const unknown = names.filter((name) => !all.some((vm) => isCalled(vm, name)))
  if (unknown.length > 0) {
    const known = all.map(({ name }) => name).join(', ') || 'none'
    throw failure('VM_NOT_FOUND', { vm: unknown.join(', '), known })
  }
  const wanted = all.filter((vm) => names.length === 0 || names.some((name) => isCalled(vm, name)))
  const inWords = options.conditions === true || names.length > 0
  const document = components
    .filter(({ name }) => wanted.some(({ uuid }) => uuid === name))
    .map(({ plan, obstacles }) => ({ ...plan, obstacles }))
  if (wanted.length === 0) return { document: { vms: [] }, text: `there are no VMs at ${hypervisor.uri}` }
  return {
    document: { vms: document },
    text: inWords ? wanted.map(vmInWords).join('\n\n') : table(wanted, screen.width),
  }
}

function table(vms: readonly ListedVm[], width: number | undefined): string {
  const columns = ['VM', 'STATE', 'METHOD', 'CONSISTENCY', 'DISKS', 'NOTES'].map((head) => ({ head }))
  const rows = vms.map((vm) => [
    vm.name,
    vm.power,
    vm.obstacles.length > 0 ? 'not possible' : vm.method,
    vm.obstacles.length > 0 ? '' : vm.consistency,
    vm.disks.length === 0 ? 'none' : `${vm.disks.length} (${bytesText(sumOf(vm.disks, 'sizeBytes'))})`,
    notes(vm).join('\n'),
  ])
  return tableText(columns, rows, width)
}

function notes({ because, obstacles, excluded }: ListedVm): string[] {
  return [
    ...(obstacles.length > 0 ? obstacles : [because]),
    ...excluded.map(({ target, reason }) => `without ${target}: ${reason}`),
  ]
}

function vmInWords(vm: ListedVm): string {
  const how =
    vm.obstacles.length > 0
      ? `can not be backed up: ${vm.obstacles.join('; ')}`
      : `${vm.method}, ${vm.consistency} consistency: ${vm.because}`
  const disks = vm.disks.map(
    ({ target, sizeBytes, location }) => `  disk   ${target}: ${bytesText(sizeBytes)}, ${location}`,
  )
  return [
    `${vm.name} (${vm.uuid}, ${vm.power}, ${countText(vm.disks.length, 'disk')})`,
    `  ${how}`,
    ...conditionLines(vm),
    ...disks,
    ...vm.excluded.map(({ target, reason }) => `  left out: ${target}: ${reason}`),
  ].join('\n')
}
