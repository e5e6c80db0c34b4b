/**
 * Where a copy is attached, and how its end is made sure of; test/contract/hypervisor-recovery.contract.ts has the rest.
 */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { DomainCalls } from './domain-calls.ts'
import { readDomain } from './domain-xml.ts'
import { attachedCopies, detachCopy, freeScsiPlace, freeTarget, virtioScsiControllers } from './hot-add.ts'
import { isFailure } from './libvirt-errors.ts'

const domain = (...devices: string[]) =>
  `<domain><name>web</name><uuid>1</uuid><devices>${devices.join('')}</devices></domain>`
const controller = (index: number, model: string) => `<controller type='scsi' index='${index}' model='${model}'/>`
const at = (unit: number, where = "controller='1' bus='0' target='0'") =>
  `<address type='drive' ${where} unit='${unit}'/>`
const disk = (target: string, rest = '') =>
  `<disk type='file'><driver type='qcow2'/><source file='/${target}'/><target dev='${target}' bus='scsi'/>${rest}</disk>`
const copy = disk('sdz', `<serial>umbra-0badcafe-sda</serial>${at(7)}`)

describe('the place of a copy', () => {
  it('is on a virtio-scsi controller, whatever its index', () => {
    assert.deepEqual(virtioScsiControllers(domain(controller(0, 'lsilogic'), controller(1, 'virtio-scsi'))), [1])
    assert.deepEqual(virtioScsiControllers(domain(controller(0, 'virtio-non-transitional'))), [0])
    assert.deepEqual(virtioScsiControllers(domain(`<controller type='virtio-serial' index='0'/>`)), [])
    assert.equal(freeScsiPlace(domain(controller(0, 'lsilogic'))), undefined)
  })

  it('is the first that neither a disk nor a passed-through device has', () => {
    const passed = `<hostdev mode='subsystem' type='scsi'>${at(1)}</hostdev>`
    const elsewhere = disk('sdb', at(2, "controller='1' bus='0' target='3'"))
    const xml = domain(controller(1, 'virtio-scsi'), disk('sda', at(0)), passed, elsewhere)
    assert.deepEqual(freeScsiPlace(xml), { controller: 1, unit: 2 })
  })

  it('has a name that no disk has', () => {
    assert.equal(freeTarget(['sda', 'sdz', 'vda']), 'sdy')
  })
})

describe('detaching', () => {
  /** `looks`: the live XML of each look, the last one for ever. */
  function calls(looks: readonly string[], refusal?: Error) {
    const asked: string[] = []
    let look = 0
    const domains = {
      nameOf: () => 'web',
      state: async () => ({ state: 1, reason: 0 }),
      hasManagedSave: async () => false,
      xml: async () => looks[Math.min(look++, looks.length - 1)],
      blockJob: async () => undefined,
      detachDevice: async (_: string, xml: string) => {
        asked.push(xml)
        if (refusal !== undefined) throw refusal
      },
    }
    return { asked, domains: domains as unknown as DomainCalls }
  }

  it('names the copy as it is attached, and believes only the XML', async () => {
    const { asked, domains } = calls([domain(copy), domain(copy), domain()])
    await detachCopy(domains, 'web', 'umbra-0badcafe-sda')
    assert.equal(asked.length, 2)
    assert.match(
      asked[0] ?? '',
      /<source file='\/sdz'\/><target dev='sdz' bus='scsi'\/><serial>umbra-0badcafe-sda<.*unit='7'/,
    )
  })

  it('forgives a refusal of a device that has gone', async () => {
    await detachCopy(
      calls([domain(copy), domain()], new Error('device not found')).domains,
      'web',
      'umbra-0badcafe-sda',
    )
  })

  it('gives up in time, and says that the copy is still attached', async () => {
    const { domains } = calls([domain(copy)], new Error('it is about to go'))
    await assert.rejects(detachCopy(domains, 'web', 'umbra-0badcafe-sda', 120), (error: Error) => {
      assert.match(error.message, /umbra-0badcafe-sda is still attached.*about to go/)
      return isFailure(error, 'HYPERVISOR_REFUSED')
    })
  })

  it('take no disk of the VM for a copy because of how its owner named it', () => {
    const own = disk('sda', `<serial>umbra-demo-sda</serial>${at(0)}`)
    assert.deepEqual(attachedCopies(readDomain(domain(own)).disks), [])
    assert.deepEqual(attachedCopies(readDomain(domain(own, copy)).disks), ['umbra-0badcafe-sda'])
  })
})
