/**
 * umbra instant: a VM that runs at once from a recovery point, and what becomes of it: finish or drop.
 */
import { stat } from 'node:fs/promises'
import { resolve } from 'node:path'
import { type Command, InvalidArgumentError } from 'commander'
import { Failure } from '../../base/failure.ts'
import { failure } from '../../errors.ts'
import type { Repository } from '../../repository/repository.ts'
import {
  type BegunInstant,
  beginInstant,
  dropInstant,
  finishInstant,
  newToken,
  type OpenedRepository,
  type PlannedInstant,
  planInstantRestore,
} from '../../requester/instant.ts'
import { type InstantRecord, listRecords, placesOf, readRecord } from '../../requester/instant-record.ts'
import { serverProcesses, startServerEarly } from '../../requester/instant-server.ts'
import { choosePoint } from '../choose-point.ts'
import { type CommandContext, type Report, type Run, recoverFirst, repositoryDirectory } from '../command.ts'
import { instantEnvironment, openForInstant, openInstantHypervisor } from '../instant-environment.ts'
import { tableText } from '../output.ts'

interface Options {
  readonly as?: string
  readonly vm: readonly string[]
  readonly to?: string
  readonly network: Readonly<Record<string, string>>
  readonly finish?: true
  readonly dryRun?: true
}

export function addInstant(program: Command, run: Run): void {
  const instant = program
    .command('instant')
    .summary('run a VM straight from a recovery point')
    .description(
      'Starts a copy of a VM within seconds, on overlays above its disks in the repository. Everything the VM writes stays\n' +
        'in the overlays. Finish it, and it is a VM like any other; drop it, and nothing of it is left. Without a point: lists.',
    )
    .argument('[point]', 'id, its beginning, its last four letters, or latest')
    .option('--as <name>', 'the name of the VM; it gets a new UUID and new MAC addresses')
    .option(
      '--vm <name>',
      'this VM of the recovery point, by name or UUID; needed when it holds several',
      (name, names: string[]) => [...names, name],
      [],
    )
    .option('--to <dir>', 'put the overlays, and so in the end the disks, into this directory')
    .option('--network <old=new>', 'connect what was on OLD to NEW; may be repeated', networkPair, {})
    .option('--finish', 'pull the disks in at once, while the VM runs')
    .option('--dry-run', 'tell what would be done and change nothing')
    .addHelpText(
      'after',
      `
Examples:
  umbra instant latest --vm web01 --as web01-now
  umbra instant
  umbra instant finish web01-now
  umbra instant drop web01-now`,
    )
    .action((point: string | undefined, options: Options) =>
      run((context) => (point === undefined ? listCommand(context) : beginCommand(point, options, context)), {
        unwinds: true,
      }),
    )
  instant
    .command('list')
    .description('Lists the VMs that run from recovery points.')
    .action(() => run(listCommand))
  instant
    .command('finish')
    .description('Pulls the disks in, while the VM runs or is off; then it needs the repository no more.')
    .argument('<name>', 'the VM')
    .action((name: string) => run((context) => finishCommand(name, context), { unwinds: true }))
  instant
    .command('drop')
    .description('Turns the VM off and removes it with everything that was written in it.')
    .argument('<name>', 'the VM')
    .action((name: string) => run((context) => dropCommand(name, context), { unwinds: true }))
}

function networkPair(text: string, before: Record<string, string>): Record<string, string> {
  const [, from, to] = /^([^=]+)=([^=]+)$/.exec(text) ?? []
  if (from === undefined || to === undefined) throw new InvalidArgumentError('It must be OLD=NEW.')
  return { ...before, [from]: to }
}

async function beginCommand(wanted: string, options: Options, context: CommandContext): Promise<Report> {
  const { settings } = context
  const { as, network, dryRun = false } = options
  if (as === undefined) throw failure('USAGE', { reason: 'name the VM that is to be made: --as NAME' })
  const to = await directoryOf(options.to)
  const location = repositoryDirectory(settings)
  const token = newToken()
  const { serverPidFile } = placesOf(settings.stateDirectory, { token })
  const early = dryRun ? undefined : { token, server: startServerEarly(serverPidFile) }
  await using stack = new AsyncDisposableStack()
  stack.defer(() => void early?.server.child.stdin?.end()) // without an order it ends
  await using opened = await openForInstant(settings, location)
  const point = await choosePoint(opened.repository, wanted, options.vm)
  await using hypervisor = await openInstantHypervisor(settings)
  await checkNetworks(network, await hypervisor.networks())
  await recoverFirst(context, dryRun ? 'continue' : 'refuse')
  const environment = instantEnvironment(settings, hypervisor)
  const request = { as, networks: network, start: true, ...(to === undefined ? {} : { to }) }
  const planned = await planInstantRestore(point, options.vm, request, environment)
  if (dryRun) return planReport(point.id, planned)
  const begun = await beginInstant(point, planned, opened, environment, early)
  if (options.finish) await finish(await readRecord(settings.stateDirectory, as), opened, context)
  return { document: { ...begun, finished: options.finish === true }, text: begunText(begun, options.finish === true) }
}

async function directoryOf(to: string | undefined): Promise<string | undefined> {
  if (to === undefined) return undefined
  const directory = resolve(to)
  if ((await stat(directory).catch(() => undefined))?.isDirectory()) return directory
  throw failure('USAGE', { reason: `--to: there is no directory ${directory}` })
}

