/**
 * The Virtual Machine writer passes the contract of all writers, whatever the method; and what is its own: Freeze and Thaw
 * without work but guest-freeze's (W8), what was achieved and not what was asked for (law 12).
 */
import assert from 'node:assert/strict'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { writerContract } from '../../test/contract/writer.contract.ts'
import { FaultPlan, faulty } from '../../test/sim/faulty.ts'
import { leftovers } from '../../test/sim/leftovers.ts'
import type { SimVmSpec } from '../../test/sim/sim-world.ts'
import { simulatedWorld } from '../../test/sim/sim-world.ts'
import { undoLog } from '../../test/sim/undo-log.ts'
import { Cleanup } from '../base/cleanup.ts'
import { refOf } from '../vss/components.ts'
import { WritableCopies } from '../vss/windows.ts'
import type { WriterSession } from '../vss/writer.ts'
import { type BackupPolicy, defaultPolicy } from './method.ts'
import { vmUndoHandlers } from './undo.ts'
import { VmWriter } from './vm-writer.ts'

const small = { sizeBytes: 256 * 1024 }

async function sandbox(vms: Record<string, SimVmSpec>, policy: Partial<BackupPolicy> = {}) {
  const directory = await mkdtemp(join(tmpdir(), 'umbra-writer-'))
  const world = simulatedWorld(vms, { directory, stepsPerCall: 0 })
  const workDirectory = world.path('/work')
  await mkdir(workDirectory)
  const plan = new FaultPlan()
  const hypervisor = faulty(world.hypervisor, plan, 'hypervisor')
  const writer = new VmWriter({
    hypervisor,
    policy: { ...defaultPolicy, autoRecovery: false, ...policy }, // without it there is no child-snapshot
    workDirectory,
    clock: world.clock,
  })
  const undoHandlers = vmUndoHandlers(world.hypervisor, world.clock)
  const { components } = await writer.onIdentify()
  const session: WriterSession = {
    snapshotSetId: crypto.randomUUID(),
    components: components.map(refOf),
    undo: new Cleanup(undoLog().log, undoHandlers, { clock: world.clock }),
    emit: () => undefined,
    signal: new AbortController().signal,
  }
  const dispose = () => rm(directory, { recursive: true })
  return { world, writer, undoHandlers, session, plan, components, [Symbol.asyncDispose]: dispose }
}

for (const [name, vms, method] of [
  ['guest-freeze', { web01: { disks: { sda: small } } }, 'auto'],
  ['checkpoint', { old95: { agent: 'none', disks: { sda: small } } }, 'auto'],
  ['saved state', { mail: { disks: { sda: small } }, held: { power: 'paused', disks: { sda: small } } }, 'saved-state'],
  ['offline', { cold: { power: 'off', disks: { sda: small } } }, 'auto'],
] as const) {
  writerContract(`the VM writer by ${name}`, async () => {
    const { writer, undoHandlers, world, [Symbol.asyncDispose]: dispose } = await sandbox(vms, { method })
    return { writer, undoHandlers, state: async () => leftovers(world), [Symbol.asyncDispose]: dispose }
  })
}

/** No copy of these VMs is to be recovered. */
const closed = new WritableCopies([], async () => undefined)

