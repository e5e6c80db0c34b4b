/**
 * umbra backup: one recovery point of some VMs, all or none. The events of VSS are told as they happen.
 */
import { type Command, InvalidArgumentError, Option } from 'commander'
import type { JsonObject } from '../../base/cleanup.ts'
import { backupEnvironment, hostProviders, hostWriters, openHypervisor } from '../../compose.ts'
import type { Configuration } from '../../config.ts'
import type { BlockSource } from '../../disk/block-device.ts'
import { limited } from '../../disk/limited-source.ts'
import { failure } from '../../errors.ts'
import { createRepository, type Encryption, openRepository, type Repository } from '../../repository/repository.ts'
import type { BackendLimits } from '../../repository/storage/limited-backend.ts'
import { isVacant } from '../../repository/storage/open-backend.ts'
import {
  type BackupResult,
  type BackupSelection,
  backup,
  type PlannedComponent,
  planBackup,
} from '../../requester/backup.ts'
import { recoveryWays } from '../../vm/auto-recovery.ts'
import type { Hypervisor } from '../../vm/hypervisor.ts'
import { type BackupPolicy, consistencies, methodRequests } from '../../vm/method.ts'
import { defaultLimits } from '../../vss/vocabulary.ts'
import { type CommandContext, type Report, type Run, recoverFirst, repositoryDirectory } from '../command.ts'
import { bytesText, countText, durationText, tableText } from '../output.ts'
import { encryptionOf, unlockOf } from '../passphrase.ts'
import { type ProfileOption, policyOf, profileOption } from '../policy-options.ts'
import { limitOf, type RateOptions, rateOption } from '../rate-option.ts'
import { openTimeline } from '../timeline.ts'
import {
  backedUpColumns,
  backedUpRows,
  howText,
  leftOut,
  recoveryLines,
  remarks,
  sumOf,
  vmRecord,
} from '../vm-record.ts'

interface Options extends Omit<BackupPolicy, 'profile'>, ProfileOption, RateOptions {
  readonly all?: boolean
  readonly except: readonly string[]
  readonly freezeLimit?: number
  readonly dryRun?: true
  readonly readAll?: boolean
  readonly encryption: boolean
}

export function addBackup(program: Command, run: Run): void {
  program
    .command('backup')
    .summary('back up VMs: one recovery point, all of them or none')
    .description(
      'Backs up VMs without interrupting them, into one recovery point: all of them or none.\n' +
        'A repository that is not there yet is made, if a key for it is named, or --no-encryption is said.',
    )
    .argument('[vm...]', 'names or UUIDs; names of files of the host')
    .option('--all', 'every VM, and all files of the host that are configured')
    .option('--except <vm...>', 'but not these', [])
    .addOption(new Option('--method <method>', 'how; for VMs that run').choices(methodRequests).default('auto'))
    .addOption(
      new Option('--require <consistency>', 'fail unless every VM reaches this')
        .choices(consistencies)
        .default('crash'),
    )
    .addOption(
      new Option('--instant <what>', 'freeze each VM for its own copy, or all at one instant')
        .choices(['vm', 'set'])
        .default('vm'),
    )
    .addOption(profileOption())
    .addOption(
      new Option('--recovery <way>', 'how the copies of a child-snapshot are rolled back')
        .choices(['auto', ...recoveryWays])
        .default('auto'),
    )
    .option('--no-auto-recovery', 'never write to a copy; without it there is no child-snapshot')
    .option('--freeze-limit <ms>', `longest freeze in milliseconds, at most ${defaultLimits.freezeMs}`, freezeLimit)
    .option('--read-all', 'trust no change tracking: read every disk whole, compare with its last recovery point')
    .addOption(rateOption('--limit-read', 'read the disks'))
    .addOption(rateOption('--limit-write', 'write to the repository'))
    .option('--no-encryption', 'if the repository has to be made: not encrypted')
    .option('--dry-run', 'tell what would be done and change nothing')
    .addHelpText(
      'after',
      `
Examples:
  umbra backup web01 db01 --repository /backup
  umbra backup --all --except scratch --require filesystem
  umbra backup db01 --method saved-state       memory and disks of one instant; the VM stands still for it
  umbra backup db01 --method child-snapshot    the guest's own writers take part; it writes on meanwhile
  umbra backup --all --profile 2012r2          as Windows Server 2012 R2 would`,
    )
    .action((names: string[], options: Options) =>
      run((context) => backupCommand(names, options, context), { unwinds: true }),
    )
}

function freezeLimit(text: string): number {
  const ms = /^\d+$/.test(text) ? Number(text) : 0
  if (ms >= 1 && ms <= defaultLimits.freezeMs) return ms
  throw new InvalidArgumentError(`It must be a number of milliseconds from 1 to ${defaultLimits.freezeMs}.`)
}

