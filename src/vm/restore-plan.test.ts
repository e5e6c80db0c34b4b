/**
 * What a restore will do, as a value: in place, to another directory, as a copy (R1 to R7; law 9: every no comes before
 * anything is touched).
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { newUuid, sampleHost } from '../../test/fault/sample-host.ts'
import { sampleVm, storedVm, uuid } from '../../test/fault/sample-vm.ts'
import type { RestoreRequest } from '../vss/restore-plan.ts'
import { removableMedium } from './exclusion.ts'
import { planVmRestore, type StoredVm } from './restore-plan.ts'

const request = (changes: Partial<RestoreRequest> = {}): RestoreRequest => ({ networks: {}, start: false, ...changes })
const plan = (vm: Partial<StoredVm>, asked: Partial<RestoreRequest> = {}, here = sampleHost()) =>
  planVmRestore(storedVm(vm), request(asked), here)

const original = ['/images/web01-sda.qcow2', '/data/web01.raw', '/nvram/web01_VARS.fd']

describe('in place', () => {
  test('writes beside each file, sets the present one aside, and lets the VM that is there make way', () => {
    const former = sampleVm()
    const made = plan({}, {}, sampleHost(original, { former }))
    assert.deepEqual(
      made.targets.map(({ path, staged }) => [path, staged]),
      original.map((path) => [path, `${path}.umbra-new-abcd`]),
    )
    assert.deepEqual(
      made.asides,
      original.map((path) => ({ path, aside: `${path}.umbra-aside-abcd` })),
    )
    assert.equal(made.former, former)
    assert.equal(made.uuid, uuid)
    assert.equal(made.edit.name, undefined)
    assert.equal(made.edit.uuid, undefined)
    assert.deepEqual(made.obstacles, [])
    assert.ok(made.steps.includes('turn off and remove the VM web01 that is here now'))
    assert.equal(made.steps.at(-1), 'leave web01 off')
  })

  test('of a VM that is gone removes nothing and sets nothing aside', () => {
    const made = plan({})
    assert.deepEqual(made.asides, [])
    assert.equal(made.former, undefined)
    assert.ok(!made.steps.some((step) => step.includes('remove')))
  })

  test('keeps owner and mode of each file', () => {
    const [sda, sdb, nvram] = plan({}).targets
    assert.deepEqual([sda?.owner?.uid, sdb?.owner, nvram?.owner?.mode], [64055, undefined, 0o600])
  })

  test('starts the VM when asked', () => {
    assert.equal(plan({}, { start: true }).steps.at(-1), 'start web01')
  })
})

describe('to another directory (R4, R5)', () => {
  test('names the new places in the configuration, and links them where the files were', () => {
    const made = plan({}, { to: '/elsewhere' })
    assert.deepEqual(made.edit.disks, {
      sda: { file: '/elsewhere/web01-sda.qcow2', format: 'qcow2' },
      sdb: { file: '/elsewhere/web01.raw', format: 'raw' },
    })
    assert.equal(made.edit.nvram, '/elsewhere/web01_VARS.fd')
    assert.deepEqual(made.links, [
      { path: '/images/web01-sda.qcow2', to: '/elsewhere/web01-sda.qcow2' },
      { path: '/data/web01.raw', to: '/elsewhere/web01.raw' },
    ])
  })

  test('leaves a file that is still in the original place alone, and says so', () => {
    const made = plan({}, { to: '/elsewhere' }, sampleHost(['/data/web01.raw']))
    assert.deepEqual(
      made.links.map(({ path }) => path),
      ['/images/web01-sda.qcow2'],
    )
    assert.match(made.warnings.join(), /\/data\/web01.raw stays as it is/)
  })

  test('makes no link where the original directory is gone, or the disk was no file', () => {
    const disks = [
      { target: 'sda', location: '/gone/disk.raw', format: 'raw', sizeBytes: 1 },
      { target: 'sdb', location: 'nbd:export', format: 'raw', sizeBytes: 1 },
    ]
    const made = plan({ disks }, { to: '/elsewhere' })
    assert.deepEqual(made.links, [])
    assert.deepEqual(made.obstacles, [])
  })
})

describe('as a copy (R2)', () => {
  const copy = { as: 'web02' }

  test('gets a new identity, and nothing of the original is touched, though it runs', () => {
    const made = plan({}, copy, sampleHost(original, { former: sampleVm() }))
    assert.equal(made.former, undefined)
    assert.deepEqual(made.asides, [])
    assert.deepEqual(made.links, [])
    assert.equal(made.uuid, newUuid)
    assert.equal(made.edit.uuid, newUuid)
    assert.equal(made.edit.name, 'web02')
    assert.equal(made.edit.nics?.['52:54:00:00:00:01']?.mac, '52:54:00:ff:00:01')
    assert.deepEqual(made.obstacles, [])
    for (const { path } of made.targets) assert.ok(!original.includes(path), path)
    assert.deepEqual(
      made.targets.map(({ path }) => path),
      ['/images/web02-sda.qcow2', '/data/web02-sdb.raw', '/nvram/web02_VARS.fd'],
    )
  })

  test('has TPM state under its own UUID', () => {
    const owner = { uid: 0, gid: 0, mode: 0o600 }
    const path = `/var/lib/libvirt/swtpm/${uuid}/tpm2/tpm2-00.permall`
    const made = plan({ hostFiles: [{ role: 'tpm', document: 'tpm/x', path, owner }] }, copy)
    assert.equal(made.targets.at(-1)?.path, `/var/lib/libvirt/swtpm/${newUuid}/tpm2/tpm2-00.permall`)
  })

  test('is left without its memory, and says so', () => {
    const made = plan({ memoryBytes: 100 }, copy)
    assert.equal(made.memory, undefined)
    assert.match(made.warnings.join(), /its memory is left out/)
  })

  test('has no disk that was not backed up, except for drives of removable media', () => {
    const excluded = [
      { target: 'sdc', reason: 'pass-through device: back it up from inside the VM' },
      { target: 'sr0', reason: removableMedium },
    ]
    const made = plan({ excluded }, copy)
    assert.equal(made.edit.disks?.sdc, 'remove')
    assert.equal(made.edit.disks?.sr0, undefined)
    assert.match(made.warnings.join('; '), /sdc is left out of the copy/)
    assert.equal(plan({ excluded }).edit.disks?.sdc, undefined)
  })

  test('refuses a name or a place that is taken', () => {
    const namesake = sampleVm({ name: 'web02', uuid: newUuid })
    const made = plan({}, copy, sampleHost(['/images/web02-sda.qcow2'], { namesake }))
    assert.equal(made.obstacles.length, 2)
    assert.match(made.obstacles[0] ?? '', /another VM is called web02/)
    assert.match(made.obstacles[1] ?? '', /\/images\/web02-sda.qcow2 exists already/)
  })
})

describe('memory (R7)', () => {
  test('comes back in place: the VM is left saved, to go on where it was', () => {
    const made = plan({ memoryBytes: 4096 })
    assert.equal(made.memory, `/work/${uuid}-abcd.memory`)
    assert.deepEqual(made.targets.at(-1)?.source, { stream: 'memory', sizeBytes: 4096 })
    assert.equal(made.steps.at(-1), 'leave web01 saved, to go on where it was')
  })
})

describe('networks (R6)', () => {
  test('that are still there are connected again, with the old MAC', () => {
    const made = plan({})
    assert.deepEqual(made.edit.nics, { '52:54:00:00:00:01': {} })
    assert.equal(made.needsUnconnected, false)
  })

  test('that are gone are mapped as the user says, to a network or a bridge', () => {
    const here = sampleHost([], { networks: [{ name: 'br0', kind: 'bridge', active: true }] })
    const made = plan({}, { networks: { default: 'br0' } }, here)
    assert.deepEqual(made.edit.nics, { '52:54:00:00:00:01': { connect: { bridge: 'br0' } } })
    assert.deepEqual(made.warnings, [])
  })

  test('that are gone and not mapped, or mapped to what is not there, become the isolated one, with a warning', () => {
    for (const networks of [{}, { default: 'nowhere' }]) {
      const made = plan({}, { networks }, sampleHost([], { networks: [] }))
      assert.deepEqual(made.edit.nics, { '52:54:00:00:00:01': { connect: { network: 'umbra-unconnected' } } })
      assert.equal(made.needsUnconnected, true)
      assert.match(made.warnings.join(), /does not exist here/)
    }
  })

  test('an interface without one (user mode) stays as it is', () => {
    const made = plan({ nics: [{ mac: '52:54:00:00:00:02', type: 'user' }] }, {}, sampleHost([], { networks: [] }))
    assert.deepEqual(made.edit.nics, { '52:54:00:00:00:02': {} })
    assert.equal(made.needsUnconnected, false)
  })
})

describe('obstacles (law 9)', () => {
  const obstacles = (former: Partial<Parameters<typeof sampleVm>[0]>) =>
    plan({}, {}, sampleHost([], { former: sampleVm(former) })).obstacles.join()

  test('are a job, a saved state and snapshots of the VM that is there: all would be lost or in the way', () => {
    assert.match(obstacles({ busy: 'block copy' }), /web01 is occupied by block copy/)
    assert.match(obstacles({ power: 'saved' }), /saved state/)
    assert.match(obstacles({ hasHypervisorSnapshots: true }), /snapshots of the hypervisor/)
  })

  test('are two disks that would become one file', () => {
    const disks = ['/a/disk.raw', '/b/disk.raw'].map((location, index) => {
      return { target: `sd${index}`, location, format: 'raw', sizeBytes: 1 }
    })
    assert.match(plan({ disks }, { to: '/elsewhere' }).obstacles.join(), /two disks would both become/)
    assert.deepEqual(plan({ disks }).obstacles, [])
    assert.deepEqual(plan({ disks }, { to: '/elsewhere', as: 'web02' }).obstacles, [])
  })

  test('are a block device in its place, and a disk that was no file and has no new place', () => {
    const device = { target: 'sda', location: '/dev/vg/web01', format: 'raw', sizeBytes: 1 }
    const here = sampleHost([], { pathKind: (path) => (path === '/dev/vg/web01' ? 'other' : 'absent') })
    assert.match(plan({ disks: [device] }, {}, here).obstacles.join(), /not a regular file/)
    const network = { target: 'sda', location: 'rbd:pool/image', format: 'raw', sizeBytes: 1 }
    assert.match(plan({ disks: [network] }).obstacles.join(), /say with --to or --disk where/)
    assert.deepEqual(plan({ disks: [network] }, { to: '/elsewhere' }).obstacles, [])
  })
})

test('disks that were not backed up are named at every restore (X1)', () => {
  const made = plan({ excluded: [{ target: 'sdc', reason: 'iSCSI disk' }] })
  assert.match(made.warnings.join(), /sdc was not backed up \(iSCSI disk\)/)
})
