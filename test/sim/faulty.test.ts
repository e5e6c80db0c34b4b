/**
 * Every fault does what its name says, and a killed incarnation stays dead while the world lives on.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { setImmediate } from 'node:timers/promises'
import { FaultPlan, faulty } from './faulty.ts'
import { leftovers } from './leftovers.ts'
import { simulatedWorld, uuidOf } from './sim-world.ts'

const web01 = uuidOf('web01')

async function isPending(work: Promise<unknown>): Promise<boolean> {
  let settled = false
  const end = () => {
    settled = true
  }
  work.then(end, end)
  for (let round = 0; round < 5; round++) await setImmediate()
  return !settled
}

function faultyWorld(...fault: ConstructorParameters<typeof FaultPlan>) {
  const world = simulatedWorld({ web01: {} })
  const plan = new FaultPlan(...fault)
  return { world, plan, hypervisor: faulty(world.hypervisor, plan, 'hypervisor') }
}

describe('faulty', () => {
  test('numbers every call, those of the guests it hands out too', async () => {
    const { plan, hypervisor } = faultyWorld()
    await hypervisor.power(web01)
    const guest = hypervisor.guest(web01)
    await guest.freeze()
    await guest.thaw()
    assert.deepEqual(
      plan.calls.map((call) => call.replaceAll(web01, 'web01')),
      ['1 hypervisor.power(web01)', '2 hypervisor.guest(web01).freeze()', '3 hypervisor.guest(web01).thaw()'],
    )
  })

  test('fails before or after the deed', async () => {
    for (const [fault, frozen] of [
      ['fail before', false],
      ['fail after', true],
    ] as const) {
      const { world, plan, hypervisor } = faultyWorld({ at: 1, fault })
      await assert.rejects(hypervisor.guest(web01).freeze(), /injected/)
      assert.equal(world.guest('web01').isFrozen, frozen)
      assert.equal(plan.hit, plan.calls[0])
    }
  })

  test('hangs for ever, and later calls go on', async () => {
    const { world, hypervisor } = faultyWorld({ at: 1, fault: 'hang after' })
    assert.ok(await isPending(hypervisor.suspend(web01)))
    assert.equal(world.vm('web01').live?.power, 'paused')
    await hypervisor.resume(web01)
    assert.deepEqual(leftovers(world), [])
  })

  test('kills: nothing of this incarnation ever answers again, and another one finds the world', async () => {
    const { world, plan, hypervisor } = faultyWorld({ at: 2, fault: 'kill after' })
    const guest = hypervisor.guest(web01)
    await guest.ping()
    assert.ok(await isPending(guest.freeze()))
    assert.match(await plan.killed, /^2 hypervisor\.guest/)
    assert.ok(await isPending(guest.thaw()))
    assert.deepEqual(leftovers(world), ['web01 is frozen'])
    assert.equal(await world.connect().guest(web01).thaw(), 2)
    assert.deepEqual(leftovers(world), [])
    assert.equal(plan.calls.length, 2)
  })

  test('cancels and goes on', async () => {
    const { plan, hypervisor } = faultyWorld({ at: 1, fault: 'cancel before' })
    assert.equal(await hypervisor.power(web01), 'running')
    assert.equal(plan.signal.aborted, true)
  })

  test('wraps what a port opens, and its iterables', async () => {
    const { world } = faultyWorld()
    const plan = new FaultPlan({ at: 3, fault: 'fail before' })
    await world.hypervisor.createOverlays(web01, [{ target: 'sda', overlay: '/work/o' }])
    const opener = { open: async () => world.openImage({ format: 'raw', storage: { file: '/images/web01-sda.raw' } }) }
    const disk = await faulty(opener, plan, 'images').open()
    for await (const extent of disk.extents(0, disk.sizeBytes)) assert.ok(extent.length > 0)
    await assert.rejects(disk.read(0, new Uint8Array(512)), /injected/)
    await disk[Symbol.asyncDispose]()
    assert.deepEqual(plan.calls, [
      '1 images.open()',
      '2 images.open().extents(0, 1048576)',
      '3 images.open().read(0, 512 bytes)',
      '4 images.open().dispose()',
    ])
  })
})
