/**
 * Saved state: the VM is again what it was, its memory is never loaded once it has run, and never thrown away while it may
 * be all that is left (W2; laws 1, 2, 7).
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { leftovers } from '../../test/sim/leftovers.ts'
import type { ManualClock } from '../../test/sim/manual-clock.ts'
import { simulatedWorld, uuidOf } from '../../test/sim/sim-world.ts'
import { undoLog } from '../../test/sim/undo-log.ts'
import { Cleanup, type UndoRecord } from '../base/cleanup.ts'
import { defaultLimits } from '../vss/vocabulary.ts'
import { noCluster } from './cluster.ts'
import type { Hypervisor, PowerState } from './hypervisor.ts'
import { defaultPolicy, planMethod } from './method.ts'
import { savedState } from './saved-state.ts'
import { vmUndoHandlers } from './undo.ts'

const root = await mkdtemp(join(tmpdir(), 'umbra-saved-'))
after(() => rm(root, { recursive: true }))
const vm = uuidOf('web01')

/** The method on a VM, and the records that a journal would hold. */
async function sandbox(power: PowerState = 'running') {
  const directory = await mkdtemp(join(root, 'host-'))
  const world = simulatedWorld({ web01: { power } }, { directory })
  const workDirectory = world.path('/work')
  await mkdir(workDirectory)
  const { hypervisor } = world
  const clock = world.clock as ManualClock
  const { records, log } = undoLog()
  const handlers = vmUndoHandlers(hypervisor, clock)
  const undo = new Cleanup(log, handlers, { clock })
  const facts = await hypervisor.vm(vm)
  const policy = { ...defaultPolicy, method: 'saved-state' } as const
  const plan = planMethod(facts, { answering: false, why: '' }, policy)
  const told: string[] = []
  const about = { facts, plan, workDirectory, snapshotSetId: 'abcdef012345' }
  const { signal } = new AbortController()
  const context = { ...about, cluster: noCluster, undo, clock, limits: defaultLimits, emit: () => undefined, signal }
  const run = (on: Hypervisor = hypervisor) =>
    savedState({ ...context, hypervisor: on, tell: (detail) => void told.push(detail) })
  const left = () => [...records.values()]
  /** Another process, with what the journal holds. */
  const recover = async () => {
    for (const record of left().reverse()) await handlers[record.undo]?.(record)
  }
  return { world, hypervisor, clock, undo, run, left, recover, told, workDirectory }
}

describe('saved state', () => {
  for (const power of ['running', 'paused'] as const) {
    test(`returns a VM that was ${power} to that, and keeps its memory for the transfer`, async () => {
      const { world, undo, run, left, told } = await sandbox(power)
      const method = run()
      await method.prepareForSnapshot()
      assert.deepEqual(
        leftovers(world).filter((line) => line.startsWith('web01')),
        power === 'running' ? ['web01 is paused and was running'] : [],
      )
      await method.freeze()
      await method.thaw()
      await method.postSnapshot([], undefined)
      const [memory] = method.outcome().files
      assert.ok(memory !== undefined && 'path' in memory && existsSync(memory.path))
      assert.deepEqual(
        left().map(({ undo: name }) => name),
        ['remove-file'],
      )
      await undo[Symbol.asyncDispose]()
      assert.deepEqual(leftovers(world), [])
      assert.deepEqual(told, [`${power} -> saved`, `saved -> ${power}`])
    })
  }

  test('registers the way back before it saves (law 1), with the state it found (law 7)', async () => {
    const { run, left, hypervisor } = await sandbox('paused')
    const before: UndoRecord[] = []
    const watching = new Proxy(hypervisor, {
      get(target, property) {
        if (property === 'save') before.push(...left())
        const value: unknown = Reflect.get(target, property, target)
        return typeof value === 'function' ? value.bind(target) : value
      },
    })
    await run(watching).prepareForSnapshot()
    assert.deepEqual(
      before.map(({ undo, power }) => [undo, power]),
      [['return-vm', 'paused']],
    )
  })

  test('abort brings the VM back from every point, once or twice, and leaves no memory image', async () => {
    for (const steps of [0, 1, 2]) {
      const { world, undo, run } = await sandbox()
      const method = run()
      if (steps > 0) await method.prepareForSnapshot()
      if (steps > 1) await method.postSnapshot([], undefined)
      await method.abort()
      await method.abort()
      await undo[Symbol.asyncDispose]()
      assert.deepEqual(leftovers(world), [], `after ${steps} steps`)
    }
  })

  test('sets the clock of a guest that stood still, and does not fail when its agent is silent', async () => {
    const { world, clock, run, told } = await sandbox()
    const method = run()
    await method.prepareForSnapshot()
    await clock.advance(60_000)
    await method.postSnapshot([], undefined)
    assert.equal(method.outcome().pausedMs, 60_000)
    await method.complete?.()
    assert.equal(world.guest('web01').memory?.clockLagMs, 0)
    world.guest('web01').behaviour.answers = 'never'
    await clock.drive(method.complete?.() ?? Promise.resolve())
    assert.equal(told.at(-2), 'guest clock set')
    assert.match(told.at(-1) ?? '', /the guest clock could not be set/)
  })
})

