/**
 * Both ways of copying where the files lie, on a file system that only pretends: the contract of all providers, and what
 * is their own: which volumes they take, a VM that does not stand still, names that are not theirs. What real btrfs and
 * XFS do is in test/live.
 */
import assert from 'node:assert/strict'
import { appendFileSync, existsSync } from 'node:fs'
import { chmod, cp, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { describe, test } from 'node:test'
import { providerContract } from '../../test/contract/provider.contract.ts'
import { ManualClock } from '../../test/sim/manual-clock.ts'
import { undoLog } from '../../test/sim/undo-log.ts'
import { Cleanup, type JsonObject } from '../base/cleanup.ts'
import { openHostFile } from '../disk/host-file.ts'
import type { PowerState } from '../vm/hypervisor.ts'
import { chooseProvider, type Provider, type ProviderSession, type Volume } from '../vss/provider.ts'
import type { HeldWrites } from '../vss/windows.ts'
import { type CopyWay, reflinkWay, subvolumeWay, volumeUndoHandlers } from './copy-ways.ts'
import { type HostFileSystems, hostFileSystems } from './host-file-systems.ts'
import { type HostVolumeOptions, HostVolumeProvider } from './host-volume-provider.ts'

const held = {} as HeldWrites
const ways = { subvolume: subvolumeWay, reflink: reflinkWay }
type WayName = keyof typeof ways

/** Two VMs with raw disks in a directory that is taken for a subvolume of a file system with reflinks. */
async function sandbox(way: WayName, options: Partial<HostVolumeOptions> = {}) {
  const base = await mkdtemp(join(tmpdir(), 'umbra-host-volumes-'))
  const vms = join(base, 'volume')
  await mkdir(vms)
  const powers: Record<string, PowerState | 'gone'> = { web: 'off', db: 'paused' }
  const diskOf = async (vm: string, target: string): Promise<Volume> => {
    const file = join(vms, `${vm}-${target}.raw`)
    await writeFile(file, Buffer.alloc(8192, `${vm} ${target}`))
    const image = { format: 'raw', storage: { file } }
    const properties = { kind: 'vm-disk', vm, atRest: true, power: vm === 'web' ? 'off' : 'running', image }
    return { id: `${vm}/${target}`, component: vm, caption: vm, name: target, properties }
  }
  const volumes = [await diskOf('web', 'sda'), await diskOf('web', 'sdb'), await diskOf('db', 'sda')]
  const made: string[] = []
  const free = { bytes: 2 ** 40 }
  const fileSystems: HostFileSystems = {
    ...hostFileSystems(),
    subvolumeOf: async (path) => (`${path}/`.startsWith(`${vms}/`) ? vms : undefined),
    reflinks: async () => true,
    sharesExtents: async () => true,
    freeBytes: async () => free.bytes,
    copySubvolume: async (from, copy) => {
      made.push(copy)
      await cp(from, join(base, 'taken'), { recursive: true, filter: (path) => !basename(path).startsWith('.umbra-') })
      await cp(join(base, 'taken'), copy, { recursive: true })
      await rm(join(base, 'taken'), { recursive: true })
    },
    deleteSubvolume: (copy) => rm(copy, { recursive: true, force: true }),
    reflink: async (from, copy) => {
      made.push(copy)
      await cp(from, copy, { recursive: true, errorOnExist: true, force: false })
      if ((await fileSystems.facts(copy))?.isFile()) await chmod(copy, 0o400)
    },
  }
  const copyWay: CopyWay = ways[way](fileSystems)
  const provider: Provider = new HostVolumeProvider(copyWay, {
    fileSystems,
    hypervisor: { power: async (vm) => powers[vm] ?? 'gone' },
    openImages: async (images) => ({
      open: async (name) => {
        const image = images.find((one) => one.name === name)?.image
        assert.ok(image !== undefined && 'file' in image.storage)
        return openHostFile(image.storage.file)
      },
      [Symbol.asyncDispose]: async () => undefined,
    }),
    openDirectory: (path) => openHostFile(join(path, 'data')),
    ...options,
  })
  const undoHandlers = volumeUndoHandlers(fileSystems)
  const session: ProviderSession = {
    snapshotSetId: crypto.randomUUID(),
    undo: new Cleanup(undoLog().log, undoHandlers),
    emit: () => undefined,
    signal: new AbortController().signal,
    abandon: () => assert.fail('nothing is to be abandoned'),
  }
  const residue = async () => (await readdir(base, { recursive: true })).filter((name) => name.includes('umbra-'))
  const dispose = () => rm(base, { recursive: true })
  return { vms, powers, volumes, made, free, provider, undoHandlers, session, residue, [Symbol.asyncDispose]: dispose }
}

async function prepare(provider: Provider, session: ProviderSession, volumes: readonly Volume[]): Promise<void> {
  for (const volume of volumes) await provider.beginPrepareSnapshot(session, volume, 0)
  await provider.endPrepareSnapshots(session)
}

const fileOf = (volume: Volume) => (volume.properties.image as { storage: { file: string } }).storage.file

for (const way of ['subvolume', 'reflink'] as const) {
  providerContract(`the ${way} provider`, async () => {
    const made = await sandbox(way)
    return {
      ...made,
      change: (volume) => writeFile(fileOf(volume), Buffer.alloc(8192, crypto.randomUUID())),
      content: async (volume) => new Uint8Array(await readFile(fileOf(volume))),
      [Symbol.asyncDispose]: () => made[Symbol.asyncDispose](),
    }
  })

  describe(`the ${way} provider`, () => {
    test('takes no copy of a VM that has been started, and names each that was', async () => {
      await using made = await sandbox(way)
      const { provider, session, volumes, powers, residue } = made
      await prepare(provider, session, volumes)
      Object.assign(powers, { web: 'paused', db: 'running' }) // one that was off may not even stand still
      await assert.rejects(provider.commitSnapshots(session, volumes, held), (error: Error) => {
        assert.match(error.message, /web: .*the VM is paused/)
        assert.match(error.message, /db: .*the VM is running/)
        return true
      })
      assert.deepEqual(made.made, [])
      await provider.abortSnapshots(session)
      assert.deepEqual(await residue(), [])
    })

    test('throws away copies during which a VM was started, or had been used', async () => {
      const disturbances: ((made: Awaited<ReturnType<typeof sandbox>>) => unknown)[] = [
        ({ powers }) => Object.assign(powers, { web: 'running' }),
        ({ volumes }) => appendFileSync(fileOf(volumes[1] as Volume), 'more'),
      ]
      for (const disturb of disturbances) {
        await using made = await sandbox(way)
        const { session, volumes, residue, provider } = made
        const push = made.made.push.bind(made.made)
        made.made.push = (...names) => {
          disturb(made)
          return push(...names)
        }
        await prepare(provider, session, volumes)
        await assert.rejects(provider.commitSnapshots(session, volumes, held), /web: it must not be used/)
        await provider.abortSnapshots(session)
        assert.deepEqual(await residue(), [])
      }
    })

    test('waits for a commit that is still on its way before it removes everything (law 8)', async () => {
      await using made = await sandbox(way)
      const { provider, session, volumes, residue } = made
      await prepare(provider, session, volumes)
      const committing = provider.commitSnapshots(session, volumes, held).then(
        () => undefined,
        () => undefined,
      )
      await provider.abortSnapshots(session)
      assert.deepEqual(await residue(), [])
      await committing
      assert.deepEqual(await residue(), [])
    })

    test('registers every copy before it makes any (law 1), and a replay of the records removes them', async () => {
      await using made = await sandbox(way)
      const { provider, session, volumes, undoHandlers, residue } = made
      const records: JsonObject[] = []
      const log = {
        add: async (record: JsonObject) => {
          assert.deepEqual(made.made, [])
          return records.push(record)
        },
        done: () => undefined,
      }
      await prepare(provider, { ...session, undo: new Cleanup(log, undoHandlers) }, volumes)
      await provider.commitSnapshots(session, volumes, held)
      assert.notDeepEqual(await residue(), [])
      const replay = async () => {
        for (const record of records) await undoHandlers[String(record.undo)]?.(record as { undo: string })
      }
      await replay()
      assert.deepEqual(await residue(), [])
      await replay()
    })

    test('does not touch what has the name of its copy', async () => {
      await using made = await sandbox(way)
      const { provider, session, volumes, vms } = made
      const mark = `umbra-${session.snapshotSetId.slice(0, 8)}`
      const name = way === 'subvolume' ? join(vms, `.${mark}`) : `${fileOf(volumes[2] as Volume)}.${mark}.copy`
      await writeFile(name, 'somebody’s')
      await assert.rejects(prepare(provider, session, volumes), { code: 'VOLUME_COPY_FAILED' })
      await provider.abortSnapshots(session)
      assert.ok(existsSync(name))
    })

    test('gives up while it can still be done well when the file system fills up', async () => {
      const clock = new ManualClock()
      await using made = await sandbox(way, { clock })
      const { provider, session, volumes } = made
      const abandoned: unknown[] = []
      const watched = { ...session, abandon: (reason: Error) => void abandoned.push(reason) }
      await prepare(provider, watched, volumes)
      await provider.commitSnapshots(watched, volumes, held)
      await provider.preFinalCommitSnapshots(watched)
      made.free.bytes = 0
      await clock.advance(1000)
      await new Promise((resolve) => setTimeout(resolve, 50))
      assert.equal((abandoned[0] as { code?: string })?.code, 'VSS_INSUFFICIENT_STORAGE')
      await provider.deleteSnapshots(watched)
    })

    test('copies a directory, and says where the copy lies', async () => {
      await using made = await sandbox(way)
      const { provider, session, vms } = made
      const path = join(vms, 'ledger')
      await mkdir(path)
      await writeFile(join(path, 'data'), 'before')
      const volume = directoryVolume(path)
      assert.ok((await provider.supports(volume)) > 1)
      await prepare(provider, session, [volume])
      await provider.commitSnapshots(session, [volume], held)
      await writeFile(join(path, 'data'), 'after')
      const [copy] = await provider.preFinalCommitSnapshots(session)
      assert.equal(await readFile(join(copy?.path ?? '', 'data'), 'utf8'), 'before')
      await using source = await (copy as NonNullable<typeof copy>).open()
      assert.equal(source.sizeBytes, 6)
      await provider.deleteSnapshots(session)
      assert.deepEqual(await made.residue(), [])
    })
  })
}

const directoryVolume = (path: string): Volume => {
  return { id: 'l', component: 'l', caption: 'l', name: 'l', properties: { kind: 'host-directory', path } }
}

describe('the subvolume provider', () => {
  test('makes one copy for all disks of an instant, and another for the next', async () => {
    await using made = await sandbox('subvolume')
    const { provider, session, volumes } = made
    await prepare(provider, session, volumes)
    await provider.commitSnapshots(session, volumes, held)
    assert.equal(made.made.length, 1)
    await provider.deleteSnapshots(session)
    await prepare(provider, session, volumes)
    await provider.commitSnapshots(session, volumes.slice(0, 2), held)
    await provider.commitSnapshots(session, volumes.slice(2), held)
    assert.equal(new Set(made.made.slice(1)).size, 2)
    const copies = await provider.preFinalCommitSnapshots(session)
    assert.equal(new Set(copies.map(({ path }) => dirname(path ?? ''))).size, 2)
    await provider.deleteSnapshots(session)
    assert.deepEqual(await made.residue(), [])
  })
})

describe('which volumes are copied where they lie', () => {
  const changed = (volume: Volume, properties: JsonObject): Volume => {
    return { ...volume, properties: { ...volume.properties, ...properties } }
  }

  test('those at rest, on file systems that can', async () => {
    for (const way of ['subvolume', 'reflink'] as const) {
      await using made = await sandbox(way)
      const [volume] = made.volumes
      assert.ok(volume !== undefined)
      assert.equal(await made.provider.supports(volume), way === 'subvolume' ? 30 : 20)
      assert.equal(await made.provider.supports(changed(volume, { atRest: false })), 0)
      const link = join(made.vms, 'link.raw')
      await symlink(fileOf(volume), link)
      for (const image of [
        { format: 'raw', storage: { blockDevice: '/dev/sdx' } },
        { format: 'raw', storage: { file: link } },
        { format: 'raw', storage: { file: '/nowhere/to/be/found' } },
        { format: 'vmdk', storage: { file: fileOf(volume) } },
      ]) {
        assert.equal(await made.provider.supports(changed(volume, { image })), 0, JSON.stringify(image))
      }
    }
    await using elsewhere = await sandbox('reflink')
    const real = new HostVolumeProvider(reflinkWay({ ...hostFileSystems(), reflinks: async () => false }), {
      fileSystems: hostFileSystems(),
      hypervisor: { power: async () => 'off' },
      openImages: () => assert.fail('nobody reads'),
    })
    for (const volume of elsewhere.volumes) assert.equal(await real.supports(volume), 0)
  })

  test('an image with a relative name beneath only beside itself; one whose data lie elsewhere not at all', async () => {
    await using subvolume = await sandbox('subvolume')
    await using reflink = await sandbox('reflink')
    const answers = async (bytes: Buffer) => {
      const volume = subvolume.volumes[0] as Volume
      await writeFile(fileOf(volume), bytes)
      const image = { format: 'qcow2', storage: { file: fileOf(volume) } }
      const qcow2 = changed(volume, { image })
      const chosen = await chooseProvider([subvolume.provider, reflink.provider], qcow2)
      return chosen?.name
    }
    assert.equal(await answers(qcow2Header({})), 'Umbra Btrfs Provider')
    assert.equal(await answers(qcow2Header({ backing: '/images/base.raw' })), 'Umbra Btrfs Provider')
    assert.equal(await answers(qcow2Header({ backing: 'nbd://host/disk' })), 'Umbra Btrfs Provider')
    assert.equal(await answers(qcow2Header({ backing: 'base.raw' })), 'Umbra Reflink Provider')
    assert.equal(await answers(qcow2Header({ backing: '/images/../base.raw' })), 'Umbra Reflink Provider')
    assert.equal(await answers(qcow2Header({ externalData: true })), undefined)
    assert.equal(await answers(Buffer.from('no qcow2 at all')), undefined)
  })
})

function qcow2Header({ backing = '', externalData = false }: { backing?: string; externalData?: boolean }): Buffer {
  const bytes = Buffer.alloc(4096)
  bytes.write('QFI\xfb', 'latin1')
  bytes.writeUInt32BE(3, 4)
  if (backing !== '') bytes.writeBigUInt64BE(1024n, 8)
  bytes.writeUInt32BE(Buffer.byteLength(backing), 16)
  bytes.writeBigUInt64BE(externalData ? 4n : 0n, 72)
  bytes.write(backing, 1024)
  return bytes
}

describe('the undo of a copy', () => {
  const undo = volumeUndoHandlers(hostFileSystems())
  const step = (name: string, path: string, directoryInode: number) =>
    undo[name]?.({ undo: name, path, directoryInode })

  test('removes nothing that does not have a name of ours', async () => {
    await using made = await sandbox('reflink')
    const { ino } = (await hostFileSystems().facts(made.vms)) ?? { ino: 0 }
    const file = fileOf(made.volumes[0] as Volume)
    await assert.rejects(async () => step('remove-copy', file, ino))
    await assert.rejects(async () => step('remove-copy', `${made.vms}/x.umbra-12345678.copy/../${basename(file)}`, ino))
    await assert.rejects(async () => step('delete-subvolume', made.vms, ino))
    const directory = join(made.vms, '.umbra-12345678')
    await mkdir(directory)
    await assert.rejects(async () => step('delete-subvolume', directory, ino), /it is no subvolume/)
    assert.ok(existsSync(file) && existsSync(directory))
  })

  test('does not take a copy for removed where its file system is not mounted', async () => {
    await using made = await sandbox('reflink')
    const path = join(made.vms, 'x.raw.umbra-12345678.copy')
    await assert.rejects(async () => step('remove-copy', path, 1), /mounted\?/)
    await assert.rejects(async () => step('remove-copy', '/not/here/x.umbra-12345678.copy', 1), /mounted\?/)
  })
})