async function checkNetworks(mapped: Options['network'], known: readonly { name: string }[]): Promise<void> {
  const unknown = Object.values(mapped).filter((name) => !known.some((network) => network.name === name))
  if (unknown.length === 0) return
  const there = known.map(({ name }) => name).join(', ') || 'none'
  throw failure('USAGE', { reason: `--network: there is no network ${unknown.join(', ')}; there are: ${there}` })
}

function planReport(recoveryPoint: string, { plan }: PlannedInstant): Report {
  const { name, steps, warnings, obstacles, disks } = plan
  const possible = obstacles.length === 0
  const lines = [
    `running ${name} from ${recoveryPoint} would do this:`,
    ...steps.map((step, index) => `  ${index + 1}. ${step}`),
    ...warnings.map((warning) => `  note: ${warning}`),
    ...obstacles.map((obstacle) => `  not possible: ${obstacle}`),
    possible ? 'nothing was changed' : 'this instant restore is not possible; nothing was changed',
  ]
  const told = { name, disks: disks.map(({ overlay }) => overlay), steps, warnings, obstacles }
  return {
    document: { dryRun: true, recoveryPoint, possible, ...told },
    text: lines.join('\n'),
    exitCode: possible ? 0 : 1,
  }
}

function begunText({ name, recoveryPoint, warnings }: BegunInstant, finished: boolean): string {
  const now = finished
    ? `${name} runs on disks of its own, out of ${recoveryPoint}`
    : `${name} runs from ${recoveryPoint}; umbra instant finish ${name} makes it a VM of its own, umbra instant drop ${name} removes it`
  return [now, ...warnings.map((warning) => `  note: ${warning}`)].join('\n')
}

async function listCommand({ settings }: CommandContext): Promise<Report> {
  const { stateDirectory } = settings
  const { records, unreadable } = await listRecords(stateDirectory)
  if (records.length === 0 && unreadable.length === 0)
    return { document: { instants: [], unreadable }, text: 'no VM runs from a recovery point' }
  const instants = await Promise.all(records.map((record) => describe(record, settings)))
  const rows = instants.map(({ name, power, served, stage, point, pulled, disks }) => [
    ...[name, power, served ? 'yes' : 'NO: umbra recover', stage, `${pulled} of ${disks.length}`, point],
  ])
  const titles = ['VM', 'POWER', 'SERVED', 'STAGE', 'DISKS PULLED', 'RECOVERY POINT']
  const table =
    rows.length === 0
      ? []
      : [
          tableText(
            titles.map((head) => ({ head })),
            rows,
          ),
        ]
  const odd = unreadable.map((path) => `can not be read: ${path}`)
  return { document: { instants, unreadable }, text: [...table, ...odd].join('\n') }
}

async function describe(record: InstantRecord, { stateDirectory }: CommandContext['settings']) {
  const { name, uuid, point, repository, startedAt, stage, disks, uri } = record
  const served = await serverProcesses(stateDirectory).isServed(record)
  const told = { name, uuid, point, repository, startedAt, stage, served, disks: disks.map(({ overlay }) => overlay) }
  try {
    await using hypervisor = await openInstantHypervisor({ connect: uri })
    const { machine } = instantEnvironment({ stateDirectory }, hypervisor)
    let pulled = 0
    for (const disk of disks) if (await machine.isPulled(uuid, disk)) pulled += 1
    return { ...told, power: await machine.power(uuid), pulled }
  } catch {
    return { ...told, power: 'unknown', pulled: 0 }
  }
}

async function finish(
  record: InstantRecord,
  opened: OpenedRepository,
  { settings, signal, screen }: CommandContext,
): Promise<void> {
  await using hypervisor = await openInstantHypervisor({ connect: record.uri })
  const meters = new Map(record.disks.map(({ target }) => [target, screen.meter(`${record.name} ${target}`)]))
  await finishInstant(record, opened, instantEnvironment(settings, hypervisor), {
    signal,
    onProgress: (disk, done, total) => meters.get(disk)?.(done, total),
  })
}

async function finishCommand(name: string, context: CommandContext): Promise<Report> {
  const record = await readRecord(context.settings.stateDirectory, name)
  await using opened = await openForInstant(context.settings, record.repository)
  await finish(record, opened, context)
  const disks = record.disks.map(({ overlay }) => overlay)
  return { document: { name, finished: true, disks }, text: `${name} is a VM of its own now: ${disks.join(', ')}` }
}

const goneCodes: readonly string[] = [
  'REPOSITORY_NOT_FOUND',
  'REPOSITORY_NOT_ONE',
  'REPOSITORY_IO',
  'REPOSITORY_NO_BUCKET',
]

async function dropCommand(name: string, { settings }: CommandContext): Promise<Report> {
  const record = await readRecord(settings.stateDirectory, name)
  await using hypervisor = await openInstantHypervisor({ connect: record.uri })
  const drop = (repository?: Repository) => dropInstant(record, repository, instantEnvironment(settings, hypervisor))
  const text = `${name} is removed, with all that was written in it`
  try {
    await using opened = await openForInstant(settings, record.repository)
    await drop(opened.repository)
    return { document: { name, dropped: true, left: [] }, text }
  } catch (error) {
    // The repository may be gone for good, and the VM is to go all the same.
    if (!(error instanceof Failure && goneCodes.includes(error.code))) throw error
    await drop()
    const left = [`the pin of ${record.point}, because ${error.message}`]
    return { document: { name, dropped: true, left }, text: `${text}\nleft to clean up: ${left}`, exitCode: 3 }
  }
}
