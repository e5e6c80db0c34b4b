/**
 * Boot checks on the simulated host: what is told of guests that come up and that do not, that the original is never
 * touched, and that whatever fails, is cancelled or is killed, nothing is left (laws 1 and 2).
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { FaultPlan, faulty } from '../../test/sim/faulty.ts'
import { leftovers, remember } from '../../test/sim/leftovers.ts'
import { ManualClock } from '../../test/sim/manual-clock.ts'
import { type SimWorld, simulatedWorld, uuidOf } from '../../test/sim/sim-world.ts'
import { Cleanup, type UndoHandlers, type UndoLog, type UndoRecord } from '../base/cleanup.ts'
import { failure } from '../errors.ts'
import { domainXmlEditor } from '../libvirt/configuration-editor.ts'
import type { CheckRequest } from '../vss/boot-check.ts'
import type { EmitEvent } from '../vss/vocabulary.ts'
import { BootCheck } from './boot-check.ts'
import type { Hypervisor } from './hypervisor.ts'
import { vmUndoHandlers } from './undo.ts'

const writerId = '66841cd4-6ded-4f4b-8f17-fd23f8ddc3de'
const mac = '52:54:00:00:00:01'
const token = '0badcafe'
const names = ['web01', 'db01']
const copyOf = (index: number) => `00000000-0000-4000-8000-00000000000${index}`
const request: CheckRequest = { order: ['db01'], probes: [{ kind: 'agent' }], timeoutMs: 30_000 }

const components = (world: SimWorld) =>
  names.map((name) => {
    const { configuration } = world.vm(name)
    const component = { writerId, type: 'filegroup', logicalPath: '', name: uuidOf(name) } as const
    const disks = [{ target: 'sda', location: '/images/sda.qcow2', format: 'qcow2' }]
    const nics = [{ mac, type: 'network', source: 'default' }]
    const excluded = name === 'web01' ? [{ target: 'sdb', reason: 'pass-through LUN' }] : []
    const metadata = { name, uuid: uuidOf(name), power: 'running', disks, excluded, nics, hostFiles: [], owners: {} }
    const documents = { 'configuration.xml': Buffer.from(configuration) }
    return { component, metadata, streams: { 'disks/sda': 1024 * 1024 }, documents }
  })

function scene(plan: FaultPlan = new FaultPlan()) {
  const directory = `/state/checks/${token}`
  const clock = new ManualClock()
  const spec = { disks: { sda: {} }, nics: [{ mac, type: 'network', source: 'default' }] }
  const world = simulatedWorld({ web01: { ...spec, disks: { sda: {}, sdb: {} } }, db01: spec }, { clock })
  const place = { token, directory, socketPath: '/nowhere/disks' }
  let identities = 0
  const tools = {
    hypervisor: faulty<Hypervisor>(world.hypervisor, plan, 'hypervisor'),
    editor: domainXmlEditor,
    clock: clock,
    identities: { newUuid: () => copyOf(++identities), newMac: () => '52:54:00:ff:00:01', choose: () => 0 },
    createOverlay: async (path: string, { sizeBytes }: { sizeBytes: number }) =>
      world.createImage({ format: 'qcow2', storage: { file: path } }, sizeBytes),
    writerId,
  }
  const checker = new BootCheck(tools)
  const events: string[] = []
  const journal: { record: UndoRecord; done: boolean }[] = []
  const log: UndoLog = {
    add: async (record) => journal.push({ record, done: false }) - 1,
    done: (id) => {
      const entry = journal[id]
      if (entry !== undefined) entry.done = true
    },
  }
  const handlersOn = (hypervisor: Hypervisor): UndoHandlers => ({
    ...vmUndoHandlers(hypervisor, clock),
    'remove-check-directory': async ({ path }) => {
      for (const one of world.files.paths()) if (one.startsWith(`${path}/`)) world.files.remove(one)
    },
  })
  const handlers = handlersOn(tools.hypervisor)
  const run = async (wanted: CheckRequest = request) => {
    await using undo = new Cleanup(log, handlers, { clock: clock })
    await undo.defer({ undo: 'remove-check-directory', path: place.directory })
    const emit: EmitEvent = ({ event, vm, detail }) => void events.push([event, vm, detail].join(' '))
    return await checker.runCheck(checker.planCheck(components(world), wanted, place), {
      undo,
      emit,
      signal: plan.signal,
    })
  }
  /** What the watchdog does when the process is dead. */
  const replay = async () => {
    const again = handlersOn(world.connect())
    for (const { record, done } of [...journal].reverse()) if (!done) await again[record.undo]?.(record)
  }
  return { world, clock, run, replay, events, journal, place }
}

