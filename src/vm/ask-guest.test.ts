/**
 * What a guest is asked before its method is chosen, and what is made of refusal and silence; and how the VM writer tells
 * the choice: caption, flag, way of auto-recovery.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { FaultPlan, faulty } from '../../test/sim/faulty.ts'
import { type SimVmSpec, simulatedWorld, uuidOf } from '../../test/sim/sim-world.ts'
import { askGuest } from './ask-guest.ts'
import { type BackupPolicy, defaultPolicy, type GuestFacts } from './method.ts'
import { VmWriter } from './vm-writer.ts'

async function ask(spec: SimVmSpec, policy: Partial<BackupPolicy> = {}, os?: 'mswindows') {
  const world = simulatedWorld({ web01: spec }, { stepsPerCall: 0 })
  if (os !== undefined) world.guest('web01').os = { id: os, name: 'Windows Server 2022', version: '2022' }
  const plan = new FaultPlan()
  const hypervisor = faulty(world.hypervisor, plan, 'hypervisor')
  const facts = await hypervisor.vm('web01')
  const guest = await askGuest(hypervisor, facts, { ...defaultPolicy, ...policy })
  return { guest, asked: plan.calls.some((call) => call.endsWith('.describe()')) }
}

const requestorOf = (guest: GuestFacts) => (guest.answering ? guest.requestor : undefined)

describe('a guest is asked for its volumes', () => {
  test('when a snapshot inside it is in question', async () => {
    for (const method of ['auto', 'child-snapshot'] as const) {
      const told = requestorOf((await ask({}, { method })).guest)
      assert.ok(told !== undefined && !('unavailable' in told))
      assert.ok(told.volumes.length > 0)
    }
  })

  test('and not when it is not: for another method, for Windows, when it does not run', async () => {
    for (const method of ['guest-freeze', 'checkpoint', 'saved-state'] as const) {
      assert.equal((await ask({}, { method })).asked, false)
    }
    assert.equal((await ask({}, {}, 'mswindows')).asked, false)
    assert.equal((await ask({ power: 'paused' })).asked, false)
    assert.equal((await ask({ agent: 'none' })).asked, false)
  })

  test('and not in vain: with a file system directly on a partition nothing is run in it, unless it was asked for', async () => {
    const { hypervisor } = simulatedWorld({ web01: {} }, { stepsPerCall: 0 })
    const facts = await hypervisor.vm('web01')
    const guest = hypervisor.guest(facts.uuid)
    guest.fileSystems = async () => [{ mountPoint: '/boot', type: 'ext4', device: 'sda1', targets: ['sda'] }]
    let asked = 0
    const counting = new Proxy(hypervisor, {
      get: (target, name) => {
        if (name === 'requestor') asked++
        const value: unknown = Reflect.get(target, name, target)
        return typeof value === 'function' ? value.bind(target) : value
      },
    })
    const told = await askGuest(counting, facts, defaultPolicy)
    assert.match(JSON.stringify(told), /ext4 directly on \/dev\/sda1 \(\/boot\): no snapshot possible/)
    assert.equal(asked, 0)
    await askGuest(counting, facts, { ...defaultPolicy, method: 'child-snapshot' })
    assert.equal(asked, 1)
  })

  test('and refusal is a fact in words: its file systems can still be frozen', async () => {
    const { guest } = await ask({ requestor: { troubles: { describe: 'refused' } } })
    const told = requestorOf(guest)
    assert.ok(guest.answering && told !== undefined && 'unavailable' in told)
    assert.notEqual(told.unavailable, '')
  })
})

describe('the VM writer tells', () => {
  const tell = async (policy: Partial<BackupPolicy>) => {
    const { hypervisor } = simulatedWorld({ web01: {}, cold: { power: 'off' } }, { stepsPerCall: 0 })
    const writer = new VmWriter({ hypervisor, policy: { ...defaultPolicy, ...policy }, workDirectory: '/work' })
    const { components } = await writer.onIdentify()
    return new Map(components.map((component) => [component.name, component]))
  }

  test('how each VM will be backed up, in the words of the profile', async () => {
    const [in2012, modern] = [await tell({ profile: '2012' }), await tell({})]
    const names = ['web01', 'cold'].map(uuidOf)
    assert.deepEqual(
      names.map((name) => in2012.get(name)?.caption),
      ['Backup Using Child Partition Snapshot\\web01', 'Backup Using Saved State\\cold'],
    )
    assert.deepEqual(
      names.map((name) => modern.get(name)?.caption),
      ['Online\\web01', 'Offline\\cold'],
    )
  })

  test('the way of auto-recovery, which only a child-snapshot wants', async () => {
    const [in2012, frozen] = [await tell({ profile: '2012' }), await tell({ method: 'guest-freeze' })]
    const [child, freeze] = [in2012, frozen].map((components) => components.get(uuidOf('web01')))
    assert.equal((child?.plan.recovery as { way?: string } | undefined)?.way, 'on-host')
    assert.equal(freeze?.plan.recovery, undefined)
    assert.deepEqual([child?.flags, freeze?.flags], [1, 0])
    assert.ok(JSON.stringify(child?.plan.conditions).includes('"neededFor":["child-snapshot"]'))
  })
})