describe('the VM writer', () => {
  test('does nothing in Freeze and Thaw but freeze and thaw the guests that are frozen (W8)', async () => {
    await using made = await sandbox({ web01: {}, old95: { agent: 'none' }, cold: { power: 'off' } })
    const { writer, session, plan } = made
    await writer.onPrepareBackup(session)
    await writer.onPrepareSnapshot(session)
    const before = plan.calls.length
    await writer.onFreeze(session)
    await writer.onThaw(session)
    const during = plan.calls.slice(before).map((call) => call.replace(/^.*\)\./, ''))
    assert.deepEqual(during, ['freeze()', 'thaw()'])
  })

  test('asks every VM and gathers every no (law 10)', async () => {
    await using made = await sandbox({
      web01: { guest: { freeze: 'refused' } },
      web02: {},
      web03: { guest: { freeze: 'half' } },
    })
    const { writer, session, world } = made
    await writer.onPrepareBackup(session)
    await writer.onPrepareSnapshot(session)
    const vetoes = await writer.onFreeze(session)
    assert.deepEqual(vetoes.map(({ component, code }) => [component, code]).toSorted(), [
      ['web01', 'VSS_E_WRITERERROR_RETRYABLE'],
      ['web03', 'VSS_E_WRITERERROR_RETRYABLE'],
    ])
    assert.deepEqual(await writer.onThaw(session), [])
    assert.deepEqual(leftovers(world), [], 'a freeze that failed half-way is thawed as well (law 1)')
  })

  test('says what was achieved: a guest that thawed by itself is crash-consistent (law 12)', async () => {
    await using made = await sandbox({ web01: {} })
    const { writer, session, world } = made
    await writer.onPrepareBackup(session)
    await writer.onPrepareSnapshot(session)
    await writer.onFreeze(session)
    await world.guest('web01').thaw() // somebody in the guest
    await writer.onThaw(session)
    await writer.onPostSnapshot(session, [], closed)
    const [outcome] = await writer.outcomes(session)
    assert.equal(outcome?.metadata.consistency, 'crash')
    assert.match(String(outcome?.metadata.reasons), /only 0 still were at the end: the guest thawed by itself/)
  })

  test('vetoes a VM that fell below what is required, after the copy, in PostSnapshot (W10)', async () => {
    await using made = await sandbox({ web01: {} }, { require: 'filesystem' })
    const { writer, session, world } = made
    await writer.onPrepareBackup(session)
    await writer.onPrepareSnapshot(session)
    await writer.onFreeze(session)
    await world.guest('web01').thaw()
    await writer.onThaw(session)
    const vetoes = await writer.onPostSnapshot(session, [], closed)
    assert.match(vetoes[0]?.reason ?? '', /crash consistency was reached where filesystem is required/)
  })

  test('looks again at PrepareForBackup: facts of Identify may be old', async () => {
    await using made = await sandbox({ web01: {} })
    const { writer, session, world } = made
    world.vm('web01').busy = 'migration'
    const [veto] = await writer.onPrepareBackup(session)
    assert.match(veto?.reason ?? '', /occupied by migration/)
  })

  test('vetoes a VM whose disks have changed since Identify: none may be left out silently', async () => {
    await using made = await sandbox({ web01: { disks: { sda: small, sdb: small } } })
    const { writer, session, world } = made
    const { live } = world.vm('web01')
    assert.ok(live !== undefined)
    live.configuration = live.configuration.replace(/<disk (?:(?!<disk )[\s\S])*?dev='sdb'[\s\S]*?<\/disk>/, '')
    const [veto] = await writer.onPrepareBackup(session)
    assert.match(veto?.reason ?? '', /have just changed/)
  })

  test('vetoes, before anything is touched, a VM whose copies could not be rolled back (the helper VM can not be built)', async () => {
    await using made = await sandbox(
      { shop: {} },
      { autoRecovery: true, method: 'child-snapshot', recovery: 'on-host' },
    )
    const { world, session } = made
    const asked: string[] = []
    const writer = new VmWriter({
      hypervisor: world.hypervisor,
      policy: { ...defaultPolicy, method: 'child-snapshot', recovery: 'on-host' },
      workDirectory: '/',
      requireRecovery: async (way) => {
        asked.push(way)
        throw new Error('no kernel')
      },
    })
    await writer.onIdentify()
    const [veto] = await writer.onPrepareBackup(session)
    assert.match(veto?.reason ?? '', /no kernel/)
    assert.deepEqual(asked, ['on-host'])
    assert.deepEqual(leftovers(world), [])
  })

  test('vetoes a VM whose copies would have to be rolled back and can not, because its guest has writers only now', async () => {
    await using made = await sandbox({ shop: { requestor: { writers: [] } } }, { autoRecovery: true })
    const { writer, session, world } = made
    world.requestor('shop').behaviour.writers = ['database']
    const [veto] = await writer.onPrepareBackup(session)
    assert.match(veto?.reason ?? '', /how it can be backed up, have just changed/)
  })

  test('backs up a VM that is off, paused or without an agent without disturbing it (W9)', async () => {
    await using made = await sandbox({ cold: { power: 'off' }, held: { power: 'paused' }, old95: { agent: 'none' } })
    const { writer, session, plan, world } = made
    const before = plan.calls.length
    await writer.onPrepareBackup(session)
    for (const step of ['onPrepareSnapshot', 'onFreeze', 'onThaw'] as const) await writer[step](session)
    await writer.onPostSnapshot(session, [], closed)
    await writer.onBackupComplete(session)
    for (const call of plan.calls.slice(before)) assert.match(call, /hypervisor\.vm\(/, 'facts are all it asks for')
    assert.deepEqual(leftovers(world), [])
  })

  test('groups VMs by the instant that the policy asks for', async () => {
    for (const [instant, groups] of [
      ['set', 1],
      ['vm', 2],
    ] as const) {
      await using made = await sandbox({ web01: {}, web02: {} }, { instant })
      assert.equal(new Set(made.components.map((component) => component.instant)).size, groups)
    }
  })
})
