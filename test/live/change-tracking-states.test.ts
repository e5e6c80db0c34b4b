/**
 * What becomes of change tracking when things happen to a real VM and its disks: the table in docs/change-tracking.md, case by
 * case, on one VM with two qcow2 disks and a raw one, by the backup job provider itself. Whatever it believes is compared with
 * the whole disk.
 * Takes long: begun before the others.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { chownSync, copyFileSync, mkdirSync, readdirSync, renameSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { createDisks } from '../../sample-guest/sample-guest.ts'
import { Cleanup } from '../../src/base/cleanup.ts'
import { BackupJobProvider } from '../../src/libvirt/backup-job-provider.ts'
import { backupJobUndoHandlers } from '../../src/libvirt/backup-job-undo.ts'
import type { OverlayPlan } from '../../src/vm/hypervisor.ts'
import type { ProviderSession, ShadowCopy, Volume } from '../../src/vss/provider.ts'
import { contentOf, createSet, patched, stampsOf } from '../sim/backup-job-scene.ts'
import { undoLog } from '../sim/undo-log.ts'
import {
  agentAnswers,
  beginStage,
  boot,
  defineVm,
  eventually,
  inside,
  type Stage,
  type StageVm,
  skipLive,
  virsh,
  vmDirectory,
  writeText,
} from './stage.ts'

const targets = ['sda', 'sdb', 'sdc'] as const
const nobody = 65_534
type Answers = Readonly<Record<(typeof targets)[number], string>>

describe('change tracking of a real VM', { skip: skipLive, timeout: 300_000 }, () => {
  let stage: Stage
  let vm: StageVm
  const contents = new Map<string, Uint8Array>()

  before(async () => {
    stage = await beginStage('tracking')
    const qcow2 = await createDisks(stage.images, vmDirectory(stage, 'cbt'), 'qcow2')
    const raw = await createDisks(stage.images, vmDirectory(stage, 'cbt'), 'raw')
    const disks = [...qcow2.slice(0, 2), ...raw.slice(2)]
    const drive = `<disk type='file' device='cdrom'><target dev='sdz' bus='sata'/><readonly/></disk>`
    vm = await defineVm(stage, 'cbt', disks, { extraDevices: drive })
    await runAsNobody(vm)
    for (const directory of ['scratch', 's']) mkdirSync(join(stage.directory, directory), { mode: 0o711 })
    await boot(stage, vm)
  })
  after(async () => {
    await stage[Symbol.asyncDispose]()
  })

  /** As on most hosts, where the processes of VMs are not root's. */
  async function runAsNobody({ uuid, directory }: StageVm): Promise<void> {
    const { configuration } = await stage.hypervisor.vm(uuid)
    const label = `<seclabel type='static' model='dac' relabel='no'><label>+${nobody}:+${nobody}</label></seclabel>`
    await stage.hypervisor.define(configuration.replace('</domain>', `${label}</domain>`))
    for (const name of readdirSync(directory)) chownSync(join(directory, name), nobody, nobody)
  }

  async function putOverlay(plan: OverlayPlan): Promise<void> {
    await stage.hypervisor.prepareOverlays(vm.uuid, [plan])
    chownSync(plan.overlay, nobody, nobody)
    await stage.hypervisor.createOverlays(vm.uuid, [plan])
  }

  const volumes = (): Volume[] =>
    targets.map((name) => {
      const properties = { kind: 'vm-disk', vm: vm.uuid, backupJob: true }
      return { id: `${vm.uuid}/${name}`, component: vm.uuid, caption: 'cbt', name, properties }
    })

  const session = (next: string, previous: readonly string[]): ProviderSession => ({
    snapshotSetId: crypto.randomUUID(),
    undo: new Cleanup(undoLog().log, backupJobUndoHandlers(stage.hypervisor)),
    emit: () => undefined,
    signal: new AbortController().signal,
    abandon: (reason) => assert.fail(reason),
    stamps: stampsOf(next, previous),
  })

  /** Judges one copy: what it tells has to make the former copy the present one. Answers what it builds upon, or why not. */
  async function judge(copy: ShadowCopy): Promise<string> {
    const now = await contentOf(copy)
    const former = contents.get(copy.volume.name)
    contents.set(copy.volume.name, now)
    if (copy.changes?.since === undefined) return copy.changes?.reason ?? 'nothing is told'
    assert.ok(former !== undefined)
    assert.equal(
      Buffer.compare(await patched(copy, former), now),
      0,
      `${copy.volume.name} is not what it was said to be`,
    )
    return copy.changes.since
  }

  /** A whole backup; afterwards its point is the only one of its owner. */
  async function backUp(next: string, ...previous: string[]): Promise<Answers> {
    const provider = new BackupJobProvider({
      hypervisor: stage.hypervisor,
      scratchDirectory: join(stage.directory, 'scratch'),
      socketDirectory: join(stage.directory, 's'),
    })
    const now = session(next, previous)
    const copies = await createSet(provider, now, volumes())
    await inside(stage, vm, 'date > /srv/a/after; sync')
    const answers: Record<string, string> = {}
    for (const copy of copies) answers[copy.volume.name] = await judge(copy)
    await provider.keepStamps(now)
    await provider.deleteSnapshots(now)
    await now.undo[Symbol.asyncDispose]()
    const { points, forgotten } = await stage.hypervisor.changeTracking(vm.uuid)
    assert.deepEqual(
      [points.map(({ name }) => name).filter((name) => name.startsWith('umbra-')).length, forgotten],
      [1, []],
    )
    assert.equal((await stage.hypervisor.vm(vm.uuid)).busy, undefined)
    return answers as Answers
  }

  const disk = (name: string) => join(vm.directory, `${name}.qcow2`)
  const stop = () => stage.hypervisor.turnOff(vm.uuid)

  it('a first backup builds upon nothing; a raw disk never does', async () => {
    const answers = await backUp('one')
    assert.match(answers.sda, /no earlier backup/)
    assert.match(answers.sdc, /raw disks have no bitmaps/)
  })

  it('the next one upon the first, also after a point of another program, and one of its own that is older', async () => {
    await inside(stage, vm, 'dd if=/dev/urandom of=/srv/a/new bs=64k count=5; sync')
    const xml =
      '<domaincheckpoint><name>foreign</name><disks><disk name="sda"/><disk name="sdb"/></disks></domaincheckpoint>'
    virsh(stage, 'checkpoint-create', 'cbt', await writeText(stage, 'foreign.xml', xml))
    const answers = await backUp('two', 'one')
    assert.deepEqual([answers.sda, answers.sdb], ['one', 'one'])
    assert.match(virsh(stage, 'checkpoint-list', 'cbt', '--name'), /foreign/)
  })

  it('a disk that is made larger while the VM runs is in doubt, and only that one', async () => {
    virsh(stage, 'blockresize', 'cbt', 'sdb', '96M')
    const answers = await backUp('three', 'two')
    contents.delete('sdb')
    assert.equal(answers.sda, 'two')
    assert.match(answers.sdb, /size has changed/)
  })

  it('so are a disk that was replaced by its copy, and one with an internal snapshot, while the VM was off', async () => {
    await stop()
    copyFileSync(disk('root'), disk('copy'))
    renameSync(disk('copy'), disk('root'))
    chownSync(disk('root'), nobody, nobody)
    execFileSync('qemu-img', ['snapshot', '-c', 'state', disk('data-a')])
    const back = spawnSync('qemu-img', ['snapshot', '-a', 'state', disk('data-a')], { encoding: 'utf8' })
    assert.match(back.stderr, /Device has active dirty bitmaps/)
    await boot(stage, vm)
    const answers = await backUp('four', 'three')
    assert.match(answers.sda, /replaced by another/)
    assert.match(answers.sdb, /internal snapshots/)
  })

  it('a disk that was made larger while the VM was off is in doubt; the other records on', async () => {
    await stop()
    execFileSync('qemu-img', ['snapshot', '-d', 'state', disk('data-a')])
    execFileSync('qemu-img', ['resize', '-q', disk('data-a'), '128M'])
    await boot(stage, vm)
    const answers = await backUp('five', 'four')
    assert.equal(answers.sda, 'four')
    assert.match(answers.sdb, /size has changed/)
  })

  it('a saved state is no gap, nor is an overlay that was put on and merged', async () => {
    await stage.hypervisor.keepSaved(vm.uuid, 'running')
    await stage.hypervisor.start(vm.uuid)
    await agentAnswers(stage, vm)
    const image = (await stage.hypervisor.vm(vm.uuid)).disks.find(({ target }) => target === 'sdb')?.image
    assert.ok(image !== undefined)
    const plan = { target: 'sdb', overlay: `${disk('data-a')}.overlay` }
    await putOverlay(plan)
    await inside(stage, vm, 'dd if=/dev/urandom of=/srv/a/caught bs=64k count=5; sync')
    await stage.hypervisor.mergeOverlay(vm.uuid, { ...plan, base: image })
    const answers = await backUp('six', 'five')
    assert.deepEqual([answers.sda, answers.sdb], ['five', 'five'])
  })

  it('a disk that lies on an overlay now is in doubt until the next backup', async () => {
    const image = (await stage.hypervisor.vm(vm.uuid)).disks.find(({ target }) => target === 'sdb')?.image
    assert.ok(image !== undefined)
    const plan = { target: 'sdb', overlay: `${disk('data-a')}.overlay` }
    await putOverlay(plan)
    assert.match((await backUp('seven', 'six')).sdb, /its image was .* now/)
    assert.equal((await backUp('eight', 'seven')).sdb, 'seven')
    await stage.hypervisor.mergeOverlay(vm.uuid, { ...plan, base: image })
    assert.match((await backUp('nine', 'eight')).sdb, /its image was/)
  })

  it('a VM that was removed and registered again has lost its points; the bitmaps that they left are cleared away', async () => {
    await stop()
    const refused = spawnSync('virsh', ['-c', stage.libvirtd.uri, 'undefine', 'cbt'], { encoding: 'utf8' })
    assert.match(refused.stderr, /cannot delete inactive domain with \d+ checkpoints/)
    const { configuration } = await stage.hypervisor.vm(vm.uuid)
    await stage.hypervisor.undefine(vm.uuid)
    await stage.hypervisor.define(configuration)
    await boot(stage, vm)
    const { forgotten } = await stage.hypervisor.changeTracking(vm.uuid)
    assert.equal(forgotten.length, 1)
    assert.match((await backUp('ten', 'nine')).sda, /has no tracking point/)
  })

  it('a VM that is killed has lost what was recorded; what is left of it goes', async () => {
    const pid = await readFile(join(stage.libvirtd.directory, 'run', 'qemu', 'cbt.pid'), 'utf8')
    process.kill(Number(pid), 'SIGKILL')
    const off = async () => ((await stage.hypervisor.power(vm.uuid)) === 'off' ? true : undefined)
    await eventually('the end of QEMU', off)
    await boot(stage, vm)
    const answers = await backUp('eleven', 'ten')
    assert.match(answers.sda, /killed/)
    assert.match(answers.sdb, /killed/)
  })

  it('a VM that is not registered any more is tracked for as long as it runs', async () => {
    virsh(stage, 'undefine', 'cbt', '--checkpoints-metadata')
    assert.equal((await stage.hypervisor.vm(vm.uuid)).persistent, false)
    const answers = await backUp('twelve', 'eleven')
    assert.deepEqual([answers.sda, answers.sdb], ['eleven', 'eleven'])
  })
})
