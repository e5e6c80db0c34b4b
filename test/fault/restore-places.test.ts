/**
 * A restore that meets what it did not expect where it writes or reads: a disk that fills up, a chunk that is damaged, a
 * file that somebody puts into its place. The former VM goes on as if nothing had been (law 9), and nobody's file is lost.
 */
import assert from 'node:assert/strict'
import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { Failure } from '../../src/base/failure.ts'
import { defaultPolicy } from '../../src/vm/method.ts'
import type { RestoreRequest } from '../../src/vss/restore-plan.ts'
import { leftovers, remember } from '../sim/leftovers.ts'
import { uuidOf } from '../sim/sim-world.ts'
import { Host, Incarnation, inPlace, type Outcome } from './harness.ts'

const small = { sizeBytes: 256 * 1024 }

/** A running VM with a recovery point. */
async function prepared(): Promise<{ host: Host; point: string; boot: string | undefined }> {
  const host = await Host.create({
    web01: { disks: { sda: { ...small, format: 'raw' }, sdb: small }, nvram: Buffer.from('variables') },
  })
  const { world } = host
  mkdirSync(world.path('/elsewhere'))
  const made = await new Incarnation(host).backup({ ...defaultPolicy, autoRecovery: false })
  assert.equal(made.ended, 'done')
  world.beginning = remember(world)
  const boot = world.guest('web01').memory?.bootId
  return { host, point: made.ended === 'done' ? made.value.recoveryPoint : '', boot }
}

function failed(outcome: Outcome<unknown>): Failure {
  assert.equal(outcome.ended, 'failed')
  const { error } = outcome as { error: unknown }
  assert.ok(error instanceof Failure, String(error))
  return error
}

const restoring = async (incarnation: Incarnation, point: string, request: Partial<RestoreRequest>) =>
  incarnation.restore(point, ['web01'], { ...inPlace, ...request })

const reached = ({ events }: Incarnation) => events.map(({ event }) => event)

test('the disk is full in the middle: nothing was touched, and what was written is gone', async () => {
  const { host, point, boot } = await prepared()
  await using _ = host
  const { files } = host.world
  const incarnation = new Incarnation(host)
  files.capacityBytes = files.usedBytes + 40 * 1024 // of the first disk a part
  const { code, message } = failed(await restoring(incarnation, point, {}))
  files.capacityBytes = Number.POSITIVE_INFINITY
  assert.equal(code, 'DISK_WRITE_FAILED', message)
  assert.ok(!reached(incarnation).includes('PreRestore'))
  assert.deepEqual(leftovers(host.world), [])
  assert.equal(host.world.guest('web01').memory?.bootId, boot, 'it never stopped')
})

test('a chunk of the recovery point is damaged: it ends before PreRestore', async () => {
  const { host, point, boot } = await prepared()
  await using _ = host
  const packs = readdirSync(join(host.repository, 'packs'), { recursive: true, withFileTypes: true })
  for (const { parentPath, name } of packs.filter((entry) => entry.isFile())) {
    const bytes = readFileSync(join(parentPath, name))
    const middle = bytes.length >> 1
    bytes[middle] = (bytes[middle] ?? 0) ^ 0xff
    writeFileSync(join(parentPath, name), bytes)
  }
  const incarnation = new Incarnation(host)
  failed(await restoring(incarnation, point, {}))
  assert.ok(!reached(incarnation).includes('PreRestore'))
  assert.deepEqual(leftovers(host.world), [])
  assert.equal(host.world.guest('web01').memory?.bootId, boot)
})

test('a file that is nobody’s is not replaced, and its name is in the answer', async () => {
  const { host, point } = await prepared()
  await using _ = host
  const { world } = host
  const path = world.path('/elsewhere/web01-sda.raw')
  writeFileSync(path, 'precious')
  const { message } = failed(await restoring(new Incarnation(host), point, { to: world.path('/elsewhere') }))
  assert.ok(message.includes(`${path} exists and belongs to no VM here`), message)
  assert.equal(readFileSync(path, 'utf8'), 'precious')
})

