/**
 * The child-VM-snapshot method on a simulated VM: the nested session, what becomes of its failures, and that the guest is
 * released whatever happens.
 */
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { leftovers } from '../../test/sim/leftovers.ts'
import { simRecoveryTools } from '../../test/sim/sim-recovery.ts'
import type { RequestorBehaviour } from '../../test/sim/sim-requestor.ts'
import { simulatedWorld } from '../../test/sim/sim-world.ts'
import { undoLog } from '../../test/sim/undo-log.ts'
import { Cleanup } from '../base/cleanup.ts'
import { OverlayProvider } from '../libvirt/overlay-provider.ts'
import { BackupComponents } from '../vss/backup-components.ts'
import type { ShadowCopy } from '../vss/provider.ts'
import { defaultLimits, type SessionEvent, snapshotAttributes } from '../vss/vocabulary.ts'
import { WritableCopies } from '../vss/windows.ts'
import { defaultPolicy } from './method.ts'
import { openAutoRecovery } from './recovery-ways.ts'
import { vmUndoHandlers } from './undo.ts'
import { VmWriter } from './vm-writer.ts'

type Event = Omit<SessionEvent, 'atMs'>

async function sandbox(requestor: Partial<RequestorBehaviour> = {}) {
  const directory = await mkdtemp(join(tmpdir(), 'umbra-child-'))
  const world = simulatedWorld({ shop: { disks: { sda: {}, sdb: {} }, requestor } }, { directory })
  const { hypervisor, clock } = world
  const undo = new Cleanup(undoLog().log, vmUndoHandlers(hypervisor, clock), { clock })
  const events: Event[] = []
  const tools = { ...simRecoveryTools(world), hypervisor, clock }
  const writer = new VmWriter({
    hypervisor,
    policy: { ...defaultPolicy, method: 'child-snapshot' },
    workDirectory: directory,
    clock,
    openAutoRecovery: () => openAutoRecovery(tools),
  })
  const provider = new OverlayProvider({
    hypervisor,
    openImages: () => assert.fail('nobody reads'),
    makeLayer: (path, base, sizeBytes) => world.makeWritableCopy(path, base, sizeBytes),
    overlayDirectory: directory,
    minimumFreeBytes: 1,
    clock,
  })
  const components = BackupComponents.initializeForBackup(
    {
      writers: [writer],
      providers: [provider],
      limits: defaultLimits,
      clock,
      undo,
      emit: (event) => void events.push(event),
      quiet: { hold: () => undefined, release: () => undefined },
      lockSetCreation: async () => ({ [Symbol.asyncDispose]: async () => undefined }),
      signal: new AbortController().signal,
      abandon: () => undefined,
    },
    'full',
  )
  const prepare = async () => {
    for (const { components: offered } of await components.gatherWriterMetadata())
      for (const component of offered) components.addComponent(component)
    await components.startSnapshotSet()
    await components.addVolumesOfComponents()
    await components.prepareForBackup()
  }
  const dispose = () => rm(directory, { recursive: true })
  return { world, events, components, prepare, undo, [Symbol.asyncDispose]: dispose }
}

describe('a child VM snapshot', () => {
  test('is the whole session of the guest, inside PrepareForSnapshot of the host', async () => {
    await using made = await sandbox()
    const { components, events, prepare, world } = made
    await prepare()
    await components.doSnapshotSet()
    const told = ['PrepareForSnapshot', 'Freeze', 'Commit', 'Thaw', 'PostSnapshot']
    assert.deepEqual(
      events
        .filter(({ event }) => told.includes(event))
        .map(({ event, writer, detail }) => `${event} ${writer ?? detail}`),
      [
        'PrepareForSnapshot Umbra VM Writer',
        'PrepareForSnapshot writers inside shop',
        'Freeze writers inside shop',
        'Commit the guest, of its own volumes',
        'Thaw writers inside shop',
        'PostSnapshot writers inside shop',
        'Freeze Umbra VM Writer',
        'Commit sda, sdb',
        'Thaw Umbra VM Writer',
        'PostSnapshot Umbra VM Writer',
      ],
    )
    await components[Symbol.asyncDispose]()
    assert.deepEqual(leftovers(world), [])
  })

  test('that a writer in the guest vetoes says which one, once, and why', async () => {
    await using made = await sandbox({ veto: 'ledger' })
    const { components, prepare, world } = made
    await prepare()
    await assert.rejects(components.doSnapshotSet(), (error: Error) => {
      assert.match(error.message, /^no VM was backed up: shop: a writer inside shop vetoed: .*ledger/)
      return true
    })
    await components[Symbol.asyncDispose]()
    assert.deepEqual(leftovers(world), [])
  })

  test('whose area overflows in the gap is a veto, before anything is rolled back', async () => {
    await using made = await sandbox({ overflow: 'after the commit' })
    const { components, prepare, world } = made
    await prepare()
    await assert.rejects(components.doSnapshotSet(), /the snapshot inside shop can not be relied upon/)
    await components[Symbol.asyncDispose]()
    assert.deepEqual(leftovers(world), [])
  })

  test('whose guest has no area for one of its volumes is a veto: that volume could not be rolled back', async () => {
    await using made = await sandbox()
    const { components, prepare, world } = made
    await prepare()
    const requestor = world.requestor('shop')
    const status = requestor.status.bind(requestor)
    requestor.status = async (set) => (await status(set)).slice(1)
    await assert.rejects(components.doSnapshotSet(), /the snapshot inside shop can not be relied upon: it has none of/)
    await components[Symbol.asyncDispose]()
    assert.deepEqual(leftovers(world), [])
  })

  test('gives copies that are read-only after PostSnapshot: a later write is an error (V8)', async () => {
    await using made = await sandbox()
    const { components, prepare } = made
    await prepare()
    const { copies } = await components.doSnapshotSet()
    const open = new WritableCopies([], async () => undefined)
    const closed = new WritableCopies([], async () => undefined)
    await closed[Symbol.asyncDispose]()
    for (const copy of copies as readonly Required<ShadowCopy>[]) {
      assert.ok(copy.writableImage(open))
      assert.throws(() => copy.writableImage(closed), { code: 'VSS_BAD_STATE' })
    }
    await components[Symbol.asyncDispose]()
  })

  test('is refused when the context of the session forbids auto-recovery', async () => {
    await using made = await sandbox()
    const { components, prepare, world } = made
    components.setContext(snapshotAttributes.VSS_VOLSNAP_ATTR_NO_AUTORECOVERY)
    await prepare()
    await assert.rejects(components.doSnapshotSet(), /the copy of sda can be recovered/)
    await components[Symbol.asyncDispose]()
    assert.deepEqual(leftovers(world), [])
  })
})
