/**
 * Copies where the files lie, on real btrfs and XFS: the contract of providers, and real VMs that are off or saved. The
 * owner of such a VM does with it what he likes as soon as the copies exist; a killed backup leaves none of them.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, afterEach, before, describe, it } from 'node:test'
import { createDisks, type DiskFormat } from '../../sample-guest/sample-guest.ts'
import { Cleanup } from '../../src/base/cleanup.ts'
import { recover } from '../../src/compose.ts'
import { openHostFile } from '../../src/disk/host-file.ts'
import { reflinkWay, subvolumeWay, volumeUndoHandlers } from '../../src/host-volumes/copy-ways.ts'
import { hostFileSystems } from '../../src/host-volumes/host-file-systems.ts'
import { HostVolumeProvider } from '../../src/host-volumes/host-volume-provider.ts'
import { exportDisks } from '../../src/libvirt/disk-export.ts'
import { chooseProvider, type Provider, type Volume } from '../../src/vss/provider.ts'
import type { HeldWrites } from '../../src/vss/windows.ts'
import { providerContract } from '../contract/provider.contract.ts'
import { undoLog } from '../sim/undo-log.ts'
import { killedAt } from './crash-tests.ts'
import { around, duringTransfer, type Hook } from './hooks.ts'
import {
  acknowledged,
  agentAnswers,
  beginStage,
  boot,
  bootOf,
  defineVm,
  inside,
  type Stage,
  type StageVm,
  skipLive,
} from './stage.ts'
import { backUp, hashOf, nothingIsLeft, restoreVm, stateOf, verdictOf } from './stage-session.ts'

const mebibyte = 1024 * 1024
const types = (['btrfs', 'xfs'] as const).filter((type) => {
  const has = (program: string) => spawnSync('sh', ['-c', `command -v ${program}`]).status === 0
  return has(`mkfs.${type}`) && (type !== 'btrfs' || has('btrfs'))
})
const providers = { btrfs: 'Umbra Btrfs Provider', xfs: 'Umbra Reflink Provider' }
const overlays = 'Umbra Overlay Provider'

describe('copies where the files lie', { skip: skipLive || types.length === 0, timeout: 900_000 }, () => {
  let stage: Stage
  /** One for each file system, off; and one on btrfs that runs. */
  const off: { type: (typeof types)[number]; vm: StageVm }[] = []
  let live: StageVm | undefined

  before(async () => {
    const mounts = Object.fromEntries(types.map((type) => [type, { type, sizeBytes: 640 * mebibyte }]))
    stage = await beginStage('copies', { mounts })
    try {
      for (const type of types) off.push({ type, vm: await vmOn(type, `off-${type}`, 'raw') })
      if (!types.includes('btrfs')) return
      live = await boot(stage, await vmOn('btrfs', 'live', 'qcow2'))
    } catch (error) {
      await stage[Symbol.asyncDispose]()
      throw error
    }
  })
  after(async () => {
    await stage?.[Symbol.asyncDispose]()
  })
  afterEach(async () => {
    await nothingIsLeft(stage, [...off.map(({ vm }) => vm), ...(live === undefined ? [] : [live])])
    assert.deepEqual(await copies(), [])
  })

  const vmOn = async (place: string, name: string, format: DiskFormat): Promise<StageVm> => {
    const directory = join(stage.directory, place, name)
    const disks = await createDisks(stage.images, directory, format)
    return { ...(await defineVm(stage, name, disks)), directory }
  }
  const imagesOf = async ({ directory }: StageVm) =>
    (await readdir(directory)).filter((name) => !name.includes('umbra-')).map((name) => join(directory, name))
  const hashesOf = async (vm: StageVm) => Promise.all((await imagesOf(vm)).toSorted().map(hashOf))
  /** Every copy on both file systems. */
  const copies = async () => {
    const found = types.map(async (type) => {
      const names = await readdir(join(stage.directory, type), { recursive: true })
      return names.filter((name) => /\.umbra-[^/]*$/.test(name)).map((name) => join(type, name))
    })
    return (await Promise.all(found)).flat()
  }

  it('is made of a VM that is off, which may be started and written to meanwhile', async (t) => {
    for (const { type, vm } of off) {
      const before = await hashesOf(vm)
      let during: readonly string[] = []
      const repository = duringTransfer(stage.repository, async () => {
        during = await copies()
        await boot(stage, vm)
        await acknowledged(stage, vm)
      })
      const result = await backUp(stage, [vm.name], { repository })
      t.diagnostic(`${type}: ${during.join(' ')}; ${result.durationMs} ms in all`)
      assert.equal(result.vms[0]?.method, 'offline')
      assert.deepEqual(new Set(result.vms[0]?.disks.map(({ provider }) => provider)), new Set([providers[type]]))
      assert.ok(during.length > 0)
      assert.equal(await stage.hypervisor.power(vm.uuid), 'running', 'and it runs on')
      const written = await acknowledged(stage, vm)
      await stage.hypervisor.turnOff(vm.uuid)
      assert.notDeepEqual(await hashesOf(vm), before)
      assert.ok(written > 0)
      await restoreVm(stage, result.recoveryPoint, vm.name)
      assert.deepEqual(await hashesOf(vm), before, 'what came back is what lay there at the instant')
    }
  })

  it('is not made of a VM that is started before the copies, and none is left', async () => {
    for (const { vm } of off) {
      let begun = false
      const onEvent = ({ event }: { event: string }) => {
        begun ||= event === 'PrepareForSnapshot'
      }
      const power: Hook = async (call) => {
        if (begun) await stage.hypervisor.start(vm.uuid)
        begun = false
        return call()
      }
      const hypervisor = around(stage.hypervisor, { power })
      await assert.rejects(backUp(stage, [vm.name], { hypervisor, onEvent }), /must not be used while it is copied/)
      assert.equal(await stage.hypervisor.power(vm.uuid), 'running')
      await stage.hypervisor.turnOff(vm.uuid)
    }
  })

  it('lets a saved VM go on as soon as the copies exist; the transfer runs from them', async (t) => {
    const vm = live
    if (vm === undefined) return t.skip('mkfs.btrfs is not here')
    const life = await bootOf(stage, vm)
    const policy = { method: 'saved-state' } as const
    const before = await acknowledged(stage, vm)
    let duringPower = ''
    const repository = duringTransfer(stage.repository, async () => {
      duringPower = await stage.hypervisor.power(vm.uuid)
      const at = await acknowledged(stage, vm)
      await inside(stage, vm, 'sync')
      assert.ok(at >= before)
    })
    const copied = await backUp(stage, [vm.name], { policy, repository })
    assert.equal(duringPower, 'running')
    assert.deepEqual(new Set(copied.vms[0]?.disks.map(({ provider }) => provider)), new Set([providers.btrfs]))
    const verdict = await verdictOf(stage, copied.recoveryPoint, vm)
    assert.ok(verdict.ok && verdict.crossConsistent, JSON.stringify(verdict))
    assert.ok((verdict.logs[1]?.last ?? 0) >= before)
    const laid = await backUp(stage, [vm.name], { policy, providers: [overlays] })
    assert.deepEqual(new Set(laid.vms[0]?.disks.map(({ provider }) => provider)), new Set([overlays]))
    for (const [how, { vms, durationMs }] of Object.entries({ 'copied where they lie': copied, overlays: laid })) {
      t.diagnostic(`${how}: stood still for ${vms[0]?.pausedMs} ms, ${durationMs} ms in all`)
    }
    assert.equal(await bootOf(stage, vm), life)

    await restoreVm(stage, copied.recoveryPoint, vm.name)
    await stage.hypervisor.start(vm.uuid)
    await agentAnswers(stage, vm)
    assert.equal(await bootOf(stage, vm), life, 'memory and disks belong together')
    await inside(stage, vm, 'umbra-writer verify /srv/a/log /srv/b/log')
  })

  it('is removed by umbra recover after kill -9 of the backup, and the VM may run meanwhile', async (t) => {
    for (const { type, vm } of off) {
      const state = await stateOf(stage, vm)
      await killedAt(stage, { at: 'transfer', vm: vm.name, withWatchdog: true })
      const left = await copies()
      t.diagnostic(`${type}: left ${left.join(' ')}`)
      assert.ok(left.length > 0, 'the test would prove nothing')
      const recovered = await recover(stage.settings)
      assert.deepEqual(
        recovered.flatMap(({ failed }) => failed),
        [],
      )
      assert.deepEqual(await copies(), [])
      assert.deepEqual(await stateOf(stage, vm), state)
    }
  })

  it('takes directories, chains with relative names and files without copy on write the way they can be', async () => {
    for (const type of types) {
      const base = join(stage.directory, type, 'various')
      const path = join(base, 'ledger')
      await mkdir(path, { recursive: true })
      await writeFile(join(path, 'accounts'), 'before')
      const directory: Volume = { ...plain, properties: { kind: 'host-directory', path } }
      assert.match(await copiedBy(type, directory, () => writeFile(join(path, 'accounts'), 'after'), 'before'), /Umbra/)

      execFileSync('qemu-img', ['create', '-q', '-f', 'raw', join(base, 'base.raw'), '1M'])
      execFileSync('qemu-io', ['-f', 'raw', '-c', 'write -P 66 0 64k', join(base, 'base.raw')])
      const file = join(base, 'top.qcow2')
      execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', 'base.raw', '-F', 'raw', file], { cwd: base })
      const chained = volumeOf(file, 'qcow2')
      const write = async () => void execFileSync('qemu-io', ['-c', 'write -P 67 0 64k', file])
      assert.equal(await copiedBy(type, chained, write, 'BBBBBB'), providers.xfs)
      if (type !== 'btrfs') continue
      const odd = join(base, 'odd.raw')
      execFileSync('sh', ['-c', 'touch "$0" && chattr +C "$0" && truncate -s 1M "$0"', odd])
      assert.equal(await hostFileSystems().sharesExtents(odd), false)
      assert.equal(await hostFileSystems().sharesExtents(join(base, 'base.raw')), true)
      execFileSync('btrfs', ['subvolume', 'create', join(path, 'within')], { stdio: 'ignore' })
      await assert.rejects(
        copiedBy(type, directory, async () => undefined, ''),
        /no provider/,
      )
      execFileSync('btrfs', ['subvolume', 'delete', join(path, 'within')], { stdio: 'ignore' })
    }
  })

  /** Makes a copy by the provider that is chosen, lets the original change, and compares the copy's first bytes. */
  async function copiedBy(
    type: string,
    volume: Volume,
    change: () => Promise<void>,
    expected: string,
  ): Promise<string> {
    const fileSystems = hostFileSystems()
    const options = {
      fileSystems,
      hypervisor: { power: async () => 'off' as const },
      openImages: (images: Parameters<typeof exportDisks>[0]) => exportDisks(images, { directory: stage.directory }),
      openDirectory: (path: string) => openHostFile(join(path, 'accounts')),
    }
    const all = [subvolumeWay, reflinkWay].map((way) => new HostVolumeProvider(way(fileSystems), options))
    const provider: Provider | undefined = await chooseProvider(all, volume)
    assert.ok(provider !== undefined, `no provider on ${type}`)
    await using undo = new Cleanup(undoLog().log, volumeUndoHandlers(fileSystems))
    const signal = new AbortController().signal
    const session = { snapshotSetId: crypto.randomUUID(), undo, emit: () => undefined, signal, abandon: assert.fail }
    await provider.beginPrepareSnapshot(session, volume, 0)
    await provider.endPrepareSnapshots(session)
    await provider.commitSnapshots(session, [volume], {} as HeldWrites)
    await change()
    const [copy] = await provider.preFinalCommitSnapshots(session)
    {
      await using source = await (copy as NonNullable<typeof copy>).open()
      const bytes = Buffer.alloc(expected.length)
      await source.read(0, bytes)
      assert.equal(bytes.toString(), expected)
    }
    await provider.deleteSnapshots(session)
    return provider.name
  }

  for (const { way, type } of [
    { way: subvolumeWay, type: 'btrfs' },
    { way: reflinkWay, type: 'btrfs' },
    { way: reflinkWay, type: 'xfs' },
  ] as const) {
    if (!types.includes(type)) continue
    providerContract(`${way.name} on ${type}`, async () => {
      const fileSystems = hostFileSystems()
      const directory = join(stage.directory, type, `contract-${crypto.randomUUID().slice(0, 8)}`)
      if (type === 'btrfs') spawnSync('btrfs', ['subvolume', 'create', directory])
      else await mkdir(directory)
      const volumes = await Promise.all(['sda', 'sdb'].map((target) => volumeIn(directory, target)))
      const fileOf = ({ name }: Volume) => join(directory, name)
      return {
        provider: new HostVolumeProvider(way(fileSystems), {
          fileSystems,
          hypervisor: { power: async () => 'off' },
          openImages: async (images) => ({
            open: async (name) => {
              const image = images.find((one) => one.name === name)?.image
              assert.ok(image !== undefined && 'file' in image.storage)
              return openHostFile(image.storage.file)
            },
            [Symbol.asyncDispose]: async () => undefined,
          }),
        }),
        volumes,
        undoHandlers: volumeUndoHandlers(fileSystems),
        change: (volume) => writeFile(fileOf(volume), Buffer.alloc(mebibyte, crypto.randomUUID())),
        content: async (volume) => new Uint8Array(await readFile(fileOf(volume))),
        residue: copies,
        [Symbol.asyncDispose]: async () => {
          if (existsSync(directory)) spawnSync('sh', ['-c', 'rm -r -- "$0" || btrfs subvolume delete "$0"', directory])
        },
      }
    })
  }
})

const plain = { id: 'contract/sda', component: 'contract', caption: 'contract', name: 'sda' }

function volumeOf(file: string, format: 'raw' | 'qcow2'): Volume {
  const image = { format, storage: { file } }
  return { ...plain, properties: { kind: 'vm-disk', vm: 'contract', atRest: true, power: 'off', image } }
}

async function volumeIn(directory: string, target: string): Promise<Volume> {
  const file = join(directory, target)
  await writeFile(file, Buffer.alloc(mebibyte, target))
  return { ...volumeOf(file, 'raw'), id: `contract/${target}`, name: target }
}
