/**
 * The requestor inside a simulated guest, and what its sets are good for on the host.
 */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { Failure } from '../../src/base/failure.ts'
import type { DiskImage } from '../../src/vm/hypervisor.ts'
import { openAutoRecovery } from '../../src/vm/recovery-ways.ts'
import { FaultPlan, faulty } from './faulty.ts'
import { leftovers } from './leftovers.ts'
import { ManualClock } from './manual-clock.ts'
import { verifyRecords } from './sim-records.ts'
import { simRecoveryTools } from './sim-recovery.ts'
import type { RequestorBehaviour } from './sim-requestor.ts'
import { type SimWorld, simulatedWorld } from './sim-world.ts'

const set = '0a1b2c3d'
const coded = (code: string) => (error: unknown) => error instanceof Failure && error.code === code

function begin(requestor: Partial<RequestorBehaviour> = {}) {
  const clock = new ManualClock()
  const world = simulatedWorld({ web: { requestor } }, { clock })
  world.tick(7)
  const { hypervisor } = world
  const vm = world.vm('web')
  return { clock, world, hypervisor, uuid: vm.uuid, guest: world.requestor('web'), facts: () => hypervisor.vm('web') }
}
type Begun = ReturnType<typeof begin>

async function takeSet({ guest }: Begun): Promise<void> {
  await guest.prepare(set, 600_000)
  await guest.freezeWriters(set, 10_000)
  await guest.commit(set)
  await guest.thawWriters(set)
}

/** The host's instant, and a writable copy above each base. */
async function takeCopies({ world, hypervisor, uuid }: Begun) {
  const plans = ['sda', 'sdb'].map((target) => ({ target, overlay: `/o/${target}`, base: world.image('web', target) }))
  await hypervisor.createOverlays(uuid, plans)
  const copies: { target: string; image: DiskImage }[] = []
  for (const { target, base } of plans) {
    await world.makeWritableCopy(`/c/${target}`, base, undefined)
    copies.push({ target, image: { format: 'qcow2', storage: { file: `/c/${target}` } } })
  }
  return { plans, copies }
}

async function recovery(begun: Begun, copies: readonly { target: string; image: DiskImage }[]) {
  const { signal } = new AbortController()
  return { vm: await begun.facts(), set, copies, undo: {} as never, signal, tell: () => undefined }
}

async function attachAll({ hypervisor, uuid }: Begun, copies: readonly { target: string; image: DiskImage }[]) {
  const serials = copies.map(({ target }) => `umbra-${set}-${target}`)
  for (const [index, { image }] of copies.entries())
    await hypervisor.attachCopy(uuid, { serial: serials[index] ?? '', image })
  return serials
}

const verdict = ({ world }: Begun, [a, b]: readonly { image: DiskImage }[]) =>
  verifyRecords(world.imageBytes(a?.image as DiskImage), world.imageBytes(b?.image as DiskImage))

/** The product's own ways, on a simulated host. */
const waysOf = (world: SimWorld) =>
  openAutoRecovery({ ...simRecoveryTools(world), hypervisor: world.hypervisor, clock: world.clock })

