/**
 * How a VM will be backed up: every condition told, the automatic choice, and what may be required of it (W6, W9, W10).
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { sampleDisk, sampleVm } from '../../test/fault/sample-vm.ts'
import type { VmFacts } from './hypervisor.ts'
import {
  atLeast,
  type BackupPolicy,
  consistencies,
  defaultPolicy,
  type GuestFacts,
  type MethodPlan,
  methodRequests,
  planMethod,
} from './method.ts'
import { profiles } from './profile.ts'

const linux: GuestFacts = {
  answering: true,
  os: { id: 'debian', name: 'Debian GNU/Linux', version: '12' },
  fileSystems: [],
}
const windows: GuestFacts = { ...linux, os: { id: 'mswindows', name: 'Windows Server', version: '2022' } }
const silent: GuestFacts = { answering: false, why: 'no answer within 5000 ms' }

function plan(vm: Partial<VmFacts>, guest: GuestFacts, policy: Partial<BackupPolicy> = {}): MethodPlan {
  return planMethod(sampleVm(vm), guest, { ...defaultPolicy, ...policy })
}

const unmet = ({ conditions }: MethodPlan) => conditions.filter(({ met }) => !met).map(({ detail }) => detail)

describe('the automatic choice', () => {
  test('is guest-freeze when the agent answers: file systems at rest, applications too where the guest has VSS', () => {
    assert.deepEqual(
      [plan({}, linux), plan({}, windows)].map(({ method, consistency, obstacles }) => [
        method,
        consistency,
        obstacles,
      ]),
      [
        ['guest-freeze', 'filesystem', []],
        ['guest-freeze', 'application', []],
      ],
    )
  })

  test('is checkpoint otherwise, and says why (W5)', () => {
    for (const [vm, guest, because] of [
      [{}, silent, 'no answer within 5000 ms'],
      [{ agent: 'none' }, silent, 'the VM has no guest agent channel'],
      [{ agent: 'disconnected' }, silent, 'the VM has an agent channel, but no agent is connected to it'],
      [{ power: 'paused' }, silent, 'it is paused'],
    ] as const) {
      const { method, consistency, because: told, obstacles } = plan(vm, guest)
      assert.deepEqual([method, consistency, told, obstacles], ['checkpoint', 'crash', because, []])
    }
  })

  test('of a VM that is off is offline, as good as its shutdown was (W9)', () => {
    const clean = plan({ power: 'off', shutDownCleanly: true }, silent)
    const cut = plan({ power: 'off', shutDownCleanly: false }, silent)
    const unknown = plan({ power: 'off' }, silent, { method: 'saved-state' })
    assert.deepEqual([clean.method, clean.consistency], ['offline', 'application'])
    assert.deepEqual([cut.method, cut.consistency], ['offline', 'crash'])
    assert.deepEqual([unknown.method, unknown.consistency, unknown.obstacles], ['offline', 'crash', []])
  })
})

describe('what was asked for', () => {
  test('is not tried when its conditions are unmet: all of them are told in words (W6)', () => {
    assert.deepEqual(plan({ agent: 'none' }, silent, { method: 'guest-freeze' }).obstacles, [
      'the VM has no guest agent channel',
      'no answer within 5000 ms',
      'not known: the agent does not answer',
    ])
    assert.deepEqual(plan({ power: 'paused' }, linux, { method: 'guest-freeze' }).obstacles, ['it is paused'])
  })

  test('saved state needs a stored configuration, and no VHD disk', () => {
    const image = { format: 'vpc', storage: { file: '/images/old.vhd' } } as const
    assert.deepEqual(plan({}, linux, { method: 'saved-state' }).obstacles, [])
    assert.equal(plan({ persistent: false }, linux, { method: 'saved-state' }).obstacles.length, 1)
    assert.match(
      plan({ disks: [sampleDisk('sda', { image })] }, linux, { method: 'saved-state' }).obstacles.join(),
      /VHD disks \(sda\)/,
    )
  })

  test('checkpoint needs nothing of the guest', () => {
    assert.deepEqual(plan({ agent: 'none' }, silent, { method: 'checkpoint' }).obstacles, [])
  })
})

describe('obstacles of any method', () => {
  test('are a job of somebody else, a saved state of the hypervisor, and a disk that can not be read', () => {
    const { image: _image, ...unreadable } = sampleDisk('sdb', { location: 'gluster:vol/x' })
    for (const method of methodRequests) {
      assert.match(plan({ busy: 'migration out' }, linux, { method }).obstacles.join(), /occupied by migration out/)
      assert.match(plan({ power: 'saved' }, silent, { method }).obstacles.join(), /saved state of the hypervisor/)
      assert.match(plan({ disks: [unreadable] }, linux, { method }).obstacles.join(), /sdb \(gluster:vol\/x\)/)
    }
  })

  test('an unmet condition is also in the list of conditions, which names every one, met or not', () => {
    const freezing = { method: 'guest-freeze' } as const
    const met = plan({}, linux, freezing)
    assert.equal(met.conditions.length, 7)
    assert.deepEqual(unmet(met), [])
    assert.deepEqual(unmet(plan({ busy: 'backup' }, linux, freezing)), ['occupied by backup'])
  })
})

describe('excluded disks', () => {
  test('are named with their reason and are not among the disks (X1)', () => {
    const { disks, excluded, obstacles } = plan(
      { disks: [sampleDisk('sda'), sampleDisk('sdb', { passThrough: true }), sampleDisk('sr0', { device: 'cdrom' })] },
      linux,
    )
    assert.deepEqual(
      disks.map(({ target }) => target),
      ['sda'],
    )
    assert.deepEqual(
      excluded.map(({ target }) => target),
      ['sdb', 'sr0'],
    )
    assert.deepEqual(obstacles, [])
  })
})

describe('what is required (W10)', () => {
  test('is an obstacle when the method can not reach it, and says what it can', () => {
    assert.deepEqual(plan({ agent: 'none' }, silent, { require: 'filesystem' }).obstacles, [
      'checkpoint reaches crash consistency where filesystem is required: the VM has no guest agent channel',
    ])
    assert.equal(plan({}, linux, { require: 'application' }).obstacles.length, 1)
    assert.deepEqual(plan({}, windows, { require: 'application' }).obstacles, [])
    assert.deepEqual(plan({}, linux, { require: 'application', method: 'saved-state' }).obstacles, [])
  })

  test('is never silently missed, whatever the facts are', () => {
    const facts = fc.record({
      power: fc.constantFrom('running', 'paused', 'saved', 'off' as const),
      agent: fc.constantFrom('connected', 'disconnected', 'none' as const),
      persistent: fc.boolean(),
      shutDownCleanly: fc.boolean(),
    })
    const policies = fc.record({
      method: fc.constantFrom(...methodRequests),
      require: fc.constantFrom(...consistencies),
      instant: fc.constantFrom('vm', 'set' as const),
      profile: fc.constantFrom(...profiles),
    })
    fc.assert(
      fc.property(facts, policies, fc.constantFrom(linux, windows, silent), (vm, policy, guest) => {
        const made = plan(vm as Partial<VmFacts>, guest, policy)
        if (made.obstacles.length > 0) return
        assert.ok(atLeast(made.consistency, policy.require))
        assert.notEqual(vm.power, 'saved')
        if (policy.method !== 'auto' && vm.power !== 'off') assert.equal(made.method, policy.method)
        if (made.method === 'guest-freeze') assert.ok(vm.power === 'running' && guest.answering)
      }),
    )
  })
})
