/**
 * The era profiles (W7), and child-snapshot among the methods (W3, W6): its conditions in words, its way of
 * auto-recovery (A1, A2), its consistency, and when it is not taken.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { sampleDisk, sampleVm } from '../../test/fault/sample-vm.ts'
import { recoveryWays } from './auto-recovery.ts'
import type { GuestDescription, GuestVolume } from './guest-requestor.ts'
import type { GuestOs, VmFacts } from './hypervisor.ts'
import { type BackupPolicy, defaultPolicy, type GuestFacts, type MethodPlan, methods, planMethod } from './method.ts'
import { captionOf, type Profile, profiles } from './profile.ts'

const gibibyte = 2 ** 30
const debian: GuestOs = { id: 'debian', name: 'Debian GNU/Linux 12', version: '12' }
const root: GuestVolume = {
  mountPoint: '/',
  type: 'ext4',
  kind: 'lvm',
  where: 'vg0/root',
  targets: ['sda'],
  roomBytes: gibibyte,
}
const data: GuestVolume = { ...root, mountPoint: '/srv', where: 'vg0/srv', targets: ['sda', 'sdb'] }
const boot: GuestVolume = { ...root, mountPoint: '/boot', kind: 'other', where: '/dev/sda1', roomBytes: 0 }
const thin: GuestVolume = { ...root, mountPoint: '/var', kind: 'thin', where: 'vg0/var' }
const btrfs: GuestVolume = { ...root, mountPoint: '/home', type: 'btrfs', kind: 'btrfs', where: 'f00d:/home' }
const able: GuestDescription = {
  via: 'exec',
  volumes: [root, data],
  writers: ['postgres'],
  arrays: [],
  strayDevices: [],
}

function telling(changes: Partial<GuestDescription> = {}, os: GuestOs | undefined = debian): GuestFacts {
  return { answering: true, fileSystems: [], ...(os && { os }), requestor: { ...able, ...changes } }
}
const silent: GuestFacts = { answering: false, why: 'no answer within 5000 ms' }
const twoDisks = { disks: [sampleDisk('sda'), sampleDisk('sdb')], hotAddsScsi: true }

function plan(vm: Partial<VmFacts>, guest: GuestFacts, policy: Partial<BackupPolicy> = {}): MethodPlan {
  return planMethod(sampleVm({ ...twoDisks, ...vm }), guest, { ...defaultPolicy, ...policy })
}

/** The same four VMs for every profile. */
const fleet: Readonly<Record<string, readonly [Partial<VmFacts>, GuestFacts]>> = {
  'agent, LVM and writers': [{}, telling()],
  'agent, no volume that can have a snapshot': [{}, telling({ volumes: [boot] })],
  'no agent': [{ agent: 'none' }, silent],
  off: [{ power: 'off', shutDownCleanly: true }, silent],
}

const table: Readonly<Record<Profile, readonly string[]>> = {
  '2008': [
    'child-snapshot on-host application',
    'saved-state application',
    'saved-state application',
    'offline application',
  ],
  '2012': [
    'child-snapshot on-host application',
    'saved-state application',
    'saved-state application',
    'offline application',
  ],
  '2012r2': [
    'child-snapshot in-guest application',
    'guest-freeze filesystem',
    'checkpoint crash',
    'offline application',
  ],
  modern: [
    'child-snapshot by-reading application',
    'guest-freeze filesystem',
    'checkpoint crash',
    'offline application',
  ],
}

const chosen = ({ method, recovery, consistency }: MethodPlan) =>
  [method, ...(recovery === undefined ? [] : [recovery.way]), consistency].join(' ')

for (const profile of profiles) {
  describe(`profile ${profile}`, () => {
    for (const [index, [name, [vm, guest]]] of Object.entries(fleet).entries()) {
      const expected = table[profile][index] ?? ''
      test(`takes ${expected} for: ${name} (W7)`, () => {
        const made = plan(vm, guest, { profile })
        assert.deepEqual([chosen(made), made.obstacles], [expected, []])
        assert.notEqual(made.because, '')
      })
    }
  })
}

