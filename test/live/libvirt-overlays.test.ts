/**
 * Overlays on a real VM whose disks could not be more different: qcow2 on a template, VHD, and a raw image behind NBD.
 * Everything a crash can leave is brought about for real, and the guest's own judge says that no record is missing.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { access, copyFile, readFile, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { setTimeout } from 'node:timers/promises'
import { createDisks, sampleGuestXml } from '../../sample-guest/sample-guest.ts'
import { imageInfo } from '../../src/libvirt/disk-image.ts'
import { isFailure } from '../../src/libvirt/libvirt-errors.ts'
import { markMerged } from '../../src/libvirt/overlay-file.ts'
import type { DiskImage, OverlayInPlace } from '../../src/vm/hypervisor.ts'
import { agentAnswers, beginLiveHost, type LiveHost, skipLive, virsh } from './libvirt-world.ts'

const targets = ['sda', 'sdb', 'sdc']
const refused = (error: unknown) => isFailure(error, 'MERGE_REFUSED')
const name = 'mixed'

class Scene implements AsyncDisposable {
  readonly host: LiveHost
  readonly uuid: string
  readonly template: string
  readonly #nbdPid: number
  #overlays = 0

  constructor(host: LiveHost, uuid: string, template: string, nbdPid: number) {
    this.host = host
    this.uuid = uuid
    this.template = template
    this.#nbdPid = nbdPid
  }

  /** QEMU can not save the memory of a VM that has a VHD disk. */
  static async begin(formatOfA: 'vpc' | 'raw'): Promise<Scene> {
    const host = await beginLiveHost(name)
    const { images, hypervisor, directory } = host
    const [root, , dataB] = await createDisks(images, join(directory, 'raw'), 'raw')
    const [, dataA] = await createDisks(images, join(directory, 'other'), formatOfA)
    assert.ok(root && dataA && dataB)
    const onTemplate = join(directory, 'root.qcow2')
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', root.path, '-F', 'raw', onTemplate])
    const socket = join(directory, 'nbd.sock')
    const served = ['-t', '-e', '8', '-f', 'raw', '-x', 'data B', '-k', socket, '--pid-file', `${socket}.pid`, '--fork']
    execFileSync('qemu-nbd', [...served, dataB.path])
    const disks = [{ path: onTemplate, format: 'qcow2' as const }, dataA, { nbd: { socket, exportName: 'data B' } }]
    const xml = sampleGuestXml({ name, images, disks, consolePath: join(directory, 'console') })
    const uuid = await hypervisor.define(xml)
    await hypervisor.start(uuid)
    await agentAnswers(hypervisor, uuid)
    return new Scene(host, uuid, root.path, Number(await readFile(`${socket}.pid`, 'utf8')))
  }

  get hypervisor() {
    return this.host.hypervisor
  }

  async image(target: string): Promise<DiskImage> {
    const image = (await this.hypervisor.vm(this.uuid)).disks.find((disk) => disk.target === target)?.image
    assert.ok(image, target)
    return image
  }

  async overlay(which: readonly string[] = targets): Promise<OverlayInPlace[]> {
    this.#overlays += 1
    const path = (target: string) => join(this.host.directory, `${target}-${this.#overlays}.overlay`)
    const images = await Promise.all(which.map((target) => this.image(target)))
    const plans = which.map((target, index) => ({ target, overlay: path(target), base: images[index] as DiskImage }))
    await this.hypervisor.createOverlays(this.uuid, plans)
    return plans
  }

  async merge(plans: readonly OverlayInPlace[]): Promise<void> {
    for (const plan of plans) await this.hypervisor.mergeOverlay(this.uuid, plan)
    for (const { target, overlay, base } of plans) {
      assert.deepEqual(await this.image(target), base)
      await assert.rejects(access(overlay))
      await assert.rejects(access(`${overlay}.merged`))
    }
    const { configuration } = await this.hypervisor.vm(this.uuid)
    for (const { overlay } of plans) assert.ok(!configuration.includes(overlay))
  }

  async inside(script: string): Promise<string> {
    const { exitCode, stdout, stderr } = await this.hypervisor.guest(this.uuid).exec('/bin/sh', ['-c', script])
    assert.equal(exitCode, 0, `${script}: ${stdout}${stderr}`)
    return stdout.trim()
  }

  /** The judge inside: records without gaps, duplicates or torn ends on two disks that agree. */
  async nothingIsLost(): Promise<void> {
    const verdict = JSON.parse(await this.inside('sync; umbra-writer verify /srv/a/log /srv/b/log || true'))
    assert.equal(verdict.crossConsistent, true, JSON.stringify(verdict))
    for (const log of verdict.logs ?? []) assert.deepEqual([log.gaps, log.duplicates], [0, 0], JSON.stringify(verdict))
  }

  records = async (): Promise<number> => Number(await this.inside('wc -l < /srv/a/log'))

  boot = () => this.inside('cat /proc/sys/kernel/random/boot_id')

  async start(): Promise<void> {
    await this.hypervisor.start(this.uuid)
    await agentAnswers(this.hypervisor, this.uuid)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.hypervisor.turnOff(this.uuid)
    await this.host[Symbol.asyncDispose]()
    process.kill(this.#nbdPid)
  }
}