describe('a set of the guest', () => {
  it('describes kinds, room and obstacles of its volumes', async () => {
    const { guest } = begin({ volumes: { sda: { kind: 'other' }, sdb: { kind: 'btrfs' } } })
    const { volumes, writers } = await guest.describe()
    assert.deepEqual(
      volumes.map(({ kind, targets, obstacle }) => [kind, targets, obstacle !== undefined]),
      [
        ['other', ['sda'], true],
        ['btrfs', ['sdb'], false],
      ],
    )
    assert.equal(writers.length, 1)
  })

  it('holds the application while its writers are frozen, and only then', async () => {
    const begun = begin()
    const { world, guest } = begun
    await guest.prepare(set, 600_000)
    await guest.freezeWriters(set, 10_000)
    const held = world.diskBytes('web', 'sda')
    world.tick(4)
    assert.deepEqual(world.diskBytes('web', 'sda'), held)
    assert.equal(guest.heldFor, set)
    await guest.thawWriters(set)
    assert.notDeepEqual(world.diskBytes('web', 'sda'), held)
  })

  for (const way of ['by-reading', 'on-host'] as const) {
    it(`is what the copies hold after auto-recovery ${way}, also when the guest released it`, async () => {
      const begun = begin()
      await takeSet(begun)
      begun.world.tick(5)
      const { copies, plans } = await takeCopies(begun)
      await begun.guest.release(set)
      const bases = plans.map(({ base }) => begun.world.imageBytes(base))
      assert.equal((await verdict(begun, copies)).quiesced, false)
      await waysOf(begun.world)[way](await recovery(begun, copies))
      assert.equal((await verdict(begun, copies)).quiesced, true)
      assert.deepEqual(
        plans.map(({ base }) => begun.world.imageBytes(base)),
        bases,
      )
      for (const plan of plans) begun.world.files.remove(`/c/${plan.target}`)
      for (const plan of plans) await begun.hypervisor.mergeOverlay(begun.uuid, plan)
      assert.deepEqual(leftovers(begun.world), [])
    })
  }

  it('is what attached copies hold after the guest reverted them; a btrfs file system then needs its fsid', async () => {
    const begun = begin({ volumes: { sdb: { kind: 'btrfs' } } })
    const { world, guest } = begun
    await takeSet(begun)
    world.tick(5)
    const { copies } = await takeCopies(begun)
    const serials = await attachAll(begun, copies)
    const changed = await guest.revert(set, serials)
    assert.deepEqual(
      changed.map(({ serial }) => serial),
      [serials[1]],
    )
    assert.equal((await verdict(begun, copies)).quiesced, true)
    for (const serial of serials) await begun.hypervisor.detachCopy(begun.uuid, serial)
    const tools = simRecoveryTools(world)
    await using images = await tools.openWritable(copies.map(({ target, image }) => ({ name: target, image })))
    const device = await images.open('sdb')
    await assert.rejects(tools.restoreFsid(device, 'another'))
    await tools.restoreFsid(device, changed[0]?.fsid ?? '')
    assert.equal(world.changedFsids.size, 0)
  })

  it('is lost with the power, and its areas stay on the disks until somebody releases it', async () => {
    const begun = begin()
    const { world, hypervisor, uuid, guest } = begun
    await takeSet(begun)
    await hypervisor.turnOff(uuid)
    await hypervisor.start(uuid)
    await assert.rejects(guest.status(set), coded('GUEST_SET_LOST'))
    assert.ok(leftovers(world).includes(`web has areas of the set ${set} on its disks`))
    await guest.release(set)
    await guest.release(set)
    assert.deepEqual(leftovers(world), ['web was restarted'])
  })

  it('goes with a saved memory', async () => {
    const begun = begin()
    await takeSet(begun)
    await begun.hypervisor.keepSaved(begun.uuid, 'running')
    await begun.hypervisor.start(begun.uuid)
    assert.equal((await begun.guest.status(set)).length, 2)
  })

  it('is released by the guest itself when its time is over', async () => {
    const begun = begin()
    await takeSet(begun)
    assert.deepEqual(leftovers(begun.world), [`web keeps the set ${set}`])
    await begun.clock.advance(600_000)
    assert.deepEqual(leftovers(begun.world), [])
    await assert.rejects(begun.guest.status(set), coded('GUEST_SET_LOST'))
  })
})

