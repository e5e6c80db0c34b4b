/**
 * umbra check: starts the VMs of recovery points for a look, straight out of the repository, beside whatever runs.
 */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { checkEnvironment, openHypervisor } from '../../compose.ts'
import { failure } from '../../errors.ts'
import type { RecoveryPoint, Repository } from '../../repository/repository.ts'
import { type CheckEnvironment, type CheckResult, check, planCheck } from '../../requester/check.ts'
import type { CheckPlan, CheckRequest, Probe } from '../../vss/boot-check.ts'
import { choosePoint } from '../choose-point.ts'
import { type CommandContext, openSettledRepository, type Report, type Run, recoverFirst } from '../command.ts'
import { countText, durationText } from '../output.ts'
import { openTimeline } from '../timeline.ts'

interface Options {
  readonly vm: readonly string[]
  readonly order: readonly string[]
  readonly probe: readonly Probe[]
  readonly timeout: number
  readonly memory?: number
  readonly screens?: string
  readonly dryRun?: true
}

const more = `
Probes, each of which must succeed once the guest agent answers:
  agent              it answers (what is asked without any --probe)
  run=COMMAND        a command in the guest, through its agent; exit code 0
  tcp=PORT           a connection from this host, over the isolated network
  http=PORT[/PATH]   a GET in the same way; a status below 400

Exits with 1 when a VM does not pass.

Examples:
  umbra check latest --vm web01
  umbra check ab2c --order db01,web01 --probe 'run=systemctl is-active nginx' --probe http=80/health
  umbra check ab2c --dry-run`

export function addCheck(program: Command, run: Run): void {
  program
    .command('check')
    .summary('start VMs of a recovery point for a look')
    .description(
      'Starts the VMs of recovery points straight out of the repository, under other names, on throw-away overlays and on ' +
        'a network of their own without way out; waits for their guest agents, runs probes, takes a picture of the screen, ' +
        'removes everything, and keeps the verdict on the recovery point. Nothing that runs is touched.',
    )
    .argument('<point...>', 'ids, their beginnings, their last four letters, or latest')
    .option('--vm <name>', 'only this VM (by name or UUID); may be repeated', listed, [])
    .option('--order <names>', 'these first, one after the other: A,B,…', names, [])
    .option('--probe <probe>', 'what must succeed; may be repeated', probe, [])
    .addOption(
      new Option('--timeout <duration>', 'for each VM, from its start to its last probe: 90s, 5m, 1h')
        .argParser(duration)
        .default(300_000, '5m'),
    )
    .option('--memory <size>', 'at most so much memory for each VM: 512MiB, 2GiB', memorySize)
    .option('--screens <dir>', 'write the pictures there, as POINT-VM.png')
    .option('--dry-run', 'tell what would be done and change nothing')
    .addHelpText('after', more)
    .action((points: string[], options: Options) =>
      run((context) => checkCommand(points, options, context), { unwinds: true }),
    )
}

const listed = (name: string, before: string[]): string[] => [...before, name]
const names = (text: string): string[] => text.split(',').filter((name) => name !== '')

function probe(text: string, before: Probe[]): Probe[] {
  const port = (digits: string): number => {
    const number = Number(digits)
    if (number < 1 || number > 65_535) throw new InvalidArgumentError(`There is no port ${digits}.`)
    return number
  }
  const [, command] = /^run=(.{1,4096})$/s.exec(text) ?? []
  const [, tcp] = /^tcp=(\d{1,5})$/.exec(text) ?? []
  const [, http, path = '/'] = /^http=(\d{1,5})(\/[\x21-\x7e]{0,2000})?$/.exec(text) ?? []
  if (text === 'agent') return [...before, { kind: 'agent' }]
  if (command !== undefined) return [...before, { kind: 'run', command }]
  if (tcp !== undefined) return [...before, { kind: 'tcp', port: port(tcp) }]
  if (http !== undefined) return [...before, { kind: 'http', port: port(http), path }]
  throw new InvalidArgumentError('It must be agent, run=COMMAND, tcp=PORT or http=PORT[/PATH].')
}

const longestTimeoutMs = 24 * 3_600_000

function duration(text: string): number {
  const [, count = '', unit = ''] = /^(\d{1,6})(s|m|h)$/.exec(text) ?? []
  const ms = Number(count) * ({ s: 1000, m: 60_000, h: 3_600_000 }[unit] ?? 0)
  if (ms <= 0 || ms > longestTimeoutMs) throw new InvalidArgumentError('It must be as in 90s, 5m or 1h; at most 24h.')
  return ms
}