describe('the automatic choice', () => {
  test('says why not the better one', () => {
    const noSnapshots = /no snapshot can be taken of \/boot \(ext4, \/dev\/sda1\): neither on LVM nor btrfs/
    assert.match(plan({}, telling({ volumes: [root, boot] })).because, noSnapshots)
    assert.match(plan({}, telling({ volumes: [root, boot] }), { profile: '2008' }).because, noSnapshots)
    assert.match(plan({ agent: 'none' }, silent, { profile: '2008' }).because, /no guest agent channel/)
    assert.equal(plan({ agent: 'none' }, silent, { profile: '2012r2' }).because, 'the VM has no guest agent channel')
  })

  test('of modern takes a snapshot in the guest only for writers: without any, freezing reaches as much', () => {
    const without = telling({ writers: [] })
    assert.equal(chosen(plan({}, without)), 'guest-freeze filesystem')
    assert.match(plan({}, without).because, /no writers of its own/)
    assert.equal(chosen(plan({}, without, { profile: '2012r2' })), 'child-snapshot in-guest filesystem')
    assert.equal(chosen(plan({}, without, { profile: '2008' })), 'child-snapshot on-host filesystem')
  })

  test('leaves Windows guests to their own VSS through the agent, where the profile has it', () => {
    const windows: GuestFacts = {
      answering: true,
      os: { id: 'mswindows', name: 'Windows Server 2022', version: '2022' },
      fileSystems: [],
    }
    assert.equal(chosen(plan({}, windows)), 'guest-freeze application')
    assert.equal(chosen(plan({}, windows, { profile: '2012r2' })), 'guest-freeze application')
    assert.match(plan({}, windows, { profile: '2012' }).because, /Windows Server 2022 is not supported/)
  })

  test('of a paused VM is saved state until 2012, and a checkpoint since', () => {
    const paused = profiles.map((profile) => plan({ power: 'paused' }, silent, { profile }).method)
    assert.deepEqual(paused, ['saved-state', 'saved-state', 'checkpoint', 'checkpoint'])
  })

  test('never ends at a snapshot in the guest when auto-recovery is not allowed', () => {
    for (const profile of profiles) {
      const made = plan({}, telling(), { profile, autoRecovery: false })
      assert.notEqual(made.method, 'child-snapshot')
      assert.match(made.because, /auto-recovery is not allowed/)
    }
  })

  test('tells what keeps a VM from being saved, where that is all that is left', () => {
    const image = { format: 'vpc', storage: { file: '/images/old.vhd' } } as const
    const old = plan({ disks: [sampleDisk('sda', { image })], agent: 'none' }, silent, { profile: '2008' })
    assert.match(old.obstacles.join(), /VHD disks \(sda\)/)
  })
})

describe('the way of auto-recovery', () => {
  const wayOf = (changes: Partial<GuestDescription>, policy: Partial<BackupPolicy>, vm: Partial<VmFacts> = {}) => {
    const { recovery, obstacles } = plan(vm, telling(changes), { method: 'child-snapshot', ...policy })
    return { way: recovery?.way, because: recovery?.because ?? '', obstacles }
  }

  test('of 2012 R2 is inside the guest, else on the host, for a reason (A2)', () => {
    const ide = wayOf({}, { profile: '2012r2' }, { hotAddsScsi: false })
    assert.deepEqual([ide.way, ide.because], ['on-host', 'not in-guest: the VM has no virtio-scsi controller'])
    assert.equal(wayOf({ volumes: [root, thin, btrfs] }, { profile: '2012r2' }).way, 'in-guest')
  })

  test('of modern is by reading what is classic LVM, else on the host, for a reason', () => {
    assert.equal(wayOf({}, {}).way, 'by-reading')
    for (const other of [thin, btrfs]) {
      const { way, because, obstacles } = wayOf({ volumes: [root, other] }, {})
      assert.deepEqual([way, obstacles], ['on-host', []])
      assert.ok(because.includes(other.mountPoint), because)
    }
  })

  test('can be asked for, and is then not replaced: what is unmet is an obstacle', () => {
    for (const recovery of recoveryWays) {
      assert.deepEqual([wayOf({}, { recovery }).way, wayOf({}, { recovery }).obstacles], [recovery, []])
    }
    assert.deepEqual(wayOf({}, { recovery: 'in-guest' }, { hotAddsScsi: false }).obstacles, [
      'the VM has no virtio-scsi controller',
    ])
    assert.match(wayOf({ volumes: [btrfs] }, { recovery: 'by-reading' }).obstacles.join(), /not a classic LVM volume/)
  })

  test('names the disks that are rolled back, and what they hold', () => {
    const spare = sampleDisk('sdc')
    const made = plan({ disks: [...twoDisks.disks, spare] }, telling())
    assert.deepEqual(
      made.recovery?.disks.map(({ target, because }) => `${target} ${because}`),
      ['sda holds / (ext4, vg0/root), /srv (ext4, vg0/srv)', 'sdb holds /srv (ext4, vg0/srv)'],
    )
    const told = made.conditions.find(({ name }) => name === 'every file system of the guest supports snapshots')
    assert.match(told?.detail ?? '', /nothing mounted on sdc: copied as at the instant of the host/)
  })
})

