/**
 * The restores of the fault matrix: over a VM that is there, of one that is gone, to another directory, as a copy; and what
 * must be true afterwards: the former VM is back with its bytes and its power state, or the restored one is complete, and
 * the original of a copy was not touched.
 */
import assert from 'node:assert/strict'
import { mkdirSync } from 'node:fs'
import { openRepository } from '../../src/repository/repository.ts'
import type { RestoreResult } from '../../src/requester/restore.ts'
import type { PowerState } from '../../src/vm/hypervisor.ts'
import { type BackupPolicy, defaultPolicy } from '../../src/vm/method.ts'
import type { RestoreRequest } from '../../src/vss/restore-plan.ts'
import { leftovers, remember } from '../sim/leftovers.ts'
import { readConfiguration } from '../sim/sim-configuration.ts'
import { verifyRecords } from '../sim/sim-records.ts'
import { powerOf } from '../sim/sim-vm.ts'
import { type SimWorld, uuidOf } from '../sim/sim-world.ts'
import { Host, Incarnation, inPlace, type Outcome, preparedOnce } from './harness.ts'
import { readStream } from './judge.ts'
import { isIncomplete, type Scenario } from './matrix.ts'

const small = { sizeBytes: 256 * 1024 }

interface Prepared {
  readonly host: Host
  readonly point: string
  /** The disks of the recovery point, by target. */
  readonly stored: ReadonlyMap<string, Uint8Array>
}

interface RestoreCase {
  readonly power: PowerState
  readonly method: BackupPolicy['method']
  readonly request: (host: Host) => RestoreRequest
  /** The VM is removed after the backup, disks and all. */
  readonly gone?: boolean
  /** Another VM has its name now, and its disks. */
  readonly namesake?: boolean
  readonly powerAfter: PowerState
}

const cases: Readonly<Record<string, RestoreCase>> = {
  'in place over a running VM': { power: 'running', method: 'auto', request: () => inPlace, powerAfter: 'off' },
  'in place over a paused VM, memory included': {
    power: 'paused',
    method: 'saved-state',
    request: () => inPlace,
    powerAfter: 'saved',
  },
  'in place over a VM that is off, and started': {
    power: 'off',
    method: 'auto',
    request: () => ({ ...inPlace, start: true }),
    powerAfter: 'running',
  },
  'to another directory, of a running VM with memory': {
    power: 'running',
    method: 'saved-state',
    request: (host) => ({ ...inPlace, to: host.world.path('/elsewhere') }),
    powerAfter: 'saved',
  },
  'of a VM that is gone, to another directory': {
    power: 'running',
    method: 'auto',
    gone: true,
    request: (host) => ({ ...inPlace, to: host.world.path('/elsewhere') }),
    powerAfter: 'off',
  },
  'of one disk of a running VM': {
    power: 'running',
    method: 'auto',
    request: () => ({ ...inPlace, only: ['sda'] }),
    powerAfter: 'off',
  },
  'in place over a running VM of the same name that is another one': {
    power: 'running',
    method: 'auto',
    namesake: true,
    request: () => ({ ...inPlace, replace: ['web01'] }),
    powerAfter: 'off',
  },
  'as a copy beside the running original': {
    power: 'running',
    method: 'auto',
    request: () => ({ ...inPlace, as: 'web01-copy' }),
    powerAfter: 'off',
  },
}

export type RestoreScenario = Scenario<RestoreResult, Prepared>

function scenario(one: RestoreCase): RestoreScenario {
  return {
    prepare: preparedOnce(() => prepare(one)),
    async run({ host, point }, plan) {
      const incarnation = new Incarnation(host, plan)
      return { incarnation, outcome: await incarnation.restore(point, ['web01'], one.request(host)) }
    },
    judge: (prepared, outcome) => judge(one, prepared, outcome),
  }
}

/** A host with a recovery point of web01, and a web01 that has changed since. */
async function prepare({ power, method, gone, namesake }: RestoreCase): Promise<Prepared> {
  const host = await Host.create({
    web01: { power, disks: { sda: small, sdb: small }, nvram: Buffer.from('variables') },
    other: { power: 'off', disks: { sda: small } },
  })
  const { world } = host
  mkdirSync(world.path('/elsewhere'))
  const made = await new Incarnation(host).backup({ ...defaultPolicy, method, autoRecovery: false })
  assert.equal(made.ended, 'done')
  const point = made.ended === 'done' ? made.value.recoveryPoint : ''
  await using repository = await openRepository(host.repository)
  const opened = await repository.point(point)
  const stored = new Map<string, Uint8Array>()
  for (const target of ['sda', 'sdb'])
    stored.set(target, await readStream(opened, `${uuidOf('web01')}/disks/${target}`))
  const { hypervisor } = world
  if (gone === true) {
    await hypervisor.turnOff(uuidOf('web01'))
    await hypervisor.undefine(uuidOf('web01'))
    for (const target of ['sda', 'sdb']) world.files.remove(world.path(`/images/web01-${target}.raw`))
    world.files.remove(world.path('/var/lib/libvirt/qemu/nvram/web01_VARS.fd'))
  } else {
    world.files.put(world.path('/var/lib/libvirt/qemu/nvram/web01_VARS.fd'), Buffer.from('changed since'))
    const image = world.image('web01', 'sda')
    world.files.disk(image).write(100_000, Buffer.from('written since the backup'))
    if (namesake === true) await takeName(world)
  }
  world.beginning = remember(world)
  return { host, point, stored }
}