function memorySize(text: string): number {
  const [, count = '', unit = ''] = /^(\d{1,6})(MiB|GiB)$/.exec(text) ?? []
  const bytes = Number(count) * ({ MiB: 2 ** 20, GiB: 2 ** 30 }[unit] ?? 0)
  if (bytes < 16 * 2 ** 20) throw new InvalidArgumentError('It must be as in 512MiB or 2GiB; at least 16MiB.')
  return bytes
}

async function checkCommand(wanted: readonly string[], options: Options, context: CommandContext): Promise<Report> {
  const { settings, signal, screen } = context
  await using repository = await openSettledRepository(settings, { signal })
  const points = new Map<string, RecoveryPoint>()
  for (const one of wanted) {
    const point = await choosePoint(repository, one, options.vm)
    points.set(point.id, point)
  }
  await using hypervisor = await openHypervisor(settings)
  await recoverFirst(context, options.dryRun ? 'continue' : 'refuse')
  const environment = await checkEnvironment(settings, hypervisor, repository, signal)
  const request: CheckRequest = {
    order: options.order,
    probes: options.probe.length === 0 ? [{ kind: 'agent' }] : options.probe,
    timeoutMs: options.timeout,
    ...(options.memory === undefined ? {} : { memoryBytes: options.memory }),
  }
  if (options.dryRun) return planReport([...points.values()], options.vm, request, environment)
  const results: CheckResult[] = []
  for (const point of points.values()) {
    const result = await check(point, options.vm, request, { ...environment, onEvent: openTimeline(screen.say) })
    results.push(result)
    if (options.screens !== undefined) await writeScreens(result, options.screens, repository)
  }
  return resultReport(results)
}

async function planReport<Plan extends CheckPlan>(
  points: readonly RecoveryPoint[],
  vms: readonly string[],
  request: CheckRequest,
  environment: CheckEnvironment<Plan>,
): Promise<Report> {
  const plans = []
  for (const point of points) {
    const { plan } = await planCheck(point, vms, request, environment)
    const { captions, steps, warnings, obstacles } = plan
    plans.push({ recoveryPoint: point.id, vms: captions, steps, warnings, obstacles })
  }
  const possible = plans.every(({ obstacles }) => obstacles.length === 0)
  const lines = plans.flatMap(({ recoveryPoint, steps, warnings, obstacles }) => [
    `checking ${recoveryPoint} would do this:`,
    ...steps.map((step, index) => `  ${index + 1}. ${step}`),
    ...warnings.map((warning) => `  note: ${warning}`),
    ...obstacles.map((obstacle) => `  not possible: ${obstacle}`),
  ])
  return {
    document: { dryRun: true, possible, plans },
    text: [...lines, 'nothing was changed'].join('\n'),
    exitCode: possible ? 0 : 1,
  }
}

async function writeScreens(
  { recoveryPoint, vms }: CheckResult,
  directory: string,
  repository: Repository,
): Promise<void> {
  for (const { name, check: id, hasScreen } of vms) {
    const png = hasScreen ? await repository.checkScreen(recoveryPoint, id) : undefined
    if (png === undefined) continue
    // The name comes out of a recovery point.
    const path = join(directory, `${recoveryPoint}-${name.replace(/[^A-Za-z0-9._-]/g, '_')}.png`)
    await writeFile(path, png).catch((error: unknown) => {
      throw failure('USAGE', { reason: `--screens: ${path} can not be written` }, error)
    })
  }
}

function resultReport(results: readonly CheckResult[]): Report {
  const lines = results.flatMap(({ recoveryPoint, vms, durationMs, cleanup }) => [
    '',
    ...vms.map(({ name, passed, reason }) => `${name} ${passed ? 'boots' : 'DOES NOT PASS'}: ${reason}`),
    `recovery point ${recoveryPoint}, ${countText(vms.length, 'VM')}, ${durationText(durationMs)}`,
    ...cleanup.map((step) => `left to clean up: ${step} (run umbra recover)`),
  ])
  const left = results.some(({ cleanup }) => cleanup.length > 0)
  const passed = results.every((result) => result.passed)
  return { document: { passed, checks: results }, text: lines.join('\n'), exitCode: passed ? (left ? 3 : 0) : 1 }
}
