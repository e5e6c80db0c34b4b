/**
 * What is left of a configuration that runs beside its original: nothing that is the host's, nothing that leads out.
 */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { richDomain } from './domain-fixtures.ts'
import { readDomain } from './domain-xml.ts'
import { isolateDomain } from './isolate-domain.ts'

const network = 'umbra-check-0badcafe'
const isolation = { network, keptDisks: ['vda'] }
const domain = (inside: string, around = '') =>
  `<domain type='kvm'><name>a</name><memory unit='GiB'>8</memory>${around}<devices>${inside}</devices></domain>`
const devicesOf = (xml: string) => xml.replace(/^[\s\S]*<devices>|<\/devices>[\s\S]*$/g, '')

describe('an isolated domain', () => {
  it('keeps the disks that it is given, and none besides; no device of the host; no arguments for QEMU', () => {
    const xml = isolateDomain(richDomain, isolation)
    assert.deepEqual(
      readDomain(xml).disks.map(({ target }) => target),
      ['vda'],
    )
    assert.doesNotMatch(xml, /hostdev|qemu:|<app:|metadata/)
    assert.match(xml, /<tpm model="tpm-crb">/)
    assert.equal(readDomain(xml).agent, 'disconnected')
  })

  it('has every interface on the one network, of whatever kind it was, with its MAC and place', () => {
    const kinds = [
      `<interface type='direct' trustGuestRxFilters='yes'><mac address='52:54:00:00:00:01'/><source dev='eth0' mode='bridge'/>` +
        `<filterref filter='clean'/><bandwidth><inbound average='1'/></bandwidth><model type='e1000'/></interface>`,
      `<interface type='hostdev' managed='yes'><mac address='52:54:00:00:00:02'/><source><address type='pci' domain='0'` +
        ` bus='7' slot='0' function='0'/></source><vlan><tag id='4'/></vlan><address type='pci' bus='0x05'/></interface>`,
      `<interface type='user'><mac address='52:54:00:00:00:03'/><portForward proto='tcp'><range start='22'/></portForward></interface>`,
      `<interface type='vhostuser'><mac address='52:54:00:00:00:04'/><source type='unix' path='/run/ovs' mode='server'/></interface>`,
      `<interface type='ethernet'><mac address='52:54:00:00:00:05'/><script path='/etc/up'/><target dev='tap0'/></interface>`,
      `<interface type='null'><mac address='52:54:00:00:00:06'/></interface>`,
    ]
    const xml = isolateDomain(domain(kinds.join('')), isolation)
    const { nics } = readDomain(xml)
    assert.deepEqual(
      nics.map(({ mac, type, source }) => [mac.slice(-1), type, source]),
      ['1', '2', '3', '4', '5', '6'].map((last) => [last, 'network', network]),
    )
    assert.doesNotMatch(xml, /eth0|filter|bandwidth|vlan|bus="7"|portForward|ovs|script|tap0|managed|trustGuest/)
    assert.match(xml, /<model type="e1000"\/>/)
    assert.match(xml, /<address type="pci" bus="0x05"\/>/)
  })

  it('writes to no file, socket or terminal of the original, and has the agent on a socket of its own', () => {
    const devices =
      `<serial type='file'><source path='/var/log/a.log' append='on'/><target port='0'/><log file='/x'/></serial>` +
      `<console type='tcp'><source mode='bind' host='0.0.0.0' service='2222'/><protocol type='telnet'/><target type='serial'/></console>` +
      `<parallel type='dev'><source path='/dev/lp0'/><target port='0'/></parallel>` +
      `<channel type='unix'><source mode='bind' path='/run/a'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>` +
      `<channel type='unix'><source mode='bind' path='/run/b'/><target type='virtio' name='other'/></channel>` +
      `<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>`
    const left = devicesOf(isolateDomain(domain(devices), isolation))
    assert.equal(
      left,
      `<serial type="null"><target port="0"/></serial><console type="null"><target type="serial"/></console>` +
        `<parallel type="null"><target port="0"/></parallel>` +
        `<channel type="unix"><target type="virtio" name="org.qemu.guest_agent.0"/></channel>`,
    )
  })

  it('shares no directory, memory, lease, display or input with anybody', () => {
    const devices =
      `<filesystem type='mount'><source dir='/srv'/><target dir='srv'/></filesystem><shmem name='s'/><vsock model='virtio'><cid address='5'/></vsock>` +
      `<lease><lockspace>a</lockspace></lease><input type='evdev'><source dev='/dev/input/event1'/></input>` +
      `<memory model='nvdimm'><source><path>/srv/nvdimm</path></source></memory><redirdev bus='usb' type='tcp'/>` +
      `<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>` +
      `<graphics type='sdl' display=':0'/>` +
      `<graphics type='vnc' port='5900' passwd='secret' listen='0.0.0.0'><listen type='address' address='0.0.0.0'/></graphics>`
    const left = devicesOf(isolateDomain(domain(devices), isolation))
    assert.equal(left, `<graphics type="vnc" autoport="no"><listen type="none"/></graphics>`)
  })

  it('leaves out what stands in another namespace, however that is written', () => {
    const around = `<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg value='-netdev'/></commandline>`
    assert.doesNotMatch(isolateDomain(domain('', around), isolation), /netdev/)
  })

  it('has no more memory than it may, and never more than it had', () => {
    const numa = `<currentMemory unit='GiB'>8</currentMemory><cpu><numa><cell id='0' memory='8'/></numa></cpu>`
    const capped = isolateDomain(domain('', numa), { ...isolation, memoryKiB: 524_288 })
    assert.match(capped, /<memory unit="KiB">524288<\/memory>/)
    assert.match(capped, /<currentMemory unit="KiB">524288<\/currentMemory>/)
    assert.doesNotMatch(capped, /numa/)
    const large = isolateDomain(domain('', numa), { ...isolation, memoryKiB: 2 ** 40 })
    assert.match(large, /<memory unit="GiB">8<\/memory>.*numa/)
  })
})
