/**
 * The simulated world is worth nothing if it is kinder than the real one: these tests show that it bites.
 */
import assert from 'node:assert/strict'
import { mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { Failure } from '../../src/base/failure.ts'
import { leftovers } from './leftovers.ts'
import type { ManualClock } from './manual-clock.ts'
import { verifyRecords } from './sim-records.ts'
import { type SimVmSpec, simulatedWorld, uuidOf } from './sim-world.ts'

const web01 = uuidOf('web01')

function oneVm(spec: SimVmSpec = {}, options: Parameters<typeof simulatedWorld>[1] = {}) {
  const world = simulatedWorld({ web01: spec }, options)
  return { world, hypervisor: world.hypervisor, guest: world.guest('web01'), clock: world.clock as ManualClock }
}

const code = (expected: string) => (error: unknown) => error instanceof Failure && error.code === expected

const overlays = ['sda', 'sdb'].map((target) => ({ target, overlay: `/work/${target}.overlay` }))

describe('the workload', () => {
  test('an instant between the two steps of a record: A leads by one, and nothing more', async () => {
    const { world, hypervisor, guest } = oneVm({}, { stepsPerCall: 0 })
    const bases = [world.image('web01', 'sda'), world.image('web01', 'sdb')] as const
    for (let record = 0; record < 5; record++) guest.writeRecord()
    guest.writeStep()
    await hypervisor.createOverlays(web01, overlays)
    guest.writeRecord()
    const verdict = await verifyRecords(world.imageBytes(bases[0]), world.imageBytes(bases[1]))
    assert.deepEqual(verdict, { records: 5, lead: 1, torn: 0, crossConsistent: true, quiesced: false })
  })

  test('disks that are read one after the other while the guest writes are of no instant', async () => {
    const { world } = oneVm({}, { stepsPerCall: 10 })
    const verdict = await verifyRecords(
      world.openImage(world.image('web01', 'sda'), { evenIfInUse: true }),
      world.openImage(world.image('web01', 'sdb'), { evenIfInUse: true }),
    )
    assert.equal(verdict.crossConsistent, false)
  })

  test('a frozen guest does not write; what it wanted to write comes with the thaw', async () => {
    const { world, guest } = oneVm()
    world.tick(3)
    await guest.freeze()
    const before = world.diskBytes('web01', 'sda')
    world.tick(20)
    guest.write('sda', 100, 'later')
    assert.deepEqual(world.diskBytes('web01', 'sda'), before)
    await guest.thaw()
    const after = Buffer.from(world.diskBytes('web01', 'sda'))
    assert.equal(after.subarray(100, 105).toString(), 'later')
    assert.ok((await verifyRecords(after, world.diskBytes('web01', 'sdb'))).records > 10)
  })

  test('a cold boot completes the record that the power cut left half', async () => {
    const { world, hypervisor, guest } = oneVm({}, { stepsPerCall: 0 })
    guest.writeRecord()
    guest.writeStep()
    await hypervisor.turnOff(web01)
    await hypervisor.start(web01)
    const { records, lead } = await verifyRecords(world.diskBytes('web01', 'sda'), world.diskBytes('web01', 'sdb'))
    assert.deepEqual({ records, lead }, { records: 2, lead: 0 })
  })

  test('memory that meets older disks goes on where it was, and the log shows it', async () => {
    const { world, hypervisor, guest } = oneVm({ disks: { sda: {} } }, { stepsPerCall: 0 })
    const base = world.image('web01', 'sda')
    await hypervisor.createOverlays(web01, [{ target: 'sda', overlay: '/work/o' }])
    guest.writeRecord()
    await hypervisor.save(web01, '/work/memory')
    await hypervisor.define(
      world.vm('web01').configuration.replace('/work/o', '/images/web01-sda.raw').replace('qcow2', 'raw'),
    )
    await hypervisor.restoreSaved('/work/memory')
    await hypervisor.resume(web01)
    guest.writeRecord()
    assert.ok((await verifyRecords(world.imageBytes(base))).torn > 0)
  })
})

describe('the guest agent', () => {
  test('that never answers is given up after the response timeout', async () => {
    const { guest, clock } = oneVm({ guest: { answers: 'never' } })
    await assert.rejects(clock.drive(guest.ping()), code('GUEST_NOT_RESPONDING'))
    assert.equal(clock.monotonicMs(), 5_000)
  })

  test('that answers too late freezes all the same', async () => {
    const { guest, clock } = oneVm({ guest: { answers: { lateByMs: 8_000 } } })
    await assert.rejects(clock.drive(guest.freeze()), code('GUEST_NOT_RESPONDING'))
    assert.equal(guest.isFrozen, false)
    await clock.advance(3_000)
    assert.equal(guest.isFrozen, true)
  })

  test('that answers rubbish froze', async () => {
    const { guest } = oneVm({ guest: { answers: 'rubbish' } })
    await assert.rejects(guest.freeze(), code('GUEST_REFUSED'))
    assert.equal(guest.isFrozen, true)
  })

  test('with a hook that hangs: later calls are not answered, the thaw waits for the freeze', async () => {
    const { guest, clock } = oneVm({ guest: { freeze: { hookHangsMs: 20_000 } } })
    await assert.rejects(clock.drive(guest.freeze()), code('GUEST_NOT_RESPONDING'))
    await assert.rejects(clock.drive(guest.ping()), code('GUEST_NOT_RESPONDING'))
    assert.equal(await clock.drive(guest.thaw()), 2)
    assert.equal(clock.monotonicMs(), 20_000)
    assert.equal(guest.isFrozen, false)
  })

  test('whose hook hangs for ever is never thawed, and never frozen', async () => {
    const { guest, clock } = oneVm({ guest: { freeze: { hookHangsMs: Number.POSITIVE_INFINITY } } })
    await assert.rejects(clock.drive(guest.freeze()), code('GUEST_NOT_RESPONDING'))
    await assert.rejects(clock.drive(guest.thaw()), code('GUEST_NOT_RESPONDING'))
    assert.equal(guest.isFrozen, false)
  })

  test('that fails half-way leaves half of the file systems frozen', async () => {
    const { guest } = oneVm({ guest: { freeze: 'half' } })
    await assert.rejects(guest.freeze(), code('GUEST_REFUSED'))
    assert.equal(await guest.freezeStatus(), 'frozen')
    assert.equal(await guest.thaw(), 1)
  })

  test('with a watchdog thaws by itself, and the thaw says 0', async () => {
    const { guest, clock } = oneVm({ guest: { selfThawMs: 15_000 } })
    assert.equal(await guest.freeze(), 2)
    await clock.advance(15_000)
    assert.equal(await guest.thaw(), 0)
  })

  test('stays frozen over a saved state', async () => {
    const { hypervisor, guest } = oneVm()
    await guest.freeze()
    await hypervisor.keepSaved(web01, 'running')
    await hypervisor.start(web01)
    assert.equal(guest.isFrozen, true)
  })
})

describe('the host', () => {
  test('that is full pauses the VM; with room again nothing is lost', async () => {
    const { world, hypervisor } = oneVm()
    await hypervisor.createOverlays(web01, overlays)
    world.files.capacityBytes = world.files.usedBytes
    world.tick(200)
    assert.equal(await hypervisor.power(web01), 'paused')
    world.files.capacityBytes = Number.POSITIVE_INFINITY
    assert.equal(await hypervisor.resumeAfterIoError(web01), true)
    world.tick(200)
    const verdict = await verifyRecords(world.diskBytes('web01', 'sda'), world.diskBytes('web01', 'sdb'))
    assert.deepEqual([verdict.crossConsistent, verdict.records > 90], [true, true])
  })

  test('that is full refuses overlays and saved states, and nothing changes', async () => {
    const { world, hypervisor } = oneVm({}, { stepsPerCall: 0 })
    world.files.capacityBytes = world.files.usedBytes + 4096
    await assert.rejects(hypervisor.createOverlays(web01, overlays), code('HYPERVISOR_REFUSED'))
    await assert.rejects(hypervisor.save(web01, '/work/memory'), code('HYPERVISOR_REFUSED'))
    assert.deepEqual(leftovers(world), [])
  })

  test('locks images: what a VM writes to can not be read, what is read can not be merged into', async () => {
    const { world, hypervisor } = oneVm()
    const base = world.image('web01', 'sda')
    assert.throws(() => world.openImage(base), /shared "write" lock/)
    await hypervisor.createOverlays(web01, overlays)
    const placed = { target: 'sda', overlay: '/work/sda.overlay', base }
    await using reader = world.openImage(base)
    await assert.rejects(hypervisor.mergeOverlay(web01, placed), /"write" lock/)
    await reader[Symbol.asyncDispose]()
    await hypervisor.mergeOverlay(web01, placed)
  })

  test('protects a template that two VMs share', async () => {
    const disks = { sda: { template: '/images/template.raw' } }
    const world = simulatedWorld({ web01: { disks }, web02: { disks } })
    const template = { format: 'raw', storage: { file: '/images/template.raw' } } as const
    const overlay = { target: 'sda', overlay: '/images/web01-sda.qcow2', base: template }
    await assert.rejects(world.hypervisor.mergeOverlay(web01, overlay), /"write" lock/)
  })

  test('does not start a VM whose network is missing, nor one whose disk is', async () => {
    const { world, hypervisor } = oneVm({ power: 'off' })
    world.networks.clear()
    await assert.rejects(hypervisor.start(web01), /Network not found/)
    world.networks.set('default', { name: 'default', kind: 'network', active: true, isolated: false })
    world.files.remove('/images/web01-sda.raw')
    await assert.rejects(hypervisor.start(web01), /No such file/)
    assert.equal(await hypervisor.power(web01), 'off')
  })

  test('a transient VM is gone with its power, and can not be kept saved', async () => {
    const { hypervisor } = oneVm({ persistent: false })
    await assert.rejects(hypervisor.keepSaved(web01, 'running'), code('HYPERVISOR_REFUSED'))
    await hypervisor.turnOff(web01)
    assert.equal(await hypervisor.power(web01), 'gone')
  })
})

test('with a directory, host files can be renamed, removed and written by others', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'umbra-sim-'))
  const { world, hypervisor } = oneVm({ nvram: Buffer.from('variables') }, { directory })
  const memory = world.path('/memory')
  await hypervisor.save(web01, memory)
  await rename(memory, `${memory}.kept`)
  assert.equal((await readFile((await hypervisor.vm(web01)).hostFiles[0]?.path ?? '')).toString(), 'variables')
  await hypervisor.restoreSaved(`${memory}.kept`)
  await hypervisor.resume(web01)
  await rm(`${memory}.kept`)
  assert.deepEqual(leftovers(world), [])
  await writeFile(world.path('/images/other.raw'), 'written by somebody else'.padEnd(4096, '.'))
  const bytes = world.imageBytes({ format: 'raw', storage: { file: world.path('/images/other.raw') } })
  assert.match(Buffer.from(bytes).toString(), /^written by somebody else/)
  await rm(directory, { recursive: true })
})

test('leftovers name what is not as before', async () => {
  const { world, hypervisor, guest } = oneVm()
  assert.deepEqual(leftovers(world), [])
  await guest.freeze()
  await hypervisor.createOverlays(web01, overlays.slice(0, 1))
  await hypervisor.suspend(web01)
  const reader = world.openImage({ format: 'raw', storage: { file: '/images/web01-sda.raw' } })
  assert.deepEqual(leftovers(world), [
    'web01 is paused and was running',
    'web01 sda lies on /work/sda.overlay and lay on /images/web01-sda.raw',
    'web01 is frozen',
    'stray overlay /work/sda.overlay',
    '/images/web01-sda.raw is still open to read',
  ])
  await reader[Symbol.asyncDispose]()
  await hypervisor.resume(web01)
  await guest.thaw()
  const base = { format: 'raw', storage: { file: '/images/web01-sda.raw' } } as const
  await hypervisor.mergeOverlay(web01, { target: 'sda', overlay: '/work/sda.overlay', base })
  assert.deepEqual(leftovers(world), [])
  await hypervisor.turnOff(web01)
  await hypervisor.start(web01)
  assert.deepEqual(leftovers(world), ['web01 was restarted'])
})