/** The same VM under another UUID, as somebody would have made it from the same files. */
async function takeName({ hypervisor }: SimWorld): Promise<void> {
  const { configuration } = await hypervisor.vm('web01')
  await hypervisor.turnOff(uuidOf('web01'))
  await hypervisor.undefine(uuidOf('web01'))
  await hypervisor.define(configuration.replace(uuidOf('web01'), uuidOf('namesake')))
  await hypervisor.start(uuidOf('namesake'))
}

async function judge(one: RestoreCase, prepared: Prepared, outcome: Outcome<RestoreResult>): Promise<string[]> {
  const { host } = prepared
  const { world } = host
  const { as } = one.request(host)
  const name = as ?? 'web01'
  const there = [...world.vms.values()].find((vm) => readConfiguration(vm.configuration).name === name)
  if (outcome.ended === 'done' || (there !== undefined && isRestored(prepared, name))) {
    if (outcome.ended === 'failed' && !isIncomplete(outcome)) {
      const wrong = await restoredProblems(one, prepared, name)
      return [...wrong, 'it says that it failed, and the restored VM is there']
    }
    return restoredProblems(one, prepared, name)
  }
  return formerProblems(one, prepared)
}

/** Whether the VM lies on what was restored, and not on what has changed since. */
function isRestored({ host, stored }: Prepared, name: string): boolean {
  try {
    return sameBeginning(host.world.diskBytes(name, 'sda'), stored.get('sda'))
  } catch {
    return false
  }
}

/** The bytes at which the present disk was changed. */
const sameBeginning = (disk: Uint8Array, stored: Uint8Array | undefined) =>
  stored !== undefined && Buffer.compare(disk.subarray(100_000, 100_024), stored.subarray(100_000, 100_024)) === 0

async function restoredProblems(one: RestoreCase, { host, stored }: Prepared, name: string): Promise<string[]> {
  const { world } = host
  const wrong: string[] = []
  const vm = world.vm(name)
  if (powerOf(vm) !== one.powerAfter) wrong.push(`${name} is ${powerOf(vm)} and should be ${one.powerAfter}`)
  if (name !== 'web01' && vm.uuid === uuidOf('web01')) wrong.push('the copy has the UUID of its original')
  const { only } = one.request(host)
  for (const [target, bytes] of stored) {
    if (only?.includes(target) === false) continue
    const disk = world.diskBytes(name, target)
    const end = one.powerAfter === 'running' ? 100_100 : bytes.length // a VM that runs has written its logs since
    if (Buffer.compare(disk.subarray(0, end), bytes.subarray(0, end)) !== 0)
      wrong.push(`${target} is not as it was stored`)
  }
  const nvram = readConfiguration(vm.configuration).nvram ?? ''
  const variables = world.files.get(nvram)
  const wanted = only === undefined ? 'variables' : 'changed since'
  if (variables === undefined || !('bytes' in variables) || Buffer.from(variables.bytes).toString() !== wanted)
    wrong.push(`the firmware variables in ${nvram} are not those stored`)
  const expected = [
    /^web01 is (off|saved|running) and was/,
    /^web01 was restarted/,
    /^web01 has another configuration/,
    /^web01-copy is new/,
    /^web01 is new/,
    ...(one.namesake === true ? [/^web01 is gone/] : []),
  ]
  const elsewhere = one.request(host).to !== undefined
  const places = /^stray (image|file) .*\/(web01-copy[^/]*|elsewhere\/[^/]*|images\/web01-sd[ab].raw|web01_VARS.fd)$/
  const copy = name !== 'web01'
  for (const line of leftovers(world)) {
    if (places.test(line) && (copy ? line.includes('web01-copy') : elsewhere)) continue
    if (elsewhere && /^web01 sd[ab] lies on .*\/elsewhere\//.test(line)) continue
    if (copy ? line === 'web01-copy is new' : expected.some((pattern) => pattern.test(line))) continue
    wrong.push(line)
  }
  return wrong
}

/** The former VM runs from its own files again: a cold start is all that may have happened to it. */
async function formerProblems(one: RestoreCase, { host, stored }: Prepared): Promise<string[]> {
  const { world } = host
  const mayRestart = one.request(host).as === undefined && one.power !== 'off'
  const wrong = leftovers(world).filter((line) => !(mayRestart && line === 'web01 was restarted'))
  if (one.gone === true) return wrong
  const [sda, sdb] = ['sda', 'sdb'].map((target) => world.diskBytes('web01', target))
  if (sda === undefined || sdb === undefined) return [...wrong, 'web01 has lost its disks']
  if (sameBeginning(sda, stored.get('sda'))) wrong.push('web01 has lost what was written since the backup')
  const { crossConsistent, records } = await verifyRecords(sda, sdb)
  const { records: then } = await verifyRecords(stored.get('sda') ?? sda, stored.get('sdb') ?? sdb)
  if (!crossConsistent || records < then) wrong.push(`web01 has lost records: ${records} where ${then} were stored`)
  return wrong
}

export const restoreScenarios: Readonly<Record<string, RestoreScenario>> = Object.fromEntries(
  Object.entries(cases).map(([name, one]) => [`a restore ${name}`, scenario(one)]),
)