test('a file that appears after planning stays, also when the restore is undone', async () => {
  const { host, point } = await prepared()
  await using _ = host
  const { world } = host
  const path = world.path('/elsewhere/web01-sdb.raw')
  const incarnation = new Incarnation(host)
  const { push } = incarnation.events
  incarnation.events.push = (...events) => {
    if (events.some(({ event, detail }) => event === 'VM' && detail === 'former VM turned off'))
      writeFileSync(path, 'precious')
    return push.apply(incarnation.events, events)
  }
  failed(await restoring(incarnation, point, { to: world.path('/elsewhere') }))
  assert.equal(readFileSync(path, 'utf8'), 'precious')
  assert.deepEqual(
    readdirSync(world.path('/elsewhere')).filter((name) => name !== 'web01-sdb.raw'),
    [],
    'what was restored is gone',
  )
  assert.equal(await world.hypervisor.power(uuidOf('web01')), 'running', 'and the former VM is back')
})

test('a directory that is a link: the files go where it leads, and where the plan says', async () => {
  const { host, point } = await prepared()
  await using _ = host
  const { world } = host
  const [link, real] = [world.path('/link'), world.path('/elsewhere')]
  symlinkSync(real, link)
  const outcome = await restoring(new Incarnation(host), point, { to: link })
  assert.equal(outcome.ended, 'done')
  const vms = outcome.ended === 'done' ? outcome.value.vms : []
  assert.deepEqual(vms[0]?.files.slice(0, 2), [join(real, 'web01-sda.raw'), join(real, 'web01-sdb.raw')])
  assert.match(vms[0]?.warnings.join() ?? '', /link leads to .*elsewhere: the files are written there/)
  const { disks } = await world.hypervisor.vm('web01')
  assert.deepEqual(disks[0]?.location, join(real, 'web01-sda.raw'))
})

test('disks in another format: the VM has them in it, byte for byte', async () => {
  const { host, point } = await prepared()
  await using _ = host
  const { world } = host
  const before = world.diskBytes('web01', 'sda')
  const to = world.path('/elsewhere')
  const outcome = await restoring(new Incarnation(host), point, {
    as: 'web02',
    to,
    format: 'qcow2',
    disks: { sdb: { format: 'vpc' } },
  })
  assert.equal(outcome.ended, 'done')
  const { disks } = await world.hypervisor.vm('web02')
  assert.deepEqual(
    disks.map(({ location, image }) => `${location.slice(to.length)} ${image?.format}`),
    ['/web02-sda.qcow2 qcow2', '/web02-sdb.vhd vpc'],
  )
  assert.deepEqual(world.diskBytes('web02', 'sda').subarray(0, 16_384), before.subarray(0, 16_384))
})

test('a host that lacks what the VM needs refuses before anything is touched', async () => {
  const { host, point, boot } = await prepared()
  await using _ = host
  host.world.host = { cpuProblem: 'missing features: avx512f' }
  const incarnation = new Incarnation(host)
  const { message } = failed(await restoring(incarnation, point, {}))
  assert.match(message, /avx512f/)
  assert.deepEqual([reached(incarnation), leftovers(host.world)], [[], []])
  assert.equal(host.world.guest('web01').memory?.bootId, boot)
})

test('one disk only: the VM keeps the configuration that it has now', async () => {
  const { host, point } = await prepared()
  await using _ = host
  const { hypervisor } = host.world
  const { configuration } = await hypervisor.vm('web01')
  const now = configuration.replace('<devices>', '<description>changed since</description>\n  <devices>')
  assert.notEqual(now, configuration)
  await hypervisor.define(now)
  assert.equal((await restoring(new Incarnation(host), point, { only: ['sdb'] })).ended, 'done')
  assert.equal((await hypervisor.vm('web01')).configuration, now)
})
