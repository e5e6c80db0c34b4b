/**
 * What must be true after a backup by jobs, however it ended; and that the next one, without faults, is right whatever was
 * done to the bitmaps. Everything that is not true is a sentence.
 */
import { describeError } from '../../src/base/failure.ts'
import { pointNameOf } from '../../src/libvirt/bitmap-state.ts'
import { openRepository, type RecoveryPoint } from '../../src/repository/repository.ts'
import type { BackupResult } from '../../src/requester/backup.ts'
import { leftovers, remember, type WorldMemory } from '../sim/leftovers.ts'
import { nameOf } from '../sim/sim-vm.ts'
import { bitmapsOf, type JobHost, jobPolicy, jobProcess, ownPoints, writeAt } from './backup-job-host.ts'
import type { Outcome } from './harness.ts'
import { afterBackup, readStream } from './judge.ts'

export async function afterJobBackup(job: JobHost, outcome: Outcome<BackupResult>): Promise<string[]> {
  const { host, earlier } = job
  const wrong = await afterBackup(host, outcome, { points: earlier, world: expectedWorld(job) })
  const listed = await wrongPoints(job, wrong)
  wrong.push(...jobsLeft(job), ...trackingAfterFault(job, listed), ...foreignPoints(job))
  if (outcome.ended === 'done') wrong.push(...distrusted(outcome.value))
  const next = await nextBackup(job)
  return [...wrong, ...next.map((sentence) => `after the next backup: ${sentence}`)]
}

/** As in the beginning, but for the VM whose process died. */
function expectedWorld({ host, died }: JobHost): WorldMemory {
  const { beginning } = host.world
  if (died === undefined) return beginning
  const vms = [...beginning.vms].map(([uuid, was]) => {
    const off = { power: 'off', bootId: undefined, liveConfiguration: undefined, frozen: false }
    return [uuid, was.name === died ? { ...was, ...off } : was] as const
  })
  return { ...beginning, vms: new Map(vms) }
}

/** Reads every point that is listed; answers their ids. */
async function wrongPoints(job: JobHost, wrong: string[]): Promise<readonly string[]> {
  await using repository = await openRepository(job.host.repository)
  const points = await repository.listPoints()
  for (const point of points) wrong.push(...(await wrongBytes(job, point)))
  return points.map(({ id }) => id)
}

/** Without faults, on a host where everything runs: right to the last byte, and one tracking point for each VM. */
async function nextBackup(job: JobHost): Promise<string[]> {
  const { host, instants, died } = job
  if (died !== undefined) await host.world.hypervisor.start(host.world.vm(died).uuid)
  instants.watch()
  writeAt(host, 'after')
  const before = remember(host.world)
  const outcome = await jobProcess(host).backup(jobPolicy)
  if (outcome.ended !== 'done') return [outcome.ended === 'failed' ? describeError(outcome.error) : outcome.ended]
  const { recoveryPoint } = outcome.value
  const wrong = [
    ...leftovers(host.world, before),
    ...jobsLeft(job),
    ...foreignPoints(job),
    ...distrusted(outcome.value),
  ]
  await using repository = await openRepository(host.repository)
  wrong.push(...(await wrongBytes(job, await repository.point(recoveryPoint))))
  for (const vm of host.world.vms.values()) {
    const own = ownPoints(job, vm)
    if (own.join() !== pointNameOf(job.owner, recoveryPoint)) wrong.push(`${nameOf(vm)} has the points ${own.join()}`)
  }
  return wrong
}

/** Every disk of a point is what the simulated disk held at its instant. */
async function wrongBytes({ host, instants }: JobHost, point: RecoveryPoint): Promise<string[]> {
  const wrong: string[] = []
  for (const { name } of point.streams) {
    const [, uuid = '', target = ''] = /^([^/]+)\/disks\/([^/]+)$/.exec(name) ?? []
    const vm = host.world.vms.get(uuid)
    if (vm === undefined) continue
    if (instants.content(point.id, uuid, target) === undefined && vm.live === undefined)
      instants.remember(point.id, uuid, target, host.world.diskBytes(nameOf(vm), target))
    const then = instants.content(point.id, uuid, target)
    const bytes = await readStream(point, name)
    const at = then === undefined ? 'unknown' : firstDifference(bytes, then)
    if (at !== undefined) wrong.push(`${nameOf(vm)} ${target} of ${point.id} is not as at its instant: ${at}`)
  }
  return wrong
}

function firstDifference(one: Uint8Array, other: Uint8Array): string | undefined {
  if (Buffer.compare(one, other) === 0) return undefined
  return `byte ${one.findIndex((byte, index) => byte !== other[index])} of ${other.length}`
}

function jobsLeft({ host }: JobHost): string[] {
  return [...host.world.vms.values()].flatMap((vm) =>
    vm.live?.backupJob === undefined ? [] : [`${nameOf(vm)} has a job`],
  )
}

/**
 * Never more than two; none whose recovery point is not there; and where there was one that a backup can build upon, there still
 * is: the earlier one, or the newer once its recovery point is there. After the death of a VM its bitmaps are worth nothing.
 */
function trackingAfterFault(job: JobHost, listed: readonly string[]): string[] {
  const { host, owner, earlier, died } = job
  const names = listed.map((id) => pointNameOf(owner, id))
  const wrong: string[] = []
  for (const vm of host.world.vms.values()) {
    const own = ownPoints(job, vm)
    if (own.length > 2) wrong.push(`${nameOf(vm)} has ${own.length} tracking points`)
    if (nameOf(vm) === died) continue
    for (const name of own)
      if (!names.includes(name)) wrong.push(`${nameOf(vm)} has ${name}, of which there is no recovery point`)
    if (own.length < earlier.length) wrong.push(`${nameOf(vm)} has no tracking point left to build upon`)
  }
  return wrong
}

function foreignPoints({ host, foreign, died }: JobHost): string[] {
  return foreign.flatMap(({ vm, name, bitmap }) => {
    const is = bitmapsOf(host, vm).get(name)
    const there = vm.points.some((point) => point.name === name) && is === bitmap
    const whole = nameOf(vm) === died || !bitmap.broken
    return there && whole ? [] : [`the point ${name} of others on ${nameOf(vm)} was touched`]
  })
}

/** The spot check is the second line: where it finds something, the first one has failed. */
function distrusted({ vms }: BackupResult): string[] {
  return vms.flatMap(({ name, disks }) =>
    /the disk differs/.test(JSON.stringify(disks)) ? [`${String(name)}: changes were not recorded`] : [],
  )
}
