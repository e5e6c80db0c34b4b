/**
 * Backups and restores on the stage, composed as the command line composes them, with hooks at the ports; and what can
 * be said afterwards: what a recovery point holds, and that nothing is left behind.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdtemp, open, readdir, readFile, readlink, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { backupEnvironment, restoreEnvironment, type Settings } from '../../src/compose.ts'
import type { RecoveryPoint, Repository } from '../../src/repository/repository.ts'
import { type BackupResult, backup } from '../../src/requester/backup.ts'
import { type RestoreResult, restore } from '../../src/requester/restore.ts'
import { journalDirectory, workDirectory } from '../../src/requester/session.ts'
import type { Hypervisor } from '../../src/vm/hypervisor.ts'
import { type BackupPolicy, defaultPolicy } from '../../src/vm/method.ts'
import type { RestoreRequest } from '../../src/vss/restore-plan.ts'
import type { SessionEvent, SessionLimits } from '../../src/vss/vocabulary.ts'
import { eventually, judgeProgram, type Stage, type StageVm, type Verdict, virsh } from './stage.ts'

export interface SessionSetup {
  readonly policy?: Partial<BackupPolicy>
  readonly limits?: Partial<SessionLimits>
  readonly hypervisor?: Hypervisor
  readonly repository?: Repository
  readonly signal?: AbortSignal
  /** Only the providers of these names; all unless told. */
  readonly providers?: readonly string[]
  readonly onEvent?: (event: SessionEvent) => void
}

/** What a backup tells about each VM, as far as tests look at it. */
export interface BackedUpVm {
  readonly name: string
  readonly method: string
  readonly consistency: string
  readonly reasons: readonly string[]
  readonly freezeMs: number
  readonly heldMs: number
  readonly pausedMs: number
  readonly recoveryMs?: number
  readonly excluded: readonly { readonly target: string; readonly reason: string }[]
  readonly disks: readonly {
    readonly target: string
    readonly provider: string
    readonly sizeBytes: number
    readonly readBytes: number
    readonly storedBytes: number
    readonly how: string
    readonly since?: string
    readonly because?: string
  }[]
}
export type StageBackup = Omit<BackupResult, 'vms'> & { readonly vms: readonly BackedUpVm[] }

export async function backUp(stage: Stage, names: readonly string[], setup: SessionSetup = {}): Promise<StageBackup> {
  const policy: BackupPolicy = { ...defaultPolicy, ...stage.policy, ...setup.policy }
  const settings = setup.limits === undefined ? stage.settings : { ...stage.settings, limits: setup.limits }
  const environment = await backupEnvironment(
    settings,
    setup.hypervisor ?? stage.hypervisor,
    setup.repository ?? stage.repository,
    policy,
    setup.signal ?? new AbortController().signal,
  )
  const { onEvent } = setup
  const allowed = environment.providers.filter(({ name }) => setup.providers?.includes(name) ?? true)
  const result = await backup(
    { names, all: false, except: [] },
    { ...environment, providers: allowed, ...(onEvent === undefined ? {} : { onEvent }) },
  )
  assert.deepEqual(result.cleanup, [], 'nothing is left to clean up')
  return result as unknown as StageBackup
}

export async function restoreVm(
  stage: Stage,
  point: string,
  name: string,
  request: Partial<RestoreRequest> = {},
  setup: SessionSetup = {},
): Promise<RestoreResult> {
  const repository = setup.repository ?? stage.repository
  const hypervisor = setup.hypervisor ?? stage.hypervisor
  const signal = setup.signal ?? new AbortController().signal
  const environment = await restoreEnvironment(stage.settings, hypervisor, repository, signal)
  const { onEvent } = setup
  return restore(
    await repository.point(point),
    [name],
    { networks: {}, start: false, ...request },
    { ...environment, ...(onEvent === undefined ? {} : { onEvent }) },
  )
}

export const pointIds = async ({ repository }: Stage): Promise<string[]> =>
  (await repository.listPoints()).map(({ id }) => id)

