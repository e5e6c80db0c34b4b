/**
 * The overlay provider on the simulated host: the contract of all providers, and what is its own: one short call for each
 * VM at the instant (law 4), a commit that arrives late (law 8), disks that fill up, readers that must end before a merge.
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { providerContract } from '../../test/contract/provider.contract.ts'
import { type FaultAt, FaultPlan, faulty } from '../../test/sim/faulty.ts'
import { leftovers } from '../../test/sim/leftovers.ts'
import type { ManualClock } from '../../test/sim/manual-clock.ts'
import { type SimVmSpec, simulatedWorld } from '../../test/sim/sim-world.ts'
import { undoLog } from '../../test/sim/undo-log.ts'
import { Cleanup } from '../base/cleanup.ts'
import { defaultPolicy } from '../vm/method.ts'
import { vmUndoHandlers } from '../vm/undo.ts'
import { VmWriter } from '../vm/vm-writer.ts'
import type { Provider, ProviderSession, Volume } from '../vss/provider.ts'
import type { FrozenWriters, HeldWrites } from '../vss/windows.ts'
import { type OpenImages, OverlayProvider, type OverlayProviderOptions } from './overlay-provider.ts'

const small = { sizeBytes: 256 * 1024 }
const twoVms: Record<string, SimVmSpec> = {
  web01: { disks: { sda: small, sdb: small } },
  old95: { disks: { sda: small } },
}

async function sandbox(fault?: FaultAt, options: Partial<OverlayProviderOptions> = {}) {
  const directory = await mkdtemp(join(tmpdir(), 'umbra-overlay-'))
  const world = simulatedWorld(twoVms, { directory, stepsPerCall: 0 })
  const plan = new FaultPlan(fault)
  const hypervisor = faulty(world.hypervisor, plan, 'hypervisor')
  const clock = world.clock as ManualClock
  const opened: string[] = []
  const openImages: OverlayProviderOptions['openImages'] = async (images) => {
    const sources = new Map(images.map(({ name, image }) => [name, world.openImage(image)]))
    opened.push(images.map(({ name }) => name).join(' '))
    const reader: OpenImages = {
      async open(name) {
        const source = sources.get(name)
        assert.ok(source !== undefined, name)
        return { ...source, [Symbol.asyncDispose]: async () => undefined }
      },
      async [Symbol.asyncDispose]() {
        for (const source of sources.values()) await source[Symbol.asyncDispose]()
      },
    }
    return reader
  }
  const provider: Provider = new OverlayProvider({
    hypervisor,
    openImages,
    makeLayer: (path, base, sizeBytes) => world.makeWritableCopy(path, base, sizeBytes),
    overlayDirectory: world.path('/overlays'),
    minimumFreeBytes: 1,
    clock,
    ...options,
  })
  const policy = { ...defaultPolicy, method: 'checkpoint', instant: 'set' } as const
  const { components } = await new VmWriter({ hypervisor: world.hypervisor, policy, workDirectory: '/' }).onIdentify()
  const volumes = components.flatMap((component) => component.volumes)
  const undoHandlers = vmUndoHandlers(world.hypervisor, clock)
  const abandoned: Error[] = []
  const session: ProviderSession = {
    snapshotSetId: crypto.randomUUID(),
    undo: new Cleanup(undoLog().log, undoHandlers, { clock }),
    emit: () => undefined,
    signal: new AbortController().signal,
    abandon: (reason) => void abandoned.push(reason),
  }
  const dispose = () => rm(directory, { recursive: true })
  return {
    world,
    plan,
    clock,
    provider,
    volumes,
    undoHandlers,
    session,
    abandoned,
    opened,
    [Symbol.asyncDispose]: dispose,
  }
}

const frozen = {} as FrozenWriters
const held = {} as HeldWrites

async function prepare(provider: Provider, session: ProviderSession, volumes: readonly Volume[]): Promise<void> {
  for (const volume of volumes) await provider.beginPrepareSnapshot(session, volume, 0)
  await provider.endPrepareSnapshots(session)
}

providerContract('the overlay provider', async () => {
  const made = await sandbox()
  const { world } = made
  const vmOf = ({ caption }: Volume) => caption
  let changes = 0
  return {
    provider: made.provider,
    volumes: made.volumes,
    undoHandlers: made.undoHandlers,
    change: async (volume) => world.guest(vmOf(volume)).write(volume.name, 4096, `changed ${++changes}`),
    content: async (volume) => world.diskBytes(vmOf(volume), volume.name),
    residue: async () => leftovers(world),
    [Symbol.asyncDispose]: () => made[Symbol.asyncDispose](),
  }
})

describe('the overlay provider', () => {
  test('merges the disks of one VM one after the other: each merge rewrites the definition of the VM', async () => {
    await using made = await sandbox()
    const { world, provider, volumes, session } = made
    const underWay = new Map<string, number>()
    let most = 0
    const merge = world.hypervisor.mergeOverlay.bind(world.hypervisor)
    world.hypervisor.mergeOverlay = async (vm, overlay) => {
      underWay.set(vm, (underWay.get(vm) ?? 0) + 1)
      most = Math.max(most, underWay.get(vm) ?? 0)
      await new Promise(setImmediate)
      await merge(vm, overlay)
      underWay.set(vm, (underWay.get(vm) ?? 0) - 1)
    }
    await prepare(provider, session, volumes)
    await provider.commitSnapshots(session, volumes, held)
    await provider.deleteSnapshots(session)
    assert.equal(most, 1)
    assert.deepEqual(leftovers(world), [])
  })

  test('supports disks that can be opened, and no others', async () => {
    await using made = await sandbox()
    const [volume] = made.volumes
    assert.ok(volume !== undefined)
    const { image: _, ...unreadable } = volume.properties
    assert.equal(made.provider.supports(volume), 10)
    assert.equal(made.provider.supports({ ...volume, properties: unreadable }), 0)
  })

  test('does at the instant one call for each VM, and nothing else (law 4)', async () => {
    await using made = await sandbox()
    const { provider, session, volumes, plan } = made
    await prepare(provider, session, volumes)
    const before = plan.calls.length
    await provider.preCommitSnapshots(session, volumes, frozen)
    const instants = await provider.commitSnapshots(session, volumes, held)
    await provider.postCommitSnapshots(session, volumes, frozen)
    const during = plan.calls.slice(before)
    assert.equal(during.length, 2)
    for (const call of during) assert.match(call, /createOverlays/)
    assert.equal(instants.length, 2)
    await provider.deleteSnapshots(session)
  })

  test('registers every overlay before it makes any (law 1)', async () => {
    await using made = await sandbox({ at: 1, fault: 'fail before' })
    const { provider, volumes, world, plan, undoHandlers } = made
    let registered = 0
    const log = {
      add: async () => {
        assert.deepEqual(plan.calls, [], 'an overlay was made before all were registered')
        return ++registered
      },
      done: () => undefined,
    }
    const session = { ...made.session, undo: new Cleanup(log, undoHandlers) }
    await assert.rejects(prepare(provider, session, volumes), /injected/)
    assert.equal(registered, volumes.length)
    await provider.abortSnapshots(session)
    assert.deepEqual(leftovers(world), [])
  })

  test('names every VM whose copy failed, and takes back those of the others', async () => {
    await using made = await sandbox({ at: 3, fault: 'fail before' })
    const { provider, session, volumes, world } = made
    await prepare(provider, session, volumes)
    await assert.rejects(provider.commitSnapshots(session, volumes, held), { code: 'VSS_PROVIDER_VETO' })
    await provider.abortSnapshots(session)
    assert.deepEqual(leftovers(world), [])
  })

  test('waits for a commit that is still on its way before it takes everything back (law 8)', async () => {
    await using made = await sandbox()
    const { session, volumes, world, clock } = made
    const late = Promise.withResolvers<void>()
    const slow = new Proxy(world.hypervisor, {
      get(target, property) {
        const value: unknown = Reflect.get(target, property, target)
        if (property === 'prepareOverlays') return async () => undefined
        if (property !== 'createOverlays') return typeof value === 'function' ? value.bind(target) : value
        return async (...args: Parameters<typeof target.createOverlays>) => {
          await late.promise
          await target.createOverlays(...args)
        }
      },
    })
    const provider: Provider = new OverlayProvider({
      hypervisor: slow,
      openImages: () => assert.fail('nobody reads'),
      makeLayer: () => assert.fail('nobody recovers'),
      overlayDirectory: world.path('/overlays'),
      minimumFreeBytes: 1,
      clock,
    })
    await prepare(provider, session, volumes)
    provider.commitSnapshots(session, volumes, held).catch(() => undefined) // the window has expired meanwhile
    const aborting = provider.abortSnapshots(session)
    await clock.advance(1000)
    late.resolve()
    await clock.drive(aborting, { idleMs: 1 })
    assert.deepEqual(leftovers(world), [])
  })

  test('does not wait for ever for a commit that never answers; what it made later the undo takes back', async () => {
    await using made = await sandbox({ at: 3, fault: 'hang after' })
    const { provider, session, volumes, world, clock } = made
    await prepare(provider, session, volumes)
    provider.commitSnapshots(session, volumes, held).catch(() => undefined)
    await assert.rejects(clock.drive(provider.abortSnapshots(session), { idleMs: 1 }), { code: 'DEADLINE_EXCEEDED' })
    await session.undo[Symbol.asyncDispose]()
    assert.deepEqual(leftovers(world), [])
  })

  test('opens one reader for each VM, and ends it before the merge', async () => {
    await using made = await sandbox()
    const { provider, session, volumes, opened, world } = made
    await prepare(provider, session, volumes)
    await provider.commitSnapshots(session, volumes, held)
    const copies = await provider.preFinalCommitSnapshots(session)
    for (const copy of copies) {
      await using source = await copy.open()
      assert.equal(source.sizeBytes, small.sizeBytes)
    }
    assert.deepEqual(opened.toSorted(), ['sda', 'sda sdb'])
    await provider.deleteSnapshots(session)
    assert.deepEqual(leftovers(world), [])
  })

  test('keeps an overlay that could not be merged on the record, so that it is tried again', async () => {
    await using made = await sandbox()
    const { provider, session, volumes, world } = made
    await prepare(provider, session, volumes)
    await provider.commitSnapshots(session, volumes, held)
    const reader = world.openImage({ format: 'raw', storage: { file: world.path('/images/web01-sda.raw') } })
    await assert.rejects(provider.deleteSnapshots(session), { code: 'CLEANUP_INCOMPLETE' })
    assert.ok(leftovers(world).some((line) => line.startsWith('web01 sda lies on')))
    await reader[Symbol.asyncDispose]()
    await provider.deleteSnapshots(session)
    assert.deepEqual(leftovers(world), [])
  })

  test('does not touch a file that has the name of its overlay', async () => {
    await using made = await sandbox()
    const { provider, session, volumes, world } = made
    const [volume] = volumes
    assert.ok(volume !== undefined)
    const path = `${String(volume.properties.location)}.umbra-${session.snapshotSetId.slice(0, 8)}`
    await writeFile(path, 'somebody’s')
    await assert.rejects(provider.beginPrepareSnapshot(session, volume, 0), { code: 'MERGE_REFUSED' })
    await provider.abortSnapshots(session)
    assert.ok(existsSync(path))
    assert.deepEqual(leftovers(world), [`stray file ${path}`])
  })
})

describe('a host that fills up', () => {
  test('is refused before anything is made', async () => {
    await using made = await sandbox(undefined, { minimumFreeBytes: Number.MAX_SAFE_INTEGER })
    const { provider, session, volumes, plan } = made
    const [volume] = volumes
    assert.ok(volume !== undefined)
    await assert.rejects(provider.beginPrepareSnapshot(session, volume, 0), { code: 'VSS_INSUFFICIENT_STORAGE' })
    assert.deepEqual(plan.calls, [])
  })

  test('ends the session while it can still be ended well; the watch ends with the set', async () => {
    const limit = { bytes: 1 }
    await using made = await sandbox(undefined, {
      get minimumFreeBytes() {
        return limit.bytes
      },
    })
    const { session, volumes, abandoned, world, clock } = made
    const provider: Provider = new OverlayProvider({
      hypervisor: world.hypervisor,
      openImages: () => assert.fail('nobody reads'),
      makeLayer: () => assert.fail('nobody recovers'),
      overlayDirectory: world.path('/overlays'),
      clock,
      get minimumFreeBytes() {
        return limit.bytes
      },
    })
    await prepare(provider, session, volumes)
    await provider.commitSnapshots(session, volumes, held)
    await provider.preFinalCommitSnapshots(session)
    const seconds = async (count: number) => {
      for (let second = 0; second < count; second++) {
        await clock.advance(1000)
        await new Promise((resolve) => setTimeout(resolve, 20))
      }
    }
    await seconds(3)
    assert.deepEqual(abandoned, [])
    limit.bytes = Number.MAX_SAFE_INTEGER
    await seconds(2)
    assert.deepEqual(
      abandoned.map((error) => (error as { code?: string }).code),
      ['VSS_INSUFFICIENT_STORAGE'],
    )
    await provider.deleteSnapshots(session)
    assert.deepEqual(leftovers(world), [])
    assert.equal(clock.pending, 0)
  })
})
