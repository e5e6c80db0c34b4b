/**
 * Restores to other places, formats and hosts, with real images and a real libvirt: converted disks are the same bytes and
 * boot, a copy has nothing of its original, single disks, firmware variables, and what this host can not run.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdir, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { createDisks } from '../../sample-guest/sample-guest.ts'
import { domainXmlEditor } from '../../src/libvirt/configuration-editor.ts'
import { nearestMachine } from '../../src/vm/restore-fit.ts'
import { rejectsWith } from '../contract/hypervisor-scene.ts'
import {
  acknowledged,
  agentAnswers,
  beginStage,
  boot,
  defineVm,
  type Stage,
  type StageVm,
  skipLive,
  verdictAtBoot,
  virsh,
  vmDirectory,
} from './stage.ts'
import { backUp, nothingIsLeft, restoreVm } from './stage-session.ts'

const compare = (...args: string[]) => execFileSync('qemu-img', ['compare', '-q', ...args], { stdio: 'inherit' })

describe('restores to other places of real VMs', { skip: skipLive, timeout: 600_000 }, () => {
  let stage: Stage
  let shop: StageVm
  let point: string
  let sure: number
  let dataB: string
  let link: string
  let real: string
  before(async () => {
    stage = await beginStage('restore-places', { mounts: { clones: { type: 'xfs', sizeBytes: 512 * 1024 * 1024 } } })
    const disks = await createDisks(stage.images, vmDirectory(stage, 'shop'), 'raw')
    dataB = join(stage.directory, 'clones', 'shop-b.raw')
    const [a, b, c] = disks
    assert.ok(a !== undefined && b !== undefined && c !== undefined)
    execFileSync('cp', ['--sparse=always', c.path, dataB])
    await rm(c.path)
    const log = join(stage.directory, 'shop-agent.sock')
    const extraDevices = `<channel type='unix'><source mode='bind' path='${log}'/><target type='virtio' name='org.example.0'/></channel>`
    shop = await boot(stage, await defineVm(stage, 'shop', [a, b, { ...c, path: dataB }], { extraDevices }))
    sure = await acknowledged(stage, shop)
    point = (await backUp(stage, ['shop'], { policy: { require: 'filesystem' } })).recoveryPoint
    await stage.hypervisor.turnOff(shop.uuid)
    real = join(stage.directory, 'copies')
    link = join(stage.directory, 'link')
    await mkdir(real)
    await symlink(real, link)
  })
  after(async () => {
    await stage?.[Symbol.asyncDispose]()
  })

  it('converts disks to what is wanted: the same bytes, in the directory that the link leads to, and the VM boots', async () => {
    const raw = await restoreVm(stage, point, 'shop', { as: 'plain', to: real, format: 'raw' })
    const made = await restoreVm(stage, point, 'shop', {
      as: 'converted',
      to: link,
      format: 'qcow2',
      disks: { sdc: { format: 'vpc' } },
    })
    assert.match(made.vms[0]?.warnings.join() ?? '', /link leads to .*copies: the files are written there/)
    const formats = { sda: ['qcow2', 'qcow2'], sdb: ['qcow2', 'qcow2'], sdc: ['vhd', 'vpc'] }
    const plain = raw.vms[0]?.files ?? []
    for (const [index, [target, [suffix, format]]] of Object.entries(formats).entries()) {
      const path = join(real, `converted-${target}.${suffix}`)
      assert.equal(made.vms[0]?.files[index], path)
      compare('-f', 'raw', '-F', format ?? '', plain[index] ?? '', path)
    }
    await stage.hypervisor.start((await stage.hypervisor.vm('converted')).uuid)
    const copy = await stage.hypervisor.vm('converted')
    await agentAnswers(stage, copy)
    const verdict = await verdictAtBoot(stage, copy)
    assert.ok(verdict.ok && verdict.quiesced && (verdict.logs[1]?.last ?? 0) >= sure, JSON.stringify(verdict))
  })

  it('gives a copy nothing of its original', async () => {
    const xml = virsh(stage, 'dumpxml', '--inactive', 'converted')
    assert.doesNotMatch(xml, new RegExp(`${shop.uuid}|${shop.directory}|shop-agent|shop\\.console`))
    assert.match(virsh(stage, 'dumpxml', 'converted'), /channel\/target\/domain-[^']*\/org\.example\.0/)
    await stage.hypervisor.turnOff((await stage.hypervisor.vm('converted')).uuid)
  })

  it('replaces one disk of a VM that is there: what is different, and nothing else of it', async (t) => {
    const [configuration, root] = [virsh(stage, 'dumpxml', '--inactive', 'shop'), join(shop.directory, 'root.raw')]
    const [, , plain] = (await stage.hypervisor.vm('plain')).disks
    const was = await readFile(root)
    await writeFile(dataB, 'damaged', { flag: 'r+' })
    const told: string[] = []
    await restoreVm(stage, point, 'shop', { only: ['sdc'] }, { onEvent: ({ detail = '' }) => void told.push(detail) })
    compare('-f', 'raw', '-F', 'raw', plain?.location ?? '', dataB)
    const [, written, all] = /: (\d+) of (\d+) bytes were different/.exec(told.join()) ?? []
    t.diagnostic(`${written} of ${all} bytes written`)
    assert.ok(Number(written) > 0 && Number(written) < Number(all) / 2, 'on a clone of the present file')
    assert.deepEqual(await readdir(join(stage.directory, 'clones')), ['shop-b.raw'])
    assert.ok(was.equals(await readFile(root)))
    assert.equal(virsh(stage, 'dumpxml', '--inactive', 'shop'), configuration)
    await nothingIsLeft(stage, [shop])
  })

  it('refuses what this host does not run, before anything is touched', async () => {
    const vhdx = await rejectsWith(
      restoreVm(stage, point, 'shop', { as: 'x', to: real, format: 'vhdx' }),
      'VSS_WRITER_VETO',
    )
    assert.match(vhdx.message, /no VM runs from vhdx here/)
    const { configuration } = await stage.hypervisor.vm('converted')
    const strange = configuration.replaceAll(/type=(['"])vpc\1/g, "type='vhdx'")
    await assert.rejects(stage.hypervisor.define(strange), 'libvirt itself does not know it')
    const needs = domainXmlEditor.needs(configuration)
    const facts = await stage.hypervisor.hostFacts({ ...needs, emulator: '/nowhere/qemu', machine: 'pc-q35-2.0' })
    assert.equal(facts.emulator, needs.emulator)
    assert.ok(!facts.machines.includes('pc-q35-2.0'))
    const nearest = nearestMachine('pc-q35-2.0', facts.machines) ?? ''
    assert.match(nearest, /^pc-q35-\d/)
    const moved = domainXmlEditor.edit(configuration, { emulator: facts.emulator ?? '', machine: nearest })
    await stage.hypervisor.define(moved)
    assert.equal(domainXmlEditor.needs((await stage.hypervisor.vm('converted')).configuration).machine, nearest)
    const model = await stage.hypervisor.hostFacts({ ...needs, cpu: '<cpu><model>no-such-model</model></cpu>' })
    assert.match(model.cpuProblem ?? '', /no-such-model/)
    const tpm = await stage.hypervisor.hostFacts({ ...needs, tpm: { backend: 'emulator' } })
    assert.ok(tpm.tpmBackends === undefined || Array.isArray(tpm.tpmBackends))
  })

  it('brings firmware variables back, and gives a copy its own', async () => {
    const directory = vmDirectory(stage, 'uefi')
    await mkdir(directory)
    const [, data] = await createDisks(stage.images, directory, 'raw')
    const [firmware, nvram] = [join(stage.directory, 'CODE.fd'), join(directory, 'uefi_VARS.fd')]
    await writeFile(firmware, 'firmware')
    await writeFile(nvram, 'variables', { mode: 0o640 })
    const { configuration } = await stage.hypervisor.vm('converted')
    const bare = configuration.replaceAll(
      /<disk[\s\S]*<\/disk>|<kernel>.*<\/kernel>|<initrd>.*<\/initrd>|<cmdline>.*<\/cmdline>/g,
      '',
    )
    const own = bare.replaceAll(/<uuid>.*<\/uuid>/g, '').replace('<name>converted', '<name>uefi')
    const disk = `<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='${data?.path}'/><target dev='sda' bus='scsi'/></disk>`
    const os = `<loader readonly='yes' type='pflash'>${firmware}</loader><nvram>${nvram}</nvram>`
    const uuid = await stage.hypervisor.define(
      own.replace('</type>', `</type>${os}`).replace('<devices>', `<devices>${disk}`),
    )
    const { recoveryPoint } = await backUp(stage, ['uefi'])
    await restoreVm(stage, recoveryPoint, 'uefi', { as: 'uefi-copy', to: real })
    assert.equal(await readFile(join(real, 'uefi-copy_VARS.fd'), 'utf8'), 'variables')
    assert.match((await stage.hypervisor.vm('uefi-copy')).configuration, /copies\/uefi-copy_VARS.fd/)
    await stage.hypervisor.undefine(uuid)
    await rm(directory, { recursive: true })
    await rm(firmware)
    const gone = await rejectsWith(restoreVm(stage, recoveryPoint, 'uefi'), 'VSS_WRITER_VETO')
    assert.match(gone.message, /its firmware .*CODE.fd is not on this host/)
    await writeFile(firmware, 'firmware')
    await restoreVm(stage, recoveryPoint, 'uefi')
    assert.equal(await readFile(nvram, 'utf8'), 'variables')
    assert.equal((await stage.hypervisor.vm('uefi')).uuid, uuid)
  })
})