describe('overlays on disks of different kinds', { skip: skipLive, timeout: 900_000 }, () => {
  let scene: Scene
  before(async () => {
    scene = await Scene.begin('vpc')
  })
  after(async () => {
    await scene[Symbol.asyncDispose]()
  })

  it('are put on and taken off while the guest writes; the template beneath is never touched', async () => {
    const digest = async () =>
      createHash('sha256')
        .update(await readFile(scene.template))
        .digest('hex')
    const before = await digest()
    for (let round = 0; round < 3; round += 1) {
      const plans = await scene.overlay()
      await scene.inside('echo more >> /root/more; sync')
      await scene.merge(plans)
    }
    await scene.nothingIsLost()
    assert.equal(await digest(), before)
    assert.deepEqual((await scene.hypervisor.vm(name)).disks[0]?.backing, [scene.template])
  })

  it('all show the same instant', async () => {
    const plans = await scene.overlay()
    const logs = []
    for (const { base } of plans.slice(1)) {
      const source =
        'nbd' in base.storage ? `nbd+unix:///data%20B?socket=${base.storage.nbd.socketPath}` : locationOf(base)
      const raw = join(scene.host.directory, 'instant.raw')
      execFileSync('qemu-img', ['convert', '-U', '-f', base.format, '-O', 'raw', source, raw])
      execFileSync('sh', ['-c', 'e2fsck -y -E journal_only "$0" >/dev/null 2>&1 || true', raw])
      execFileSync('debugfs', ['-R', `dump /log ${raw}.log`, raw], { stdio: 'ignore' })
      logs.push((await readFile(`${raw}.log`, 'latin1')).trim().split('\n').length)
    }
    const lead = (logs[0] ?? 0) - (logs[1] ?? 0)
    assert.ok(lead === 0 || lead === 1, `lead ${lead}`)
    await scene.merge(plans)
  })

  it('are merged after QEMU was killed, and nothing the guest had synced is lost', async () => {
    const plans = await scene.overlay()
    await setTimeout(500)
    const written = await scene.records()
    const pid = Number(await readFile(join(scene.host.libvirtd.directory, `run/qemu/${name}.pid`), 'utf8'))
    process.kill(pid, 'SIGKILL')
    while ((await scene.hypervisor.power(scene.uuid)) !== 'off') await setTimeout(50)
    assert.equal((await scene.hypervisor.vm(name)).shutDownCleanly, false)
    await scene.merge(plans)
    await scene.merge(plans)
    await scene.start()
    assert.ok((await scene.records()) >= written)
    await scene.nothingIsLost()
  })

  it('are put on and taken off a VM that is off, also on a disk behind NBD', async () => {
    await scene.hypervisor.turnOff(scene.uuid)
    const { configuration } = await scene.hypervisor.vm(name)
    const plans = await scene.overlay()
    assert.ok(!(await readFile(plans[0]?.overlay ?? '')).subarray(0, 4).equals(Buffer.alloc(4)))
    await scene.start()
    await scene.inside('echo offline > /srv/b/offline; sync')
    await scene.hypervisor.turnOff(scene.uuid)
    await scene.merge(plans)
    assert.equal((await scene.hypervisor.vm(name)).configuration, configuration)
    await scene.start()
    assert.equal(await scene.inside('cat /srv/b/offline'), 'offline')
    await scene.nothingIsLost()
  })

  it('of a commit that somebody else began, and died, are taken on from where it stands', async () => {
    const plans = await scene.overlay()
    for (const { target } of plans) {
      virsh(scene.host.libvirtd.uri, 'blockcommit', name, target, '--active', '--shallow')
    }
    assert.match((await scene.hypervisor.vm(name)).busy ?? '', /active-commit/)
    await scene.merge(plans)
    await scene.nothingIsLost()
  })

  it('survive a restart of libvirt: the same connection merges them', async () => {
    const plans = await scene.overlay()
    const script = join(import.meta.dirname, '../../scripts/private-libvirtd')
    const { directory } = scene.host.libvirtd
    execFileSync(script, ['stop', directory], { stdio: 'ignore' })
    execFileSync(script, ['start', directory], { stdio: 'ignore' })
    assert.equal(await scene.hypervisor.power(scene.uuid), 'running')
    await scene.merge(plans)
    await scene.nothingIsLost()
  })
})

