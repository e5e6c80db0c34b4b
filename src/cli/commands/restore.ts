/**
 * umbra restore: brings VMs of a recovery point back. Everything is read and verified while the old VM still stands.
 */
import { stat } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'
import { type Command, InvalidArgumentError, Option } from 'commander'
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
  readonly disk: Readonly<Record<string, DiskPlace>>
  readonly onlyDisk: readonly string[]
  readonly format?: string
  readonly keepMac?: true
  readonly replace: readonly string[]
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
    .option('--vm <name>', 'only this VM (by name or UUID) or these files; may be repeated', gather, [])
    .option('--as <name>', 'as a new VM of this name, beside the original: new UUID, new MAC addresses')
    .option('--to <dir>', 'put the disks into this directory')
    .option(
      '--disk <target=path>',
      'put this disk there (vda=/srv/a.qcow2, vda=/srv/,format=raw); may be repeated',
      diskPlace,
      {},
    )
    .addOption(new Option('--format <format>', 'image format of all disks').choices(Object.keys(formats)))
    .option('--only-disk <target>', 'only this disk, into the VM that is here; may be repeated', gather, [])
    .option('--network <old=new>', 'connect what was on OLD to NEW; may be repeated', networkPair, {})
    .option('--keep-mac', 'with --as: the MAC addresses of the original')
    .option(
      '--replace <name>',
      'a VM that has only the name or only the UUID, or a file that belongs to none, makes way; may be repeated',
      gather,
      [],
    )
    .option('--start', 'start what was restored')
    .addOption(rateOption('--limit-read', 'read from the repository'))
    .addOption(rateOption('--limit-write', 'write the disks'))
    .option('--dry-run', 'tell what would be done and change nothing')
    .addHelpText(
      'after',
      `
Examples:
  umbra restore 20261122T010203Z-ab2c --dry-run
  umbra restore ab2c --vm web01 --as web01-copy --to /srv/vms --network default=lab
  umbra restore ab2c --vm web01 --disk vda=/fast/web01.qcow2 --disk vdb=/slow/
  umbra restore ab2c --vm web01 --only-disk vdb`,
    )
    .action((point: string, options: Options) =>
      run((context) => restoreCommand(point, options, context), { unwinds: true }),
    )
}

/** As people call them; QEMU calls a VHD "vpc". */
const formats: Readonly<Record<string, string>> = { raw: 'raw', qcow2: 'qcow2', vhd: 'vpc', vhdx: 'vhdx' }

interface DiskPlace {
  readonly path?: string
  readonly format?: string
}

const gather = (one: string, before: readonly string[]): readonly string[] => [...before, one]

/** TARGET=PATH, TARGET=PATH,format=FORMAT or TARGET=format=FORMAT; a path may contain commas. */
function diskPlace(text: string, before: Record<string, DiskPlace>): Record<string, DiskPlace> {
  const [, target, path, format] =
    /^([A-Za-z0-9._-]{1,64})=(?!format=)(.+?)(?:,format=(\w+))?$/.exec(text) ??
    /^([A-Za-z0-9._-]{1,64})=()format=(\w+)$/.exec(text) ??
    []
  if (target === undefined || path === undefined)
    throw new InvalidArgumentError('It must be TARGET=PATH, or TARGET=PATH,format=FORMAT.')
  if (format !== undefined && !(format in formats))
    throw new InvalidArgumentError(`The format must be one of ${Object.keys(formats).join(', ')}.`)
  if (target in before) throw new InvalidArgumentError(`${target} is named twice.`)
  const known = format === undefined ? undefined : formats[format]
  const place = { ...(path === '' ? {} : { path }), ...(known === undefined ? {} : { format: known }) }
  return { ...before, [target]: place }
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
    ...slowed(environment, limitOf(options.limitWrite), signal),
    onEvent: openTimeline(screen.say),
    onProgress: screen.progress,
  })
  return { document: result, text: resultText(result), exitCode: result.cleanup.length > 0 ? 3 : 0 }
}

/** Images whose writing keeps to the limit. */
function slowed(
  { createImage, cloneImage }: RestoreEnvironment,
  limit: RateLimit | undefined,
  signal: AbortSignal,
): Partial<RestoreEnvironment> {
  if (limit === undefined) return {}
  return {
    createImage: async (...image) => limitedSink(await createImage(...image), limit, signal),
    cloneImage: async (...image) => {
      const clone = await cloneImage?.(...image)
      if (clone === undefined) return undefined
      const sink = limitedSink(clone, limit, signal)
      return {
        sizeBytes: clone.sizeBytes,
        read: (offset, target) => clone.read(offset, target),
        extents: (offset, length) => clone.extents(offset, length),
        write: (offset, data) => sink.write(offset, data),
        flush: () => sink.flush(),
        [Symbol.asyncDispose]: () => sink[Symbol.asyncDispose](),
      }
    },
  }
}

async function readRequest(options: Options): Promise<RestoreRequest> {
  const { as, to, network, start = false, format, keepMac, replace, onlyDisk } = options
  const directory = to === undefined ? undefined : resolve(to)
  if (directory !== undefined && !(await isDirectory(directory))) {
    throw failure('USAGE', { reason: `--to: there is no directory ${directory}` })
  }
  if (keepMac === true && as === undefined)
    throw failure('USAGE', { reason: '--keep-mac goes with --as: in its own place a VM keeps them anyway' })
  const known = format === undefined ? undefined : formats[format]
  const disks: Record<string, DiskPlace> = {}
  for (const [target, { path, ...rest }] of Object.entries(options.disk)) {
    disks[target] = path === undefined ? rest : { ...rest, path: await placeOf(path) }
  }
  return {
    networks: network,
    start,
    ...(as === undefined ? {} : { as }),
    ...(directory === undefined ? {} : { to: directory }),
    ...(known === undefined ? {} : { format: known }),
    ...(Object.keys(disks).length === 0 ? {} : { disks }),
    ...(onlyDisk.length === 0 ? {} : { only: onlyDisk }),
    ...(keepMac === true ? { keepMac } : {}),
    ...(replace.length === 0 ? {} : { replace: replace.map((one) => (one.includes('/') ? resolve(one) : one)) }),
  }
}

/** A directory ends with a slash from here on. */
async function placeOf(path: string): Promise<string> {
  const place = resolve(path)
  if (await isDirectory(place)) return `${place}/`
  const directory = path.endsWith('/') ? place : dirname(place)
  if (await isDirectory(directory)) return place
  throw failure('USAGE', { reason: `--disk: there is no directory ${directory}` })
}

async function isDirectory(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined))?.isDirectory() === true
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