describe('a guest that misbehaves', () => {
  it('vetoes: nothing is held', async () => {
    const { guest } = begin({ veto: 'database' })
    await guest.prepare(set, 600_000)
    await assert.rejects(guest.freezeWriters(set, 10_000), coded('GUEST_WRITER_VETO'))
    assert.equal(guest.heldFor, undefined)
  })

  for (const overflow of ['before the commit', 'after the commit'] as const) {
    it(`an area overflows ${overflow}: the set is lost, on the host too`, async () => {
      const begun = begin({ overflow })
      const { guest, world } = begun
      if (overflow === 'before the commit') await assert.rejects(takeSet(begun), coded('GUEST_SET_LOST'))
      else await takeSet(begun)
      await assert.rejects(guest.status(set), coded('GUEST_SET_LOST'))
      const { copies } = await takeCopies(begun)
      const before = copies.map(({ image }) => world.imageBytes(image))
      await assert.rejects(waysOf(world)['by-reading'](await recovery(begun, copies)), coded('GUEST_SET_LOST'))
      assert.deepEqual(
        copies.map(({ image }) => world.imageBytes(image)),
        before,
      )
    })
  }

  it('a small area overflows when the guest goes on writing', async () => {
    const begun = begin({ volumes: { sda: { kind: 'lvm', roomBytes: 8192 } } })
    await takeSet(begun)
    for (let at = 0; at < 3; at++) begun.world.guest('web').write('sda', (40 + at) * 4096, 'much')
    await assert.rejects(begun.guest.status(set), coded('GUEST_SET_LOST'))
  })

  it('no room for an area', async () => {
    const { guest } = begin({ volumes: { sda: { kind: 'lvm', roomBytes: 0 } } })
    await assert.rejects(guest.prepare(set, 600_000), coded('GUEST_REFUSED'))
  })

  it('thaws by itself: everybody is told that the set is lost', async () => {
    const { guest, clock } = begin({ selfThawMs: 500 })
    await guest.prepare(set, 600_000)
    await guest.freezeWriters(set, 10_000)
    await clock.advance(600)
    assert.equal(guest.heldFor, undefined)
    await assert.rejects(guest.commit(set), coded('GUEST_SET_LOST'))
    await assert.rejects(guest.thawWriters(set), coded('GUEST_SET_LOST'))
    await guest.release(set)
    await guest.thawWriters(set)
  })

  it('hangs in a verb, before or after its deed; the agent dies in one, and comes back', async () => {
    const { guest, clock, world } = begin({
      troubles: { prepare: 'hangs', commit: 'dies after' },
      agentReturnsAfterMs: 3000,
    })
    await assert.rejects(clock.drive(guest.prepare(set, 600_000)), coded('GUEST_NOT_RESPONDING'))
    assert.deepEqual(leftovers(world), [])
    guest.behaviour.troubles = { prepare: 'hangs after', commit: 'dies after' }
    await assert.rejects(clock.drive(guest.prepare(set, 600_000)), coded('GUEST_NOT_RESPONDING'))
    assert.deepEqual(leftovers(world), [`web keeps the set ${set}`])
    await assert.rejects(guest.commit(set), coded('GUEST_NOT_RESPONDING'))
    await assert.rejects(guest.status(set), coded('GUEST_NOT_RESPONDING'))
    await clock.advance(3000)
    assert.equal((await guest.status(set)).length, 2)
  })

  it('a copy that does not go stays visible', async () => {
    const begun = begin({ detachHangs: true })
    const { copies } = await takeCopies(begun)
    const [serial = ''] = await attachAll(begun, copies.slice(0, 1))
    await assert.rejects(begun.clock.drive(begun.hypervisor.detachCopy(begun.uuid, serial)), /still attached/)
    assert.ok(leftovers(begun.world).includes(`web has the copy ${serial} attached`))
  })
})

it('the fault matrix hits requestors and recovery as ports of their own', async () => {
  const begun = begin()
  const record = new FaultPlan()
  await faulty(begun.hypervisor, record, 'hypervisor').requestor(begun.uuid).describe()
  const recoverer = faulty(waysOf(begun.world), new FaultPlan({ at: 1, fault: 'fail before' }), 'recovery')
  await assert.rejects(recoverer['by-reading'](await recovery(begun, [])), coded('RECOVERY_FAILED'))
  assert.match(record.calls.join(), /hypervisor\.requestor\([0-9a-f-]+\)\.describe\(\)$/)
})