describe('overlays and memory images', { skip: skipLive, timeout: 600_000 }, () => {
  let scene: Scene
  before(async () => {
    scene = await Scene.begin('raw')
  })
  after(async () => {
    await scene[Symbol.asyncDispose]()
  })

  it('are merged beneath a VM that the host saved meanwhile, as hosts do at shut-down; it goes on where it was', async () => {
    const boot = await scene.boot()
    const plans = await scene.overlay()
    await setTimeout(300)
    await scene.hypervisor.keepSaved(scene.uuid, 'running')
    await scene.merge(plans)
    assert.equal(await scene.hypervisor.power(scene.uuid), 'saved')
    await scene.start()
    assert.equal(await scene.boot(), boot)
    for (const { target, base } of plans) assert.deepEqual(await scene.image(target), base)
    await scene.nothingIsLost()
  })

  describe('one that the VM is not on', () => {
    it('is kept when it holds data that no disk of the VM has', async () => {
      const { configuration } = await scene.hypervisor.vm(name)
      const [plan] = await scene.overlay(['sda'])
      assert.ok(plan)
      await scene.inside('echo precious > /root/precious; sync')
      await scene.hypervisor.turnOff(scene.uuid)
      const onOverlay = (await scene.hypervisor.vm(name)).configuration
      await scene.hypervisor.define(configuration)
      await assert.rejects(scene.hypervisor.mergeOverlay(scene.uuid, plan), refused)
      await scene.hypervisor.start(scene.uuid)
      await assert.rejects(scene.hypervisor.mergeOverlay(scene.uuid, plan), refused)
      await access(plan.overlay)
      await scene.hypervisor.turnOff(scene.uuid)
      await scene.hypervisor.define(onOverlay)
      await scene.merge([plan])
      await scene.start()
      assert.equal(await scene.inside('cat /root/precious'), 'precious')
    })

    it('is deleted when it is marked as merged, kept when it is not', async () => {
      const [plan] = await scene.overlay(['sda'])
      assert.ok(plan)
      await scene.inside('date > /root/date; sync')
      await scene.hypervisor.turnOff(scene.uuid)
      await copyFile(plan.overlay, `${plan.overlay}.copy`)
      await scene.merge([plan])
      await rename(`${plan.overlay}.copy`, plan.overlay)
      await assert.rejects(scene.hypervisor.mergeOverlay(scene.uuid, plan), refused)
      await markMerged(plan.overlay)
      await scene.merge([plan])
      await scene.start()
    })

    it('is never deleted while a program writes to it', async () => {
      const stray = join(scene.host.directory, 'stray.overlay')
      const base = await scene.image('sda')
      execFileSync('qemu-img', [
        'create',
        '-q',
        '-u',
        '-f',
        'qcow2',
        '-b',
        locationOf(base),
        '-F',
        'qcow2',
        stray,
        '96M',
      ])
      const socket = join(scene.host.directory, 'stray.sock')
      const open = ['-t', '-f', 'raw', '-k', socket, '--pid-file', `${socket}.pid`, '--fork', stray]
      execFileSync('qemu-nbd', open)
      const plan = { target: 'sda', overlay: stray, base }
      await assert.rejects(scene.hypervisor.mergeOverlay(scene.uuid, plan), refused)
      process.kill(Number(await readFile(`${socket}.pid`, 'utf8')))
      await setTimeout(500)
      await scene.merge([plan])
    })

    it('is deleted when it is empty, as a power cut may leave it; kept when it is something else', async () => {
      const plan = { target: 'sda', overlay: join(scene.host.directory, 'odd.overlay'), base: await scene.image('sda') }
      await writeFile(plan.overlay, 'not an overlay')
      await assert.rejects(scene.hypervisor.mergeOverlay(scene.uuid, plan), refused)
      await writeFile(plan.overlay, '')
      await scene.merge([plan])
      assert.equal((await imageInfo(locationOf(plan.base), 'qcow2')).format, 'qcow2')
    })
  })
})

const locationOf = ({ storage }: DiskImage): string => ('file' in storage ? storage.file : '')