const unmetCases: Readonly<Record<string, readonly [Partial<VmFacts>, GuestFacts, RegExp]>> = {
  'a VM that does not run': [{ power: 'paused' }, silent, /it is paused/],
  'no agent channel': [{ agent: 'none' }, silent, /no guest agent channel/],
  'an agent that is silent': [{}, silent, /no answer within 5000 ms/],
  'a guest without programs': [
    {},
    { answering: true, os: debian, fileSystems: [], requestor: { unavailable: 'guest-exec is disabled' } },
    /integration service can not be used: guest-exec is disabled/,
  ],
  Windows: [{}, telling({}, { id: 'mswindows', name: 'Windows 2000', version: '5' }), /Windows 2000 is not supported/],
  FreeBSD: [{}, telling({}, { id: 'freebsd', name: 'FreeBSD 14', version: '14' }), /FreeBSD 14 is not supported/],
  'a plain partition': [{}, telling({ volumes: [root, boot] }), /\/boot \(ext4, \/dev\/sda1\): neither on LVM/],
  'an obstacle the guest tells': [
    {},
    telling({ volumes: [{ ...root, obstacle: 'the volume is a mirror' }] }),
    /\/ \(ext4, vg0\/root\): the volume is a mirror/,
  ],
  'no file system': [{}, telling({ volumes: [] }), /no local file system mounted/],
  'a full volume group': [
    {},
    telling({ volumes: [root, data].map((volume) => ({ ...volume, roomBytes: 4 * 2 ** 20 })) }),
    /volume group vg0 has 4 MiB free of 8 MiB/,
  ],
  'a full btrfs': [{}, telling({ volumes: [{ ...btrfs, roomBytes: 0 }] }), /\/home .* is full/],
  'an array': [{}, telling({ arrays: ['md0 over sda2 and sdb2'] }), /in use: md0 over sda2 and sdb2/],
  'a volume on an excluded disk': [
    { disks: [sampleDisk('sda'), sampleDisk('sdb', { shareable: true })] },
    telling(),
    /\/srv \(ext4, vg0\/srv\) lies on sdb, which is not backed up \(shared with other VMs/,
  ],
  'a volume on an unknown disk': [{}, telling({ volumes: [{ ...root, targets: [] }] }), /a disk that is not known/],
  'a stray part of a volume group': [
    {},
    telling({ strayDevices: ['/dev/sdq'] }),
    /\/dev\/sdq is not a disk of this VM/,
  ],
  'a disk that is not a file': [
    {
      disks: [
        sampleDisk('sda'),
        sampleDisk('sdb', { location: '/dev/vg/x', image: { format: 'raw', storage: { blockDevice: '/dev/vg/x' } } }),
      ],
    },
    telling(),
    /sdb \(\/dev\/vg\/x\): not an image file/,
  ],
}

describe('conditions of child-snapshot', () => {
  for (const [name, [vm, guest, words]] of Object.entries(unmetCases)) {
    test(`refuse ${name}, in words (W6)`, () => {
      const { method, obstacles, recovery } = plan(vm, guest, { method: 'child-snapshot' })
      assert.deepEqual([method, recovery === undefined], ['child-snapshot', false])
      assert.match(obstacles.join('; '), words)
      assert.notEqual(plan(vm, guest).method, 'child-snapshot')
    })
  }

  test('are all met by a guest that only fell silent about its system', () => {
    assert.equal(plan({}, { answering: true, fileSystems: [], requestor: able }).method, 'child-snapshot')
  })

  test('are not looked at for other methods', () => {
    const names = plan({}, telling(), { method: 'guest-freeze' }).conditions.flatMap(({ neededFor }) => neededFor)
    assert.ok(!plan({}, telling(), { method: 'checkpoint' }).conditions.some(({ name }) => /file system/.test(name)))
    assert.ok(names.includes('guest-freeze'))
  })
})

const volumes = fc.record({
  mountPoint: fc.constantFrom('/', '/srv', '/boot'),
  type: fc.constantFrom('ext4', 'xfs', 'btrfs'),
  kind: fc.constantFrom('lvm', 'thin', 'btrfs', 'other' as const),
  where: fc.constantFrom('vg0/root', 'vg0/srv', '/dev/sda1'),
  targets: fc.subarray(['sda', 'sdb', 'sdc']),
  roomBytes: fc.constantFrom(0, gibibyte),
})
const guests: fc.Arbitrary<GuestFacts> = fc.oneof(
  fc.constant(silent),
  fc.record({
    answering: fc.constant(true as const),
    os: fc.constantFrom(debian, { ...debian, id: 'mswindows' }),
    fileSystems: fc.constant([]),
    requestor: fc.oneof(
      fc.constant({ unavailable: 'refused' }),
      fc.record({
        via: fc.constant('exec' as const),
        volumes: fc.array(volumes, { maxLength: 3 }),
        writers: fc.subarray(['postgres']),
        arrays: fc.subarray(['md0']),
        strayDevices: fc.subarray(['/dev/sdq']),
      }),
    ),
  }),
)
const facts = fc.record({
  power: fc.constantFrom('running', 'paused', 'saved', 'off' as const),
  agent: fc.constantFrom('connected', 'disconnected', 'none' as const),
  hotAddsScsi: fc.boolean(),
  persistent: fc.boolean(),
})
const policies = fc.record({
  profile: fc.constantFrom(...profiles),
  autoRecovery: fc.boolean(),
  recovery: fc.constantFrom('auto' as const, ...recoveryWays),
})

describe('whatever the facts are', () => {
  test('2012 R2 and later never save a VM by themselves (W7)', () => {
    fc.assert(
      fc.property(facts, guests, policies, (vm, guest, policy) => {
        const made = plan(vm, guest, policy)
        if (policy.profile === '2012r2' || policy.profile === 'modern') assert.notEqual(made.method, 'saved-state')
        assert.notEqual(made.because, '')
      }),
    )
  })

  test('every condition has words, and child-snapshot asked for lists all that are unmet', () => {
    fc.assert(
      fc.property(facts, guests, policies, (vm, guest, policy) => {
        const made = plan(vm, guest, { ...policy, method: 'child-snapshot' })
        for (const { name, detail, met, neededFor } of made.conditions) {
          assert.ok(name.length > 5 && detail.length > 2, `${name}: ${detail}`)
          const concerned = neededFor.includes('child-snapshot') && vm.power !== 'off'
          if (!met && concerned) assert.ok(made.obstacles.includes(detail), detail)
        }
      }),
    )
  })

  test('child-snapshot is only ever planned whole: all conditions met, a way, and each disk of every volume', () => {
    fc.assert(
      fc.property(facts, guests, policies, (vm, guest, policy) => {
        const made = plan(vm, guest, policy)
        assert.equal(made.recovery !== undefined, made.method === 'child-snapshot')
        if (made.recovery === undefined || made.obstacles.length > 0) return
        assert.ok(guest.answering && guest.requestor && !('unavailable' in guest.requestor) && policy.autoRecovery)
        const wanted = new Set(guest.requestor.volumes.flatMap(({ targets }) => targets))
        assert.deepEqual(new Set(made.recovery.disks.map(({ target }) => target)), wanted)
        if (made.recovery.way === 'in-guest') assert.ok(vm.hotAddsScsi)
        if (made.recovery.way === 'by-reading') assert.ok(guest.requestor.volumes.every(({ kind }) => kind === 'lvm'))
      }),
    )
  })
})

describe('captions', () => {
  test('are those of the time', () => {
    const captions = (profile: Profile) => methods.map((method) => captionOf(profile, method, 'web01'))
    const [online, saved] = ['Backup Using Child Partition Snapshot\\web01', 'Backup Using Saved State\\web01']
    assert.deepEqual(captions('2008'), [online, online, online, saved, saved])
    assert.deepEqual(captions('2012'), captions('2008'))
    const since = ['Online\\web01', 'Online\\web01', 'Online\\web01', 'Offline\\web01', 'Offline\\web01']
    assert.deepEqual([captions('2012r2'), captions('modern')], [since, since])
  })
})