describe('memory that has run', () => {
  test('is never loaded again: after its VM went on and was turned off, only the disks count', async () => {
    const { world, hypervisor, run, recover } = await sandbox()
    const method = run()
    await method.prepareForSnapshot()
    await method.postSnapshot([], undefined) // the VM goes on; then Umbra is killed, and the VM loses its power
    world.guest('web01').writeRecord()
    await hypervisor.turnOff(vm)
    await recover()
    assert.equal(await hypervisor.power(vm), 'off')
    await hypervisor.start(vm)
    assert.equal(world.guest('web01').memory?.damaged, false)
    assert.deepEqual(leftovers(world), ['web01 was restarted'])
  })

  test('changes its name before its VM resumes, so that a crash between the two is told from one before', async () => {
    const { world, run, workDirectory, hypervisor } = await sandbox()
    let atResume: string[] = []
    const watching = new Proxy(hypervisor, {
      get(target, property) {
        const value: unknown = Reflect.get(target, property, target)
        if (property !== 'resume') return typeof value === 'function' ? value.bind(target) : value
        return async (uuid: string) => {
          atResume = await readdir(workDirectory)
          await target.resume(uuid)
        }
      },
    })
    const method = run(watching)
    await method.prepareForSnapshot()
    await method.postSnapshot([], undefined)
    assert.equal(atResume.length, 1)
    assert.match(atResume[0] ?? '', /\.memory\.kept$/)
    assert.equal(world.vm('web01').live?.power, 'running')
  })
})

describe('the memory of a VM that is off', () => {
  test('is loaded by the next process, and only then thrown away', async () => {
    const { world, hypervisor, run, recover, workDirectory } = await sandbox()
    const never = new Proxy(hypervisor, {
      get(target, property) {
        const value: unknown = Reflect.get(target, property, target)
        if (property === 'restoreSaved') return () => Promise.reject(new Error('killed'))
        return typeof value === 'function' ? value.bind(target) : value
      },
    })
    await assert.rejects(run(never).prepareForSnapshot(), /killed/)
    assert.equal(await hypervisor.power(vm), 'off')
    world.hypervisorDown = 'libvirtd is down'
    await assert.rejects(recover())
    assert.equal((await readdir(workDirectory)).length, 1, 'it is all that is left of the VM')
    world.hypervisorDown = undefined
    await recover()
    assert.deepEqual(leftovers(world), [])
  })

  test('is not looked at while a save that nobody waits for any more is still under way', async () => {
    const { world, clock, hypervisor, run, left, recover, workDirectory } = await sandbox()
    const method = run()
    await method.prepareForSnapshot()
    // As if the save were still being written: libvirt has stopped the VM and is busy with it.
    world.vm('web01').busy = 'save'
    const recovering = recover()
    await clock.advance(10_000)
    assert.deepEqual(
      (await readdir(workDirectory)).map((name) => name.endsWith('.memory')),
      [true],
    )
    assert.deepEqual(
      left().map(({ undo }) => undo),
      ['return-vm'],
    )
    world.vm('web01').busy = undefined
    await clock.drive(recovering, { idleMs: 2 })
    assert.equal(await hypervisor.power(vm), 'running')
    assert.deepEqual(leftovers(world), [])
  })
})
