import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { liveDomain, richDomain } from './domain-fixtures.ts'
import { readDomain } from './domain-xml.ts'
import { targetOf } from './guest-disks.ts'
import { isFailure } from './libvirt-errors.ts'

const invalid = (error: unknown) => isFailure(error, 'VM_CONFIGURATION_INVALID')
const disk = (xml: string, target: string) => {
  const found = readDomain(xml).disks.find((each) => each.target === target)
  assert.ok(found, target)
  return found
}

describe('reading a domain', () => {
  it('tells name, UUID, firmware variables, TPM, agent and NICs', () => {
    const vm = readDomain(richDomain)
    assert.equal(vm.name, 'shop & mail')
    assert.equal(vm.uuid, '6ba7b810-9dad-11d1-80b4-00c04fd430c8')
    assert.equal(vm.nvram, '/var/lib/libvirt/qemu/nvram/shop_VARS.fd')
    assert.equal(vm.hasEmulatedTpm, true)
    assert.equal(vm.agent, 'disconnected')
    assert.deepEqual(vm.nics, [
      { mac: '52:54:00:aa:bb:01', type: 'network', source: 'default' },
      { mac: '52:54:00:aa:bb:02', type: 'bridge', source: 'br0' },
      { mac: '52:54:00:aa:bb:03', type: 'user' },
    ])
  })

  it('tells how to open the images that can be opened', () => {
    const images = Object.fromEntries(readDomain(richDomain).disks.map(({ target, image }) => [target, image]))
    assert.deepEqual(images.vda, { format: 'qcow2', storage: { file: '/vm/shop/root.qcow2' } })
    assert.deepEqual(images.sda, { format: 'raw', storage: { blockDevice: '/dev/disk/by-id/wwn-0x5000' } })
    assert.deepEqual(images.sdb, {
      format: 'raw',
      storage: { nbd: { socketPath: '/run/nbd.sock', exportName: 'data A' } },
    })
    assert.deepEqual(images.sdc, {
      format: 'raw',
      storage: {
        rbd: {
          pool: 'pool',
          image: 'images/mail',
          monitors: [
            { host: 'mon1', port: 6789 },
            { host: 'mon2', port: 6789 },
          ],
          user: 'umbra',
          configFile: '/etc/ceph/ceph.conf',
        },
      },
    })
    for (const target of ['sdd', 'sde', 'sdf', 'sdh', 'hostdev1']) assert.equal(images[target], undefined, target)
  })

  it('never guesses a format: without one it is raw, as for libvirt', () => {
    assert.equal(disk(richDomain, 'sdg').image?.format, 'raw')
  })

  it('tells what a disk is: device, sharing, source', () => {
    const lun = disk(richDomain, 'sda')
    assert.deepEqual([lun.device, lun.shareable, lun.sourceType, lun.serial], ['lun', true, 'block', undefined])
    const rbd = disk(richDomain, 'sdc')
    assert.deepEqual([rbd.transient, rbd.protocol, rbd.location], [true, 'rbd', 'rbd:pool/images/mail'])
    const cdrom = disk(richDomain, 'sdh')
    assert.deepEqual([cdrom.device, cdrom.readOnly, cdrom.location], ['cdrom', true, ''])
    assert.equal(disk(richDomain, 'sdf').location, 'tank/v1')
  })

  it('tells host devices that are or may be disks, numbered as they stand', () => {
    const passed = readDomain(richDomain).disks.filter((each) => each.passThrough)
    assert.deepEqual(
      passed.map(({ target, location, hostPci }) => ({ target, location, hostPci })),
      [
        { target: 'hostdev1', location: 'scsi:scsi_host0', hostPci: undefined },
        { target: 'hostdev2', location: 'pci:0000:3b:00.1', hostPci: '0000:3b:00.1' },
      ],
    )
  })

  it('of a running VM tells the chain, the block job and the agent', () => {
    const vm = readDomain(liveDomain)
    const [root] = vm.disks
    assert.equal(vm.agent, 'connected')
    assert.deepEqual(root?.backing, ['/vm/web/root.qcow2', 'nbd:template'])
    assert.deepEqual(root?.chain[1]?.image?.storage, {
      nbd: { host: 'images', port: 10810, exportName: 'template' },
    })
    assert.deepEqual(root?.mirror, { job: 'active-commit', ready: true })
  })
})

describe('hostile XML', () => {
  it('is refused: document types, entities, other documents, no documents, too much, too deep', () => {
    const entity = '<!DOCTYPE domain [<!ENTITY a "b">]><domain><name>&a;</name></domain>'
    const deep = `<domain>${'<a>'.repeat(100_000)}${'</a>'.repeat(100_000)}</domain>`
    const long = `<domain><name>${'x'.repeat(5 * 1024 * 1024)}</name></domain>`
    for (const xml of [
      entity,
      deep,
      long,
      '',
      'text',
      '<network/>',
      '<domain>',
      '<domain><name>half',
      '<domain/><x/>',
    ]) {
      assert.throws(() => readDomain(xml), invalid, xml.slice(0, 80))
    }
  })

  it('never brings anything but a coded failure', () => {
    const piece = fc.constantFrom(
      ...[
        '<domain>',
        '</domain>',
        '<devices>',
        '</devices>',
        '<disk',
        " type='file'",
        '>',
        '</disk>',
        '/>',
        '&',
        '&amp;',
      ],
      ...[
        "<target dev='sda'/>",
        '<source',
        " file='/x'",
        '<backingStore',
        '<!--',
        '-->',
        '<![CDATA[',
        ']]>',
        '\0',
        '<?x',
      ],
    )
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 30 }), (pieces) => {
        try {
          readDomain(`<domain>${pieces.join('')}</domain>`)
        } catch (error) {
          assert.ok(invalid(error), String(error))
        }
      }),
      { numRuns: 300 },
    )
  })
})

describe('a disk as the guest sees it', () => {
  const vm = readDomain(richDomain)
  const seen = { 'bus-type': 'scsi', bus: 0, target: 0, unit: 3 }
  const pci = (bus: number) => ({ domain: 0, bus, slot: 0, function: 0 })

  it('is found by its serial', () => {
    assert.equal(targetOf({ ...seen, 'bus-type': 'virtio', serial: 'shop-vda' }, vm), 'vda')
    assert.equal(targetOf({ ...seen, serial: '0QEMU_QEMU_HARDDISK_shop-vda' }, vm), 'vda')
  })

  it('is found by its address, with the controller telling equal ones apart', () => {
    assert.equal(targetOf({ ...seen, 'pci-controller': pci(2) }, vm), 'sda')
    assert.equal(targetOf({ ...seen, 'pci-controller': pci(3) }, vm), 'sdb')
    assert.equal(targetOf({ ...seen, 'bus-type': 'virtio', 'pci-controller': pci(4) }, vm), 'vda')
  })

  it('is not found rather than guessed', () => {
    assert.equal(targetOf(seen, vm), undefined)
    assert.equal(targetOf({ ...seen, unit: 9, serial: 'another' }, vm), undefined)
    assert.equal(targetOf({ ...seen, 'bus-type': 'usb', 'pci-controller': pci(9) }, vm), undefined)
  })
})
