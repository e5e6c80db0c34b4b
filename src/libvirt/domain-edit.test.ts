import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import {
  connectNic,
  dropLiveState,
  dropTopImage,
  forgetChain,
  renameDomain,
  setDiskImage,
  setDomainUuid,
  setMacs,
  setNvramPath,
} from './domain-edit.ts'
import { liveDomain, richDomain } from './domain-fixtures.ts'
import { readDomain } from './domain-xml.ts'
import { isFailure } from './libvirt-errors.ts'
import { parseXml, serializeXml } from './xml-dom.ts'

const normal = (xml: string): string => serializeXml(parseXml(xml, 'domain'))
const invalid = (error: unknown) => isFailure(error, 'VM_CONFIGURATION_INVALID')
/** Lines that are not the same in both. */
const changedLines = (before: string, after: string) => {
  const [old, now] = [normal(before).split('\n'), after.split('\n')]
  return { gone: old.filter((line) => !now.includes(line)), come: now.filter((line) => !old.includes(line)) }
}

describe('editing a domain', () => {
  it('leaves comments, namespaces, padding and foreign elements as they are', () => {
    const after = renameDomain(richDomain, 'a <new> name')
    assert.deepEqual(changedLines(richDomain, after), {
      gone: ['  <name>shop &amp; mail</name>'],
      come: ['  <name>a &lt;new&gt; name</name>'],
    })
    assert.equal(readDomain(after).name, 'a <new> name')
    for (const kept of ['<!-- kept by hand', '<title>  padded  </title>', 'id="02"', '<qemu:arg value="-device"/>']) {
      assert.ok(after.includes(kept), kept)
    }
  })

  it('keeps any name whole', () => {
    const names = fc.string({ unit: 'grapheme-ascii', minLength: 1 }).filter((name) => name.trim() === name)
    fc.assert(fc.property(names, (name) => assert.equal(readDomain(renameDomain(liveDomain, name)).name, name)))
  })

  it('gives a new UUID and another place for the firmware variables', () => {
    const uuid = '99999999-8888-7777-6666-555555555555'
    const after = setNvramPath(setDomainUuid(richDomain, uuid), '/new/VARS.fd')
    const vm = readDomain(after)
    assert.deepEqual([vm.uuid, vm.nvram], [uuid, '/new/VARS.fd'])
    assert.equal(changedLines(richDomain, after).come.length, 2)
    assert.equal(setNvramPath(liveDomain, '/x'), normal(liveDomain))
  })

  it('sets MAC addresses by position, or lets libvirt make them', () => {
    const macs = ['52:54:00:00:00:0a', undefined, '52:54:00:00:00:0c']
    assert.deepEqual(
      readDomain(setMacs(richDomain, macs)).nics.map((nic) => nic.mac),
      ['52:54:00:00:00:0a', '', '52:54:00:00:00:0c'],
    )
    assert.ok(!setMacs(richDomain, []).includes('<mac'))
  })

  it('plugs a NIC in elsewhere; it keeps its MAC, model and address', () => {
    const toBridge = connectNic(richDomain, '52:54:00:AA:BB:01', { bridge: 'br7' })
    assert.deepEqual(readDomain(toBridge).nics[0], { mac: '52:54:00:aa:bb:01', type: 'bridge', source: 'br7' })
    assert.ok(!toBridge.includes('portgroup'))
    const toNetwork = connectNic(richDomain, '52:54:00:aa:bb:02', { network: 'apart' })
    assert.deepEqual(readDomain(toNetwork).nics[1], { mac: '52:54:00:aa:bb:02', type: 'network', source: 'apart' })
    assert.ok(!toNetwork.includes('openvswitch') && toNetwork.includes('e1000'))
    const fromUser = connectNic(richDomain, '52:54:00:aa:bb:03', { network: 'apart' })
    assert.deepEqual(readDomain(fromUser).nics[2], { mac: '52:54:00:aa:bb:03', type: 'network', source: 'apart' })
    assert.throws(() => connectNic(richDomain, '00:00:00:00:00:00', { network: 'x' }), invalid)
  })

  it('puts any disk on a file, and touches no other', () => {
    for (const target of ['vda', 'sda', 'sdb', 'sdc', 'sde', 'sdf', 'sdg']) {
      const image = { format: 'qcow2', storage: { file: '/new/<place> & disk' } } as const
      const after = setDiskImage(richDomain, target, image)
      const [before, now] = [readDomain(richDomain).disks, readDomain(after).disks]
      for (const [index, disk] of now.entries()) {
        if (disk.target !== target) assert.deepEqual(disk, before[index])
        else assert.deepEqual([disk.image, disk.device, disk.sourceType], [image, 'disk', 'file'])
      }
      assert.ok(!after.includes('<backingStore'))
    }
    assert.throws(() => setDiskImage(richDomain, 'sdz', { format: 'raw', storage: { file: '/x' } }), invalid)
  })

  it('drops the chain and the job of a disk that gets another file', () => {
    const after = setDiskImage(liveDomain, 'sda', { format: 'raw', storage: { file: '/x' } })
    const [disk] = readDomain(after).disks
    assert.deepEqual([disk?.backing, disk?.mirror, disk?.location], [[], undefined, '/x'])
  })

  it('writes images of every kind so that they are read the same', () => {
    const monitors = [{ host: 'm', port: 1 }]
    for (const storage of [
      { file: '/a' },
      { blockDevice: '/dev/x' },
      { nbd: { socketPath: '/s', exportName: 'e' } },
      { nbd: { host: 'h', port: 7, exportName: '' } },
      { rbd: { pool: 'p', image: 'i', monitors, configFile: '/c' } },
    ]) {
      const image = { format: 'raw', storage } as const
      assert.deepEqual(readDomain(setDiskImage(liveDomain, 'sda', image)).disks[0]?.image, image)
    }
  })
})

describe('taking the top image off a disk', () => {
  const base = { format: 'qcow2', storage: { file: '/told' } } as const

  it('puts what lies beneath in its place, word for word, with all that is deeper', () => {
    const [disk] = readDomain(dropTopImage(liveDomain, 'sda', base)).disks
    assert.deepEqual(disk?.image, { format: 'qcow2', storage: { file: '/vm/web/root.qcow2' } })
    assert.deepEqual(disk?.backing, ['nbd:template'])
    assert.equal(disk?.mirror, undefined)
    const twice = dropTopImage(dropTopImage(liveDomain, 'sda', base), 'sda', base)
    assert.equal(readDomain(twice).disks[0]?.location, 'nbd:template')
    assert.ok(twice.includes('<host name="images" port="10810"/>'))
  })

  it('uses the image that is told when the XML leaves the chain to libvirt', () => {
    const after = dropTopImage(forgetChain(liveDomain, 'sda'), 'sda', base)
    assert.deepEqual(readDomain(after).disks[0]?.image, base)
  })
})

describe('dropping what only a running VM has', () => {
  it('leaves what can be defined again', () => {
    const after = dropLiveState(liveDomain)
    for (const gone of [
      ' id="7"',
      'scsi0-0-0-0',
      'index=',
      '<backingStore',
      '<mirror',
      'vnet3',
      'portid',
      'seclabel',
    ]) {
      assert.ok(!after.includes(gone), gone)
    }
    for (const kept of ['ua-mine', '/vm/web/root.overlay', '52:54:00:00:00:01']) assert.ok(after.includes(kept), kept)
    assert.equal(readDomain(after).agent, 'disconnected')
  })

  it('changes nothing of a configuration', () => {
    assert.equal(dropLiveState(richDomain), normal(richDomain))
  })
})