async function backupCommand(names: readonly string[], options: Options, context: CommandContext): Promise<Report> {
  const selection = select(names, options)
  const { method, require, instant, autoRecovery, recovery, profile } = options
  const asked = { method, require, instant, autoRecovery, recovery }
  const policy = policyOf(context.settings, profile === undefined ? asked : { ...asked, profile })
  if (recovery !== 'auto' && method !== 'auto' && method !== 'child-snapshot') {
    throw failure('USAGE', { reason: `--recovery goes with --method child-snapshot, not with ${method}` })
  }
  const directory = repositoryDirectory(context.settings)
  const toBeMade = await isVacant(directory)
  const encryption = toBeMade ? await encryptionForNew(directory, options, context.settings) : undefined
  await using hypervisor = await openHypervisor(context.settings)
  await recoverFirst(context, options.dryRun ? 'continue' : 'refuse')
  const plan = async () => {
    const providers = await hostProviders(context.settings, hypervisor)
    return planBackup(selection, hostWriters(context.settings, hypervisor, policy), providers)
  }
  if (options.dryRun) return planReport(await plan(), directory, toBeMade)

  const limits = { put: limitOf(options.limitWrite), signal: context.signal }
  await using repository = await openOrMakeRepository(directory, encryption, plan, options, limits, context)
  const result = await backUp(selection, policy, repository, hypervisor, options, context)
  return {
    document: { repository: repository.location, ...result },
    text: resultText(result, repository.location, context.screen.width),
    exitCode: result.cleanup.length > 0 ? 3 : 0,
  }
}

function select(names: readonly string[], { all = false, except }: Options): BackupSelection {
  const refuse = (reason: string) => failure('USAGE', { reason })
  if (all && names.length > 0) throw refuse('name the VMs or say --all, not both')
  if (!all && names.length === 0) throw refuse('name the VMs to back up, or say --all')
  if (!all && except.length > 0) throw refuse('--except goes with --all')
  return { names, all, except }
}

async function backUp(
  selection: BackupSelection,
  policy: BackupPolicy,
  repository: Repository,
  hypervisor: Hypervisor,
  { freezeLimit: freezeMs, readAll = false, limitRead }: Options,
  { settings, signal, screen }: CommandContext,
): Promise<BackupResult> {
  const limits = freezeMs === undefined ? settings.limits : { ...settings.limits, freezeMs }
  const environment = await backupEnvironment({ ...settings, limits }, hypervisor, repository, policy, signal)
  const read = limitOf(limitRead)
  const slowed = read && { limitReads: (source: BlockSource) => limited(source, read, signal) }
  return backup(selection, {
    ...environment,
    ...slowed,
    readAll,
    onEvent: openTimeline(screen.say),
    onProgress: screen.progress,
  })
}

/** Nothing is made for a backup that will be refused: the plan comes before. */
async function openOrMakeRepository(
  directory: string,
  encryption: Encryption | undefined,
  plan: () => Promise<unknown>,
  options: Options,
  limits: BackendLimits,
  { screen, settings }: CommandContext,
): Promise<Repository> {
  if (encryption === undefined) {
    return openRepository(directory, { ...limits, unlock: unlockOf(settings, { onlyIfNeeded: !options.encryption }) })
  }
  await plan()
  const made = await createRepository(directory, { ...limits, encryption })
  const how = encryption === 'none' ? 'not encrypted' : 'encrypted: without its key nobody can read it'
  screen.note(`a new repository was made in ${directory}, ${how}`)
  return made
}

/** Nobody is asked here: a backup that runs by itself must not make what nobody meant. USAGE tells both ways. */
function encryptionForNew(directory: string, options: Options, settings: Configuration): Promise<Encryption> {
  return encryptionOf(settings, options.encryption, `there is no repository in ${directory} yet`, false)
}

function planReport(plan: Awaited<ReturnType<typeof planBackup>>, directory: string, toBeMade: boolean): Report {
  const vms = plan.map(withProviders)
  const lines = vms.map(vmRecord).flatMap((vm) => {
    const disks =
      vm.disks
        .map(({ target, sizeBytes, provider }) => `${target} (${bytesText(sizeBytes)}, ${provider})`)
        .join(', ') || 'no disks'
    return [
      `${vm.name}: ${howText(vm)}: ${vm.because}`,
      ...recoveryLines(vm),
      `  ${disks}`,
      ...leftOut(vm).map((line) => `  ${line}`),
    ]
  })
  const where = toBeMade ? `a new repository, to be made in ${directory}` : directory
  return {
    document: { dryRun: true, repository: directory, repositoryToBeMade: toBeMade, vms },
    text: [`would back up ${countText(vms.length, 'VM')} into ${where}:`, ...lines, 'nothing was changed'].join('\n'),
  }
}

/** The plan of a component, each of its disks with the provider that would copy it. */
function withProviders({ plan, providers }: PlannedComponent): JsonObject {
  if (!Array.isArray(plan.disks)) return { ...plan, providers: { ...providers } }
  const disks = plan.disks.map((disk: JsonObject) => ({ ...disk, provider: providers[String(disk.target)] ?? 'none' }))
  return { ...plan, disks }
}

function resultText(result: BackupResult, location: string, width: number | undefined): string {
  const vms = result.vms.map((vm: JsonObject) => vmRecord(vm))
  const disks = vms.flatMap((vm) => vm.disks)
  const skew = vms.length > 1 ? `, ${durationText(result.skewMs)} between the first and the last copy` : ''
  return [
    '',
    tableText(backedUpColumns, vms.flatMap(backedUpRows), width),
    '',
    ...vms.flatMap(remarks),
    `recovery point ${result.recoveryPoint} in ${location}`,
    `${countText(disks.length, 'disk')}, ${bytesText(sumOf(disks, 'readBytes'))} read, ` +
      `${bytesText(sumOf(disks, 'storedBytes'))} stored, in ${durationText(result.durationMs)}${skew}`,
    ...result.cleanup.map((step) => `left to clean up: ${step} (run umbra recover)`),
  ].join('\n')
}
