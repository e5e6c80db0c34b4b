/**
 * umbra restore: brings VMs of a recovery point back. Everything is read and verified while the old VM still stands.
 */
import { stat } from 'node:fs/promises'
import { resolve } from 'node:path'
import { type Command, InvalidArgumentError } from 'commander'
import type { RateLimit } from '../../base/rate-limit.ts'
import { openHypervisor, restoreEnvironment } from '../../compose.ts'
import { limitedSink } from '../../disk/limited-source.ts'
import { failure } from '../../errors.ts'
import { planRestore, type RestoreEnvironment, type RestoreResult, restore } from '../../requester/restore.ts'
import type { Hypervisor } from '../../vm/hypervisor.ts'
import type { ComponentRestorePlan, RestoreRequest } from '../../vss/restore-plan.ts'
import { choosePoint } from '../choose-point.ts'
import { type CommandContext, openSettledRepository, type Report, type Run, recoverFirst } from '../command.ts'
import { durationText } from '../output.ts'
import { limitOf, type RateOptions, rateOption } from '../rate-option.ts'
import { openTimeline } from '../timeline.ts'
import { backupContent, howText, isCalled, type VmRecord } from '../vm-record.ts'

interface Options extends RateOptions {
  readonly vm: readonly string[]
  readonly as?: string
  readonly to?: string
  readonly network: Readonly<Record<string, string>>
  readonly start?: boolean
  readonly dryRun?: true
}

export function addRestore(program: Command, run: Run): void {
  program
    .command('restore')
    .summary('bring VMs of a recovery point back')
    .description(
      'Restores the VMs of a recovery point. A VM of the same UUID that is here is turned off and replaced, after every\n' +
        'byte has been verified; it comes back if the restore fails.',
    )
    .argument('<point>', 'id, its beginning, its last four letters, or latest')
    .option(
      '--vm <name>',
      'only this VM (by name or UUID) or these files; may be repeated',
      (name, names: string[]) => [...names, name],
      [],
    )
    .option('--as <name>', 'as a new VM of this name, beside the original: new UUID, new MAC addresses')
    .option('--to <dir>', 'put the disks into this directory')
    .option('--network <old=new>', 'connect what was on OLD to NEW; may be repeated', networkPair, {})
    .option('--start', 'start what was restored')
    .addOption(rateOption('--limit-read', 'read from the repository'))
    .addOption(rateOption('--limit-write', 'write the disks'))
    .option('--dry-run', 'tell what would be done and change nothing')
    .addHelpText(
      'after',
      `
Examples:
  umbra restore 20261122T010203Z-ab2c --dry-run
  umbra restore ab2c --vm web01 --as web01-copy --to /srv/vms --network default=lab`,
    )
    .action((point: string, options: Options) =>
      run((context) => restoreCommand(point, options, context), { unwinds: true }),
    )
}

function networkPair(text: string, before: Record<string, string>): Record<string, string> {
  const [, from, to] = /^([^=]+)=([^=]+)$/.exec(text) ?? []
  if (from === undefined || to === undefined) throw new InvalidArgumentError('It must be OLD=NEW.')
  return { ...before, [from]: to }
}

async function restoreCommand(wanted: string, options: Options, context: CommandContext): Promise<Report> {
  const { settings, signal, screen } = context
  const request = await readRequest(options)
  await using repository = await openSettledRepository(settings, { get: limitOf(options.limitRead), signal })
  const point = await choosePoint(repository, wanted, options.vm)
  await using hypervisor = await openHypervisor(settings)
  await checkNetworks(options.network, hypervisor)
  await recoverFirst(context, options.dryRun ? 'continue' : 'refuse')
  const environment = await restoreEnvironment(settings, hypervisor, repository, signal)
  if (options.dryRun) {
    const { plans } = await planRestore(point, options.vm, request, environment.planner)
    const { vms } = backupContent(point.content)
    const how = vms.filter((vm) => options.vm.length === 0 || options.vm.some((name) => isCalled(vm, name)))
    return planReport(point.id, plans, how)
  }
  const result = await restore(point, options.vm, request, {
    ...environment,
    createImage: slowed(environment.createImage, limitOf(options.limitWrite), signal),
    onEvent: openTimeline(screen.say),
    onProgress: screen.progress,
  })
  return { document: result, text: resultText(result), exitCode: result.cleanup.length > 0 ? 3 : 0 }
}

/** Images whose writing keeps to the limit. */
function slowed(
  createImage: RestoreEnvironment['createImage'],
  limit: RateLimit | undefined,
  signal: AbortSignal,
): RestoreEnvironment['createImage'] {
  if (limit === undefined) return createImage
  return async (...image) => limitedSink(await createImage(...image), limit, signal)
}

async function readRequest({ as, to, network, start = false }: Options): Promise<RestoreRequest> {
  const directory = to === undefined ? undefined : resolve(to)
  if (directory !== undefined && !(await stat(directory).catch(() => undefined))?.isDirectory()) {
    throw failure('USAGE', { reason: `--to: there is no directory ${directory}` })
  }
  return {
    networks: network,
    start,
    ...(as === undefined ? {} : { as }),
    ...(directory === undefined ? {} : { to: directory }),
  }
}

async function checkNetworks(mapped: Options['network'], hypervisor: Hypervisor): Promise<void> {
  if (Object.keys(mapped).length === 0) return
  const known = (await hypervisor.networks()).map(({ name }) => name)
  const unknown = Object.values(mapped).filter((name) => !known.includes(name))
  if (unknown.length === 0) return
  const there = known.join(', ') || 'none'
  throw failure('USAGE', { reason: `--network: there is no network ${unknown.join(', ')}; there are: ${there}` })
}

function planReport(
  recoveryPoint: string,
  plans: readonly ComponentRestorePlan[],
  backedUp: readonly VmRecord[],
): Report {
  const vms = plans.map(({ caption, targets, steps, warnings, obstacles }) => ({
    name: caption,
    files: targets.map(({ path }) => path),
    steps,
    warnings,
    obstacles,
  }))
  const possible = vms.every(({ obstacles }) => obstacles.length === 0)
  const origin = backedUp.map((vm) => `${vm.name} was backed up by ${howText(vm)}`)
  const lines = vms.flatMap(({ name, steps, warnings, obstacles }) => [
    `${name}:`,
    ...steps.map((step, index) => `  ${index + 1}. ${step}`),
    ...warnings.map((warning) => `  note: ${warning}`),
    ...obstacles.map((obstacle) => `  not possible: ${obstacle}`),
  ])
  const last = possible ? 'nothing was changed' : 'this restore is not possible; nothing was changed'
  return {
    document: { dryRun: true, recoveryPoint, possible, vms },
    text: [`restoring ${recoveryPoint} would do this:`, ...origin, ...lines, last].join('\n'),
    exitCode: possible ? 0 : 1,
  }
}

function resultText({ recoveryPoint, vms, durationMs, cleanup }: RestoreResult): string {
  return [
    '',
    ...vms.flatMap(({ name, files, warnings }) => [
      `${name} was restored: ${files.join(', ')}`,
      ...warnings.map((warning) => `  note: ${warning}`),
    ]),
    `recovery point ${recoveryPoint}, ${durationText(durationMs)}`,
    ...cleanup.map((step) => `left to clean up: ${step} (run umbra recover)`),
  ].join('\n')
}
