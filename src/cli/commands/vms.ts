/**
 * umbra vms: how each VM would be backed up, before anyone backs up.
 */
import type { Command } from 'commander'
import { openHypervisor, vmWriter } from '../../compose.ts'
import { failure } from '../../errors.ts'
import { withPlace } from '../../vss/components.ts'
import { type CommandContext, type Report, type Run, recoverFirst } from '../command.ts'
import { type ProfileOption, policyOf, profileOption } from '../policy-options.ts'
import { isCalled, vmRecord } from '../vm-record.ts'
import { renderVmInWords, renderVms } from '../vms-listing.ts'

interface Options extends ProfileOption {
  readonly conditions?: true
}

export function addVms(program: Command, run: Run): void {
  program
    .command('vms')
    .summary('list the VMs and how each would be backed up')
    .description('Lists the VMs and the method that `auto` would take for each. With names: every condition in words.')
    .argument('[vm...]', 'only these, by name or UUID, with their conditions')
    .option('--conditions', 'print every condition of every VM, met or unmet')
    .addOption(profileOption())
    .action((names: string[], options: Options) => run((context) => vms(names, options, context)))
}

async function vms(names: readonly string[], options: Options, context: CommandContext): Promise<Report> {
  const { settings, screen } = context
  await using hypervisor = await openHypervisor(settings)
  await recoverFirst(context, 'continue')
  const policy = policyOf(settings, options.profile === undefined ? {} : { profile: options.profile })
  const writer = vmWriter(settings, hypervisor, policy)
  const { components, elsewhere = [] } = await writer.onIdentify()
  const all = components.map((component) => ({ ...vmRecord(component.plan), obstacles: component.obstacles }))
  const unknown = names.filter((name) => !all.some((vm) => isCalled(vm, name)))
  if (unknown.length > 0) {
    const known = all.map(({ name }) => name).join(', ') || 'none'
    throw failure('VM_NOT_FOUND', { vm: unknown.map((name) => withPlace(name, elsewhere)).join(', '), known })
  }
  const wanted = all.filter((vm) => names.length === 0 || names.some((name) => isCalled(vm, name)))
  const inWords = options.conditions === true || names.length > 0
  const document = components
    .filter(({ name }) => wanted.some(({ uuid }) => uuid === name))
    .map(({ plan, obstacles, caption }) => ({ ...plan, caption, obstacles }))
  if (wanted.length === 0)
    return { document: { profile: policy.profile, vms: [] }, text: `there are no VMs at ${hypervisor.uri}` }
  return {
    document: { profile: policy.profile, vms: document },
    text: inWords ? wanted.map(renderVmInWords).join('\n\n') : renderVms(wanted, screen.width),
  }
}
