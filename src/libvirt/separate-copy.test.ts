/**
 * Nothing of a copy points at its original: a domain that has everything which could, and what is left of it (R2).
 */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { domainXmlEditor } from './configuration-editor.ts'
import { liveDomain } from './domain-fixtures.ts'
import { readNeeds } from './domain-needs.ts'
import { readDomain } from './domain-xml.ts'
import { separateFromOriginal } from './separate-copy.ts'

const uuid = '11111111-2222-4333-8444-555555555555'
const copyUuid = '99999999-8888-4777-8666-555555555555'
const original = { name: 'web01', uuid }

/** Every path of the original's has its name in it; what is only read has not. */
const everything = `<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web01</name>
  <uuid>${uuid}</uuid>
  <genid>aaaaaaaa-0000-4000-8000-000000000001</genid>
  <metadata><app:origin xmlns:app="http://example.org/app/1.0">made from ${uuid}</app:origin></metadata>
  <sysinfo type='smbios'>
    <system><entry name='uuid'>${uuid.toUpperCase()}</entry><entry name='serial'>ds=nocloud</entry></system>
  </sysinfo>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/nvram/web01_VARS.fd</nvram>
    <kernel>/boot/vmlinuz</kernel>
    <initrd>/boot/initrd</initrd>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/images/web01.qcow2'/>
      <backingStore type='file'><format type='raw'/><source file='/images/web01-base.raw'/></backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/><source file='/iso/install.iso'/><target dev='sda' bus='sata'/><readonly/>
    </disk>
    <disk type='file' device='floppy'>
      <driver name='qemu' type='raw'/><source file='/images/web01.floppy'/><target dev='fda' bus='fdc'/>
    </disk>
    <filesystem type='mount'><source dir='/srv/web01'/><target dir='share'/></filesystem>
    <filesystem type='mount'><source dir='/srv/everybody'/><target dir='all'/><readonly/></filesystem>
    <interface type='network'>
      <mac address='52:54:00:00:00:01'/><source network='default'/><target dev='web01-tap'/>
    </interface>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:02'/><source bridge='br0'/>
      <virtualport type='openvswitch'><parameters interfaceid='${uuid}'/></virtualport>
    </interface>
    <interface type='user'>
      <mac address='52:54:00:00:00:03'/><backend type='passt' logFile='/var/log/web01-passt.log'/>
      <portForward proto='tcp'><range start='2222' to='22'/></portForward>
    </interface>
    <serial type='file'><source path='/var/log/web01.console' append='on'/><target port='0'/></serial>
    <serial type='tcp'>
      <source mode='bind' host='127.0.0.1' service='4555'/><protocol type='telnet'/><target port='1'/>
    </serial>
    <console type='pty'><log file='/var/log/web01.log' append='on'/><target type='serial' port='2'/></console>
    <parallel type='dev'><source path='/dev/parport-web01'/><target port='0'/></parallel>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <channel type='unix'>
      <source mode='bind' path='/run/web01/agent.sock'/><target type='virtio' name='org.example.agent'/>
    </channel>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <redirdev bus='usb' type='tcp'><source mode='connect' host='web01-usb' service='4000'/></redirdev>
    <graphics type='vnc' port='5901' autoport='no'>
      <listen type='socket' socket='/run/web01/vnc.sock'/>
    </graphics>
    <audio id='1' type='file' path='/var/log/web01.wav'/>
    <tpm model='tpm-crb'>
      <backend type='emulator' version='2.0'><source type='dir' path='/tpm/web01'/></backend>
    </tpm>
    <hostdev mode='subsystem' type='pci'><source><address domain='0' bus='1' slot='0' function='0'/></source></hostdev>
    <hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/><product id='0x2'/></source></hostdev>
    <shmem name='web01-shared'><model type='ivshmem-plain'/></shmem>
    <memory model='nvdimm'><source><path>/images/web01.nvdimm</path></source><target><size>1</size></target></memory>
    <vsock model='virtio'><cid auto='no' address='3'/></vsock>
    <lease><lockspace>area</lockspace><key>web01</key><target path='/leases/web01'/></lease>
    <pstore backend='acpi-erst'><path>/pstore/web01</path><size unit='KiB'>8</size></pstore>
    <input type='evdev'><source dev='/dev/input/web01'/></input>
  </devices>
  <qemu:commandline><qemu:arg value='-chardev'/><qemu:arg value='file,id=x,path=/tmp/x'/></qemu:commandline>
</domain>
`

/** What is only read, by whomever. */
const shared = ['/usr/', '/boot/', '/iso/', '/srv/everybody']

