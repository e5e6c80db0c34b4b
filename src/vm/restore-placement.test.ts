/**
 * Where a restore puts disks and in which format, whose files may make way, and single disks (R2, R5; law 9).
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { newUuid, sampleFacts, sampleHost, sampleNeeds } from '../../test/fault/sample-host.ts'
import { sampleDisk, sampleVm, storedVm, uuid } from '../../test/fault/sample-vm.ts'
import type { RestoreRequest } from '../vss/restore-plan.ts'
import { planVmRestore, type RestoreSurroundings, type StoredVm } from './restore-plan.ts'

const plan = (asked: Partial<RestoreRequest> = {}, here = sampleHost(), vm: Partial<StoredVm> = {}) =>
  planVmRestore(storedVm(vm), { networks: {}, start: false, ...asked }, here)
const places = (made: ReturnType<typeof plan>) =>
  made.targets.filter(({ format }) => format !== 'file').map(({ path, format }) => `${path} ${format}`)
const original = ['/images/web01-sda.qcow2', '/data/web01.raw', '/nvram/web01_VARS.fd']

describe('places and formats', () => {
  test('disk by disk: a file, or a directory; the others where they were', () => {
    const disks = { sda: { path: '/elsewhere/root.img' } }
    assert.deepEqual(places(plan({ disks })), ['/elsewhere/root.img qcow2', '/data/web01.raw raw'])
    const made = plan({ disks: { sdb: { path: '/elsewhere/' } } })
    assert.deepEqual(places(made), ['/images/web01-sda.qcow2 qcow2', '/elsewhere/web01.raw raw'])
    assert.deepEqual(made.edit.disks?.sdb, { file: '/elsewhere/web01.raw', format: 'raw' })
    assert.deepEqual(made.links, [{ path: '/data/web01.raw', to: '/elsewhere/web01.raw' }])
    assert.equal(made.edit.nvram, '/nvram/web01_VARS.fd')
  })

  test('all in one format, or each in its own; names and the configuration follow', () => {
    const made = plan({ format: 'vpc', to: '/elsewhere', disks: { sda: { format: 'raw' } } })
    assert.deepEqual(places(made), ['/elsewhere/web01-sda.raw raw', '/elsewhere/web01.vhd vpc'])
    assert.deepEqual(made.edit.disks?.sdb, { file: '/elsewhere/web01.vhd', format: 'vpc' })
    assert.ok(made.steps.some((step) => /write sdb to \/elsewhere\/web01.vhd \(vhd, 500000 bytes\)/.test(step)))
    assert.deepEqual(made.links, [], 'no link that promises another format')
    assert.deepEqual(places(plan({ as: 'web02', format: 'qcow2' })).at(-1), '/data/web02-sdb.qcow2 qcow2')
  })

  test('a name that ends like a format is in that format', () => {
    assert.equal(places(plan({ disks: { sda: { path: '/elsewhere/a.raw' } } }))[0], '/elsewhere/a.raw raw')
    const told = { sda: { path: '/elsewhere/a.raw', format: 'qcow2' } }
    assert.equal(places(plan({ disks: told }))[0], '/elsewhere/a.raw qcow2')
  })

  test('in place in another format the old file stays, and that is said', () => {
    const here = sampleHost(original, { former: sampleVm() })
    const made = plan({ format: 'qcow2' }, here)
    assert.deepEqual(places(made), ['/images/web01-sda.qcow2 qcow2', '/data/web01.qcow2 qcow2'])
    assert.match(made.warnings.join(), /\/data\/web01.raw stays as it is and is not used any more/)
  })

  test('refused: a disk that is not in the recovery point, a format that no VM runs from, a VHD that is too large', () => {
    const here = sampleHost([], { fit: { needs: sampleNeeds(), host: sampleFacts() } })
    assert.match(
      plan({ disks: { sdz: { path: '/x' } } }).obstacles.join(),
      /no disk sdz in the recovery point: sda, sdb/,
    )
    assert.match(plan({ format: 'vhdx' }, here).obstacles.join(), /no VM runs from vhdx here: choose raw, qcow2, vhd/)
    const disks = [{ target: 'sda', location: '/images/a.raw', format: 'raw', sizeBytes: 2041 * 2 ** 30 }]
    assert.match(plan({ format: 'vpc' }, here, { disks }).obstacles.join(), /larger than a VHD/)
  })

  test('a directory that is a link: the plan shows, and the files go, where it leads', () => {
    const realPath = (path: string) => path.replace(/^\/elsewhere\//, '/mnt/big/').replace(/^\/data\//, '/mnt/data/')
    const made = plan({ to: '/elsewhere' }, sampleHost([], { realPath }))
    assert.deepEqual(places(made), ['/mnt/big/web01-sda.qcow2 qcow2', '/mnt/big/web01.raw raw'])
    assert.deepEqual(made.edit.disks?.sda, { file: '/mnt/big/web01-sda.qcow2', format: 'qcow2' })
    assert.match(made.warnings.join(), /\/elsewhere leads to \/mnt\/big: the files are written there/)
    const inPlace = plan({}, sampleHost([], { realPath }))
    assert.equal(places(inPlace)[1], '/mnt/data/web01.raw raw')
    const named = inPlace.edit.disks?.sdb
    assert.deepEqual(named, { file: '/data/web01.raw', format: 'raw' }, 'a VM in its own place keeps its own names')
  })
})

describe('whose files make way', () => {
  const usedBy = (users: Record<string, { name: string; uuid: string }>): Partial<RestoreSurroundings> => ({
    former: sampleVm(),
    usersOf: (path) => (users[path] === undefined ? [] : [users[path]]),
  })
  const web01 = { name: 'web01', uuid }
  const other = { name: 'db', uuid: newUuid }
  const own = Object.fromEntries(original.map((path) => [path, web01]))

  test('those of the VM that makes way', () => {
    assert.deepEqual(plan({}, sampleHost(original, usedBy(own))).obstacles, [])
  })

  test("never another VM's, not even when named", () => {
    const here = sampleHost(original, usedBy({ ...own, '/data/web01.raw': other }))
    for (const replace of [[], ['/data/web01.raw']])
      assert.deepEqual(plan({ replace }, here).obstacles, ['/data/web01.raw belongs to the VM db'])
  })

  test("nobody's only when named", () => {
    const { former: _, ...gone } = usedBy({})
    const here = sampleHost(['/data/web01.raw'], gone)
    assert.match(
      plan({}, here).obstacles.join(),
      /web01.raw exists and belongs to no VM here.*--replace \/data\/web01.raw/,
    )
    const named = plan({ replace: ['/data/web01.raw'] }, here)
    assert.deepEqual(named.obstacles, [])
    assert.deepEqual(named.asides, [{ path: '/data/web01.raw', aside: '/data/web01.raw.umbra-aside-abcd' }])
  })
})

describe('a VM that is not the one backed up', () => {
  test('has its name: it makes way only when it is named, with its own UUID', () => {
    const namesake = sampleVm({ uuid: newUuid })
    const here = sampleHost(original, { namesake })
    assert.match(plan({}, here).obstacles.join(), /another VM is called web01.*--as.*--replace web01/)
    const made = plan({ replace: ['web01'] }, here)
    assert.deepEqual([made.obstacles, made.former, made.uuid], [[], namesake, uuid])
    assert.ok(made.steps.includes('turn off and remove the VM web01 that is here now'))
    assert.deepEqual(plan({ replace: [newUuid] }, here).obstacles, [])
  })

  test('has its UUID: the same', () => {
    const here = sampleHost(original, { former: sampleVm({ name: 'web01-renamed' }) })
    assert.match(plan({}, here).obstacles.join(), /its UUID on this host is called web01-renamed/)
    assert.deepEqual(plan({ replace: ['web01-renamed'] }, here).obstacles, [])
  })

  test('both at once: only one can make way', () => {
    const here = sampleHost([], { former: sampleVm(), namesake: sampleVm({ uuid: newUuid }) })
    assert.equal(plan({ replace: ['web01'] }, here).obstacles.length, 1)
  })
})

describe('single disks', () => {
  const former = sampleVm({
    disks: [sampleDisk('sda'), sampleDisk('sdb', { image: { format: 'raw', storage: { file: '/new/web01.raw' } } })],
  })
  const here = sampleHost(['/new/web01.raw'], { former, usersOf: () => [{ name: 'web01', uuid }] })

  test('go where the VM has them now, and nothing else of it is touched', () => {
    const made = plan({ only: ['sdb'] }, here)
    assert.deepEqual(made.obstacles, [])
    assert.deepEqual(places(made), ['/new/web01.raw raw'])
    assert.deepEqual(made.asides, [{ path: '/new/web01.raw', aside: '/new/web01.raw.umbra-aside-abcd' }])
    assert.deepEqual([made.edit, made.keepsConfiguration, made.former], [{}, true, former])
    assert.match(made.warnings.join(), /sda stay as they are now/)
    assert.ok(made.steps.includes('turn off web01'))
  })

  test('are refused for a VM that is gone, that has them no more, or as a copy', () => {
    assert.match(plan({ only: ['sdb'] }).obstacles.join(), /not on this host/)
    assert.match(plan({ only: ['sdc'] }, here).obstacles.join(), /no disk sdc in the recovery point/)
    const lost = sampleHost([], { former: sampleVm() })
    assert.match(plan({ only: ['sdb'] }, lost).obstacles.join(), /has no disk sdb that is an image file/)
    assert.match(plan({ only: ['sdb'], format: 'raw' }, here).obstacles.join(), /in the format they have/)
  })
})

describe('MAC addresses', () => {
  const macUsers = () => [{ name: 'web01', uuid }]

  test('of a copy are new; kept ones are refused while a VM here has them', () => {
    assert.equal(plan({ as: 'web02' }).edit.nics?.['52:54:00:00:00:01']?.mac, '52:54:00:ff:00:01')
    const kept = plan({ as: 'web02', keepMac: true })
    assert.deepEqual([kept.edit.nics?.['52:54:00:00:00:01'], kept.obstacles], [{}, []])
    const taken = plan({ as: 'web02', keepMac: true }, sampleHost([], { macUsers }))
    assert.match(
      taken.obstacles.join(),
      /the VM web01 has the MAC address 52:54:00:00:00:01: restore without --keep-mac/,
    )
  })

  test('in place are kept, and a second owner is told', () => {
    assert.deepEqual(plan({}, sampleHost([], { macUsers })).warnings, [])
    const other = () => [{ name: 'copy', uuid: newUuid }]
    assert.match(plan({}, sampleHost([], { macUsers: other })).warnings.join(), /the VM copy has the MAC address/)
  })
})

describe('interfaces that are on no network', () => {
  const fit = { needs: sampleNeeds(), host: sampleFacts() }
  const nic = (type: string, source?: string, asked: Partial<RestoreRequest> = {}) => {
    const vm = { nics: [{ mac: '52:54:00:00:00:02', type, ...(source === undefined ? {} : { source }) }] }
    const made = plan(asked, sampleHost([], { fit }), vm)
    return { ...made, connect: made.edit.nics?.['52:54:00:00:00:02']?.connect, told: made.warnings.join() }
  }
  const unconnected = { network: 'umbra-unconnected' }

  test('macvtap: its device is here, or it is put aside', () => {
    assert.equal(nic('direct', 'eth0').connect, undefined)
    assert.deepEqual(nic('direct', 'eth7').connect, unconnected)
    assert.match(nic('direct', 'eth7').told, /network device eth7 does not exist here/)
    assert.deepEqual(nic('direct', 'eth7', { networks: { eth7: 'default' } }).connect, { network: 'default' })
  })

  test('a bridge of Open vSwitch is a network device; a network of that name is not a bridge', () => {
    assert.equal(nic('bridge', 'eth0').connect, undefined)
    assert.deepEqual(nic('bridge', 'default').connect, unconnected)
  })

  test("user mode stays; one VM's own devices stay in place and leave a copy", () => {
    for (const as of [undefined, 'web02']) {
      const asked = as === undefined ? {} : { as }
      assert.equal(nic('user', undefined, asked).connect, undefined)
      for (const type of ['ethernet', 'hostdev', 'vhostuser', 'server'])
        assert.deepEqual(nic(type, undefined, asked).connect, as === undefined ? undefined : unconnected, type)
    }
    assert.match(nic('hostdev').told, /hostdev\) uses a device.*kept/)
    const mapped = { networks: { '52:54:00:00:00:02': 'default' } }
    assert.deepEqual(nic('hostdev', undefined, mapped).connect, { network: 'default' }, 'by its MAC')
  })

  test('a network that is not active is told', () => {
    const networks = [{ name: 'default', kind: 'network', active: false }] as const
    assert.match(plan({}, sampleHost([], { networks })).warnings.join(), /network default is not active/)
  })
})

test('a guest that went back in time gets a new generation ID, but for one that goes on from its memory', () => {
  const here = sampleHost([], { newGeneration: newUuid })
  assert.equal(plan({}, here).edit.generation, newUuid)
  assert.equal(plan({}, here, { memoryBytes: 4096 }).edit.generation, undefined)
})

test('what a copy can not have too is told, and taken out', () => {
  const here = sampleHost([], { ties: ['serial 0 leads to a terminal of its own'] })
  const made = plan({ as: 'web02' }, here)
  assert.match(made.warnings.join(), /serial 0 leads to/)
  assert.deepEqual(made.edit.separateFrom, { name: 'web01', uuid })
  assert.equal(plan({}, here).edit.separateFrom, undefined)
})

describe('the plan tells all of it', () => {
  const steps = (made: ReturnType<typeof plan>) => made.steps.join('\n')

  test('what is written, removed, kept aside, registered, connected, deleted, in this order', () => {
    const former = sampleVm({
      disks: [sampleDisk('sdb', { image: { format: 'raw', storage: { file: '/data/web01.raw' } } })],
    })
    const made = plan({ start: true }, sampleHost(original, { former }))
    assert.deepEqual(made.steps, [
      'write sda to /images/web01-sda.qcow2 (qcow2, 1000000 bytes), verifying every byte',
      'write sdb to /data/web01.raw (raw, 500000 bytes), verifying every byte; only what is different, where the file system makes clones',
      'write nvram to /nvram/web01_VARS.fd',
      'turn off and remove the VM web01 that is here now',
      ...original.map((path) => `keep ${path} aside until all has succeeded`),
      'register web01',
      'connect 52:54:00:00:00:01 to network default',
      'delete what was kept aside',
      'start web01',
    ])
    assert.deepEqual(
      made.targets.map(({ base }) => base),
      [undefined, '/data/web01.raw', undefined],
    )
  })

  test('an isolated network that has to be made, and links', () => {
    const made = plan({ to: '/elsewhere' }, sampleHost([], { networks: [] }))
    assert.match(steps(made), /make the isolated network umbra-unconnected unless there is one/)
    assert.match(steps(made), /link \/data\/web01.raw to \/elsewhere\/web01.raw/)
  })

  test('a clone only of a raw file that the VM here has, in that place', () => {
    const raw = (file: string) => sampleDisk('sdb', { image: { format: 'raw', storage: { file } } })
    const bases = (former: ReturnType<typeof sampleVm>, asked: Partial<RestoreRequest> = {}) =>
      plan(asked, sampleHost(original, { former })).targets.flatMap(({ base }) => base ?? [])
    assert.deepEqual(bases(sampleVm({ disks: [raw('/data/web01.raw')] })), ['/data/web01.raw'])
    assert.deepEqual(bases(sampleVm({ disks: [raw('/data/other.raw')] })), [])
    assert.deepEqual(bases(sampleVm({ disks: [sampleDisk('sdb')] })), [])
    assert.deepEqual(bases(sampleVm({ disks: [raw('/data/web01.raw')] }), { as: 'web02' }), [])
  })
})