/** Neither descriptions nor files nor processes nor journals know of a session any more. */
export async function nothingIsLeft(stage: Stage, vms: readonly StageVm[]): Promise<void> {
  for (const vm of vms) {
    await assertOnOwnDisks(stage, vm)
    const files = existsSync(vm.directory) ? await readdir(vm.directory) : []
    assert.deepEqual(
      files.filter((file) => file.includes('.umbra-')),
      [],
      `files beside the disks of ${vm.name}`,
    )
  }
  const { stateDirectory } = stage.settings
  const places = [
    journalDirectory(stateDirectory),
    workDirectory(stateDirectory),
    join(stateDirectory, 'overlays'),
    join(stateDirectory, 'scratch'),
  ]
  for (const place of places) assert.deepEqual(await readdir(place).catch(() => []), [], place)
  // A watchdog ends by itself a moment after its farewell; nothing else may be there at all.
  await eventually(
    'the end of all helpers',
    async () => ((await helpersOf(stage.settings)).length === 0 ? true : undefined),
    5_000,
  )
}

export async function assertOnOwnDisks(stage: Stage, vm: StageVm): Promise<void> {
  const { persistent } = await stage.hypervisor.vm(vm.uuid)
  const texts = [
    virsh(stage, 'dumpxml', vm.uuid),
    ...(persistent ? [virsh(stage, 'dumpxml', '--inactive', vm.uuid)] : []),
  ]
  for (const text of texts) assert.doesNotMatch(text, /\.umbra-|<mirror/, `an overlay in the description of ${vm.name}`)
}

/** The processes that serve sessions with this state directory: servers of disks, watchdogs. */
export async function helpersOf({ stateDirectory }: Pick<Settings, 'stateDirectory'>): Promise<number[]> {
  const pids: number[] = []
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    const line = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).replaceAll('\0', ' ')
    const serves = line.includes('qemu-storage-daemon') && line.includes(stateDirectory)
    if (serves || (line.includes('watchdog-main') && (await hasOpen(pid, stateDirectory)))) pids.push(Number(pid))
  }
  return pids
}

/** A watchdog has its session's journal open. */
async function hasOpen(pid: string, directory: string): Promise<boolean> {
  const files = await readdir(`/proc/${pid}/fd`).catch(() => [])
  const paths = await Promise.all(files.map((file) => readlink(`/proc/${pid}/fd/${file}`).catch(() => '')))
  return paths.some((path) => path.startsWith(directory))
}

/** What the judge says about the two logs in a recovery point: of disks whose file systems lie on them directly. */
export async function verdictOf(
  stage: Stage,
  pointId: string,
  vm: StageVm,
  [a, b]: readonly [string, string] = ['sdb', 'sdc'],
): Promise<Verdict> {
  const point = await stage.repository.point(pointId)
  const directory = await mkdtemp(join(stage.directory, 'judged-'))
  const logs: string[] = []
  for (const target of [a, b]) {
    const raw = join(directory, `${target}.raw`)
    await flatten(point, `${vm.uuid}/disks/${target}`, raw)
    // Of a copy that is consistent as after a power cut the journal comes first, as at every mount.
    spawnSync('e2fsck', ['-y', '-E', 'journal_only', raw], { stdio: 'ignore' })
    execFileSync('debugfs', ['-R', `dump /log ${raw}.log`, raw], { stdio: 'ignore' })
    logs.push(`${raw}.log`)
  }
  const { stdout } = spawnSync(await judgeProgram(stage), ['verify', ...logs], { encoding: 'utf8' })
  await rm(directory, { recursive: true })
  return JSON.parse(stdout)
}

async function flatten(point: RecoveryPoint, stream: string, path: string): Promise<void> {
  await using source = await point.openStream(stream)
  await using file = await open(path, 'wx')
  await file.truncate(source.sizeBytes)
  const buffer = Buffer.alloc(1024 * 1024)
  for await (const { offset, length, data } of source.extents(0, source.sizeBytes)) {
    if (!data) continue
    for (let at = offset; at < offset + length; at += buffer.length) {
      const part = buffer.subarray(0, Math.min(buffer.length, offset + length - at))
      await source.read(at, part)
      await file.write(part, 0, part.length, at)
    }
  }
}

export async function hashOf(path: string): Promise<string> {
  return createHash('sha256')
    .update(await readFile(path))
    .digest('hex')
}

/** What must be the same after a session that was not about this VM. */
export async function stateOf(stage: Stage, vm: StageVm): Promise<object> {
  const { uuid, name, power, persistent, disks, nics, configuration } = await stage.hypervisor.vm(vm.uuid)
  const places = disks.map(({ target, location, backing }) => ({ target, location, backing }))
  return { uuid, name, power, persistent, places, nics, configuration }
}