function copied(): string {
  return domainXmlEditor.edit(everything, {
    name: 'web02',
    uuid: copyUuid,
    separateFrom: original,
    disks: { vda: { file: '/images/web02.raw', format: 'raw' } },
    nics: Object.fromEntries([1, 2, 3].map((n) => [`52:54:00:00:00:0${n}`, { mac: `52:54:00:ff:00:0${n}` }])),
    nvram: '/nvram/web02_VARS.fd',
    generation: copyUuid,
  })
}

describe('a copy', () => {
  it('has nothing of its original but what is only read, and what others keep in its metadata', () => {
    const xml = copied().replace(/<metadata>[\s\S]*<\/metadata>/, '')
    assert.doesNotMatch(xml, /web01/)
    assert.ok(!xml.toLowerCase().includes(uuid))
    assert.doesNotMatch(xml, /52:54:00:00:00:0|5901|4555|2222|aaaaaaaa-0000/)
    const paths = [...xml.matchAll(/(?<=['">])\/[^'"<>]+/g)].map(([path]) => path)
    const own = paths.filter((path) => !shared.some((one) => path.startsWith(one)))
    assert.deepEqual(own, ['/nvram/web02_VARS.fd', '/images/web02.raw'])
  })

  it('has its own identity everywhere that a guest looks', () => {
    const xml = copied()
    assert.equal(readDomain(xml).uuid, copyUuid)
    assert.match(xml, new RegExp(`<entry name=['"]uuid['"]>${copyUuid}<`))
    assert.match(xml, new RegExp(`<genid>${copyUuid}<`))
    assert.match(xml, /ds=nocloud/, 'what says nothing of the original stays')
    assert.match(xml, new RegExp(`made from ${uuid}`), 'metadata belongs to others')
  })

  it('keeps its hardware: every serial line, channel, drive and interface, the TPM, the display', () => {
    const count = (xml: string, name: string) => xml.match(new RegExp(`<${name}[ >]`, 'g'))?.length ?? 0
    for (const name of ['serial', 'console', 'parallel', 'channel', 'interface', 'disk', 'tpm', 'graphics', 'vsock'])
      assert.equal(count(copied(), name), count(everything, name), name)
    for (const name of ['hostdev', 'shmem', 'redirdev', 'memory']) assert.equal(count(copied(), name), 0, name)
    assert.equal(count(copied(), 'filesystem'), 1)
  })

  it('is told beforehand, one sentence for each', () => {
    const told = domainXmlEditor.ties(everything, original)
    assert.deepEqual(told, separateFromOriginal(everything, original, copyUuid).notes)
    for (const word of [
      '/srv/web01',
      'serial 0',
      '/var/log/web01.console',
      'org.example.agent',
      'pci',
      'usb',
      'web01-shared',
      'web01.nvdimm',
      'vsock',
      'floppy',
      'display',
      '-chardev',
      'system information',
      '/var/log/web01.log',
      '.wav',
    ])
      assert.ok(
        told.some((line) => line.includes(word)),
        word,
      )
  })

  it('of an ordinary VM has nothing to tell', () => {
    assert.deepEqual(domainXmlEditor.ties(liveDomain.replace(/<source mode='bind'[^>]*>/, ''), original), [])
  })
})

describe('what a domain needs of its host', () => {
  it('is read from it', () => {
    assert.deepEqual(readNeeds(everything), {
      kind: 'kvm',
      architecture: 'x86_64',
      machine: 'pc-q35-7.2',
      emulator: '/usr/bin/qemu-system-x86_64',
      firmware: { kind: 'efi', path: '/usr/share/OVMF/OVMF_CODE.fd', secure: false },
      tpm: { backend: 'emulator' },
      bootFiles: ['/boot/vmlinuz', '/boot/initrd'],
      media: [
        { target: 'sda', path: '/iso/install.iso' },
        { target: 'fda', path: '/images/web01.floppy' },
      ],
    })
  })

  it('names a processor only when its model is spelled out', () => {
    const needs = (cpu: string) => readNeeds(everything.replace('<devices>', `${cpu}<devices>`)).cpu
    assert.equal(needs("<cpu mode='host-passthrough'/>"), undefined)
    assert.match(needs("<cpu match='exact'><model>Haswell</model></cpu>") ?? '', /^<cpu match="exact"><model>Haswell/)
  })

  it('is rewritten only where it is named', () => {
    const xml = domainXmlEditor.edit(everything, {
      emulator: '/opt/q',
      machine: 'q35',
      firmware: '/f.fd',
      eject: ['sda'],
    })
    const now = readNeeds(xml)
    assert.deepEqual([now.emulator, now.machine, now.firmware?.path], ['/opt/q', 'q35', '/f.fd'])
    assert.deepEqual(
      now.media.map(({ target }) => target),
      ['fda'],
    )
    assert.match(xml, /web01.console/)
  })
})