describe('a boot check', () => {
  test('starts copies one after the other, on one network, and removes them; the originals run on', async () => {
    const { world, clock, run, events, journal } = scene()
    const verdicts = await clock.drive(run())
    assert.deepEqual(
      verdicts.map(({ caption, passed, reason }) => [caption, passed, reason]),
      [
        ['db01', true, 'its agent answered after 0 s'],
        ['web01', true, 'its agent answered after 0 s'],
      ],
    )
    assert.ok(verdicts.every(({ screen }) => screen !== undefined))
    assert.deepEqual(verdicts[1]?.evidence.warnings, [
      'it starts without sdb, which was not backed up (pass-through LUN)',
    ])
    const started = events.filter((event) => /^(Network|Start)/.test(event))
    assert.deepEqual(started, [
      'Network  umbra-check-0badcafe, isolated',
      'Start db01 as umbra-check-0badcafe-db01',
      'Start web01 as umbra-check-0badcafe-web01',
    ])
    assert.deepEqual(leftovers(world), [])
    assert.ok(journal.every(({ done }) => done))
  })

  test('a silent agent is a failed check within the time, and the next VM is checked', async () => {
    const { world, clock, run } = scene()
    world.guestOf(copyOf(1)).agentRuns = false
    const verdicts = await clock.drive(run())
    assert.deepEqual([verdicts[0]?.passed, verdicts[1]?.passed], [false, true])
    assert.equal(verdicts[0]?.reason, 'agent silent after 30 s (the agent is not connected)')
    assert.deepEqual(leftovers(world), [])
  })

  test('a guest that turns itself off, or stops, is told at once', async () => {
    const { world, clock, run } = scene()
    world.guestOf(copyOf(1)).agentRuns = false
    world.guestOf(copyOf(2)).agentRuns = false
    const running = run()
    await clock.advance(3_000)
    world.shutDown('umbra-check-0badcafe-db01')
    await clock.advance(3_000)
    await world.hypervisor.suspend(copyOf(2))
    const [db01, web01] = await clock.drive(running)
    assert.match(db01?.reason ?? '', /^it turned itself off after [34] s$/)
    assert.match(web01?.reason ?? '', /^it stopped after \d s: a disk/)
    assert.ok(clock.monotonicMs() < 10_000)
    assert.deepEqual(leftovers(world), [])
  })

  test('what the hypervisor refuses to start is a verdict, with its words', async () => {
    const { world, clock, run } = scene()
    const { start } = world.hypervisor
    world.hypervisor.start = async (uuid) => {
      if (uuid === copyOf(1)) throw failure('HYPERVISOR_REFUSED', { call: 'start', reason: 'no such machine type' })
      await start.call(world.hypervisor, uuid)
    }
    const [db01, web01] = await clock.drive(run())
    assert.match(db01?.reason ?? '', /^it can not be started here: .*no such machine type/)
    assert.equal(web01?.passed, true)
    assert.deepEqual(leftovers(world), [])
  })

  test('a VM without an agent can not pass, and does not take the whole time', async () => {
    const { world, clock, run } = scene()
    const withoutAgent = /<channel[\s\S]*<\/channel>/
    for (const vm of world.vms.values()) vm.configuration = vm.configuration.replace(withoutAgent, '')
    world.beginning = remember(world)
    const verdicts = await clock.drive(run({ ...request, timeoutMs: 600_000 }))
    const told = 'it has no guest agent: it runs, but whether it came up nobody can tell'
    assert.deepEqual(
      verdicts.map(({ passed, reason }) => [passed, reason]),
      [
        [false, told],
        [false, told],
      ],
    )
    assert.ok(clock.monotonicMs() < 60_000)
    assert.deepEqual(leftovers(world), [])
  })

  test('a command that fails fails the check; its output is kept in part', async () => {
    const { world, clock, run } = scene()
    for (const index of [1, 2]) {
      const exitCode = index - 1
      world.guestOf(copyOf(index)).programs.set('/bin/sh', ([, text]) => {
        return { exitCode, stdout: `${text} ${'x'.repeat(10_000)}`, stderr: '' }
      })
    }
    const [db01, web01] = await clock.drive(run({ ...request, probes: [{ kind: 'run', command: 'try' }] }))
    assert.deepEqual([db01?.passed, web01?.passed], [true, false])
    assert.equal(web01?.reason, 'probe run=try: exit code 1')
    const [probe] = (db01?.evidence.probes ?? []) as { output: string }[]
    assert.equal(probe?.output.length, 2048)
    assert.ok(probe.output.startsWith('try xxx'))
  })

  test('where the network can have no addresses, a probe that needs one says so', async () => {
    const { world, clock, run } = scene()
    const { createIsolatedNetwork } = world.hypervisor
    world.hypervisor.createIsolatedNetwork = async (name: string, subnet?: string) => {
      if (subnet !== undefined) throw failure('HYPERVISOR_REFUSED', { call: 'network', reason: 'no dnsmasq' })
      await createIsolatedNetwork.call(world.hypervisor, name)
    }
    const [db01] = await clock.drive(run({ ...request, probes: [{ kind: 'tcp', port: 22 }] }))
    assert.match(
      db01?.reason ?? '',
      /^probe tcp=22: the isolated network can not be given addresses here: .*no dnsmasq/,
    )
    assert.deepEqual(leftovers(world), [])
  })
})

describe('whatever goes wrong, nothing is left', () => {
  for (const kind of ['fail', 'kill', 'cancel'] as const) {
    test(`${kind}, before and after every call of the hypervisor`, async () => {
      const counting = new FaultPlan()
      const counted = scene(counting)
      await counted.clock.drive(counted.run())
      assert.ok(counting.calls.length > 20)
      for (const [index, call] of counting.calls.entries()) {
        for (const moment of ['before', 'after'] as const) {
          const plan = new FaultPlan({ at: index + 1, fault: `${kind} ${moment}` })
          const { world, clock, run, replay } = scene(plan)
          const end = run().catch(() => undefined)
          await clock.drive(kind === 'kill' ? Promise.race([plan.killed, end]) : end)
          await clock.drive(replay())
          assert.deepEqual(leftovers(world), [], `${kind} ${moment} ${call}`)
        }
      }
    })
  }
})
