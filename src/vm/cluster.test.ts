/**
 * A VM of a cluster (C1, C3): never on an overlay, saved only while its cluster looks away, and handed back as it was,
 * whatever is killed in between (laws 1, 2, 7).
 */
import assert from 'node:assert/strict'
import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { SimCluster } from '../../test/sim/sim-cluster.ts'
import { simulatedWorld, uuidOf } from '../../test/sim/sim-world.ts'
import { undoLog } from '../../test/sim/undo-log.ts'
import { Cleanup } from '../base/cleanup.ts'
import { OverlayProvider } from '../libvirt/overlay-provider.ts'
import { defaultLimits } from '../vss/vocabulary.ts'
import { elsewhere } from './cluster.ts'
import { clusteredCopies, requireStillHere } from './cluster-hold.ts'
import { clusteredHypervisor, withoutCluster } from './clustered-hypervisor.ts'
import type { Hypervisor } from './hypervisor.ts'
import { defaultPolicy, methods, planMethod } from './method.ts'
import { savedState } from './saved-state.ts'
import { vmUndoHandlers } from './undo.ts'
import { VmWriter } from './vm-writer.ts'

const root = await mkdtemp(join(tmpdir(), 'umbra-cluster-'))
after(() => rm(root, { recursive: true }))
const uuid = uuidOf('web01')
const policy = { ...defaultPolicy, method: 'saved-state' } as const
const deaf = { answering: false, why: '' } as const

/** A VM that its cluster started, with the records that a journal would hold. */
async function sandbox(former?: string) {
  const directory = await mkdtemp(join(root, 'host-'))
  const world = simulatedWorld({ web01: { persistent: false } }, { directory })
  const cluster = new SimCluster()
  cluster.add({ resource: 'r-web', name: 'web01', uuid })
  if (former !== undefined) cluster.attributes.set('r-web maintenance', former)
  const hypervisor = clusteredHypervisor(world.hypervisor, cluster)
  const { clock } = world
  const workDirectory = world.path('/work')
  await mkdir(workDirectory)
  const { records, log } = undoLog()
  const handlers = vmUndoHandlers(world.hypervisor, clock, cluster)
  const undo = new Cleanup(log, handlers, { clock })
  const facts = await hypervisor.vm('web01')
  const plan = planMethod(facts, deaf, policy)
  const told: string[] = []
  const tell = (detail: string) => void told.push(detail)
  const about = { cluster, facts, plan, workDirectory, snapshotSetId: 'abcdef012345', limits: defaultLimits }
  const rest = { undo, clock, emit: () => undefined, signal: new AbortController().signal, tell }
  const run = (on: Hypervisor = hypervisor) => savedState({ ...about, ...rest, hypervisor: on })
  /** Another process, with what the journal holds: newest first, and none is left out because another failed. */
  const recover = async () => {
    const failed: unknown[] = []
    for (const [id, record] of [...records].reverse()) {
      await Promise.resolve(handlers[record.undo]?.(record)).then(
        () => records.delete(id),
        (error: unknown) => failed.push(error),
      )
    }
    return failed
  }
  return { world, cluster, hypervisor, facts, plan, run, records, recover, workDirectory }
}

describe('a VM of a cluster', () => {
  test('can be saved without a stored configuration, and can not be a child-snapshot', async () => {
    const { facts, plan } = await sandbox()
    assert.deepEqual(plan.obstacles, [])
    const child = planMethod(facts, deaf, { ...policy, method: 'child-snapshot' })
    assert.match(
      child.obstacles.join(),
      /cluster resource r-web: a restart by the cluster would begin without its overlay/,
    )
    const { cluster: _, ...alone } = facts
    assert.notDeepEqual(planMethod(alone, deaf, policy).obstacles, [], 'without a cluster nobody would bring it back')
  })

  test('is never put on an overlay, by any method', async () => {
    const { hypervisor, cluster } = await sandbox()
    const openImages = () => Promise.reject(new Error('not in this test'))
    const made = { hypervisor, openImages, makeLayer: openImages, overlayDirectory: root }
    for (const method of methods.slice(1, 4) as ['guest-freeze', 'checkpoint', 'saved-state']) {
      const writer = new VmWriter({ hypervisor, cluster, policy: { ...policy, method }, workDirectory: root })
      const [component] = (await writer.onIdentify()).components
      const volumes = component?.volumes ?? []
      assert.ok(volumes.length > 0)
      for (const volume of volumes) {
        assert.equal(new OverlayProvider(made).supports(volume), 0)
        assert.match(volume.restriction ?? '', /would start it again without an overlay/)
      }
    }
  })

  test('has its copies from a backup job unless its agent would be lost by that', async () => {
    const { facts } = await sandbox()
    const job = (agent: typeof facts.agent, method: (typeof methods)[number]) =>
      clusteredCopies({ ...facts, agent }, method).backupJob
    assert.equal(job('connected', 'guest-freeze'), true)
    assert.equal(job('connected', 'saved-state'), false)
    assert.equal(job('none', 'saved-state'), true)
    assert.equal(job('none', 'offline'), false)
  })

  for (const former of [undefined, 'false', 'true'] as const) {
    test(`is saved only while its cluster looks away, and handed back with maintenance ${former ?? 'absent'}`, async () => {
      const { world, cluster, hypervisor, run, records, workDirectory } = await sandbox(former)
      const looked = new Set<string>()
      const watched = new Proxy(hypervisor, {
        get: (target, property) => {
          const value: unknown = Reflect.get(target, property, target)
          if (typeof value !== 'function') return value
          return (...args: unknown[]) => {
            if (['save', 'restoreSaved', 'resume'].includes(String(property)))
              looked.add(`${String(property)} ${cluster.attributes.get('r-web maintenance')}`)
            return Reflect.apply(value, target, args)
          }
        },
      })
      const method = run(watched)
      await method.prepareForSnapshot()
      await method.postSnapshot([], undefined)
      assert.deepEqual([...looked], ['save true', 'restoreSaved true', 'resume true'])
      assert.equal(await world.hypervisor.power(uuid), 'running')
      assert.equal(cluster.attributes.get('r-web maintenance'), former)
      await method.complete?.()
      assert.deepEqual([...records.values()], [])
      assert.deepEqual(await readdir(workDirectory), [])
    })
  }

  test('is back, and then managed as before, whichever call the process was killed after', async () => {
    let killedAt = 0
    for (let reached = true; reached; killedAt++) {
      reached = false
      const { world, cluster, run, recover, records } = await sandbox()
      let calls = 0
      const dead = () => {
        if (calls++ !== killedAt) return
        reached = true
        throw new Error('killed')
      }
      const dying = new Proxy(world.hypervisor, {
        get: (target, property) => {
          const value: unknown = Reflect.get(target, property, target)
          if (typeof value !== 'function') return value
          if (property === 'guest') return (uuid: string) => target.guest(uuid)
          return async (...args: unknown[]) => {
            const result: unknown = await Reflect.apply(value, target, args)
            dead()
            return result
          }
        },
      })
      cluster.before = dead
      cluster.afterwards = dead
      const method = run(dying)
      const work = async () => {
        await method.prepareForSnapshot()
        await method.postSnapshot([], undefined)
        await method.complete?.()
      }
      await work().catch((error: Error) => assert.equal(error.message, 'killed'))
      cluster.before = () => undefined
      cluster.afterwards = () => undefined
      assert.deepEqual(await recover(), [], `after call ${killedAt}`)
      assert.equal(records.size, 0)
      assert.equal(await world.hypervisor.power(uuid), 'running', `after call ${killedAt}`)
      assert.equal(cluster.attributes.size, 0, `after call ${killedAt}`)
    }
    assert.ok(killedAt > 8, `${killedAt}`)
  })

  test('is not brought back here once its cluster looks after it again, and its memory is kept', async () => {
    const { world, cluster, run, recover, workDirectory } = await sandbox()
    const stuck = new Proxy(world.hypervisor, {
      get: (target, property) => {
        if (property === 'restoreSaved') return () => Promise.reject(new Error('killed'))
        const value: unknown = Reflect.get(target, property, target)
        return typeof value === 'function' ? (...args: unknown[]) => Reflect.apply(value, target, args) : value
      },
    })
    await assert.rejects(run(stuck).prepareForSnapshot(), /killed/)
    cluster.attributes.delete('r-web maintenance')
    cluster.change('r-web', { node: 'n2', here: false })
    const failed = await recover()
    assert.match(String(failed[0]), /the cluster looks after r-web again; the memory in .* was left as it is/)
    assert.equal(await world.hypervisor.power(uuid), 'gone')
    assert.equal((await readdir(workDirectory)).length, 1)
  })

  test('keeps its cluster away as long as it is not back', async () => {
    const { world, cluster, run, records, recover } = await sandbox()
    const gone = new Proxy(world.hypervisor, {
      get: (target, property) => {
        if (property === 'restoreSaved') return () => Promise.reject(new Error('no memory on this host'))
        const value: unknown = Reflect.get(target, property, target)
        return typeof value === 'function' ? (...args: unknown[]) => Reflect.apply(value, target, args) : value
      },
    })
    await assert.rejects(run(gone).prepareForSnapshot())
    const handlers = vmUndoHandlers(gone, world.clock, cluster)
    const held = [...records.values()].find(({ undo }) => undo === 'manage-resource')
    assert.ok(held !== undefined)
    await assert.rejects(Promise.resolve(handlers['manage-resource']?.(held)), /the VM is not back/)
    assert.equal(cluster.attributes.get('r-web maintenance'), 'true')
    assert.deepEqual(await recover(), [])
    assert.equal(cluster.attributes.size, 0)
  })

  test('that has moved since it was planned is noticed before anything is frozen', async () => {
    const { cluster, hypervisor, facts } = await sandbox()
    await requireStillHere(cluster, hypervisor, facts)
    cluster.change('r-web', { node: 'n2', here: false })
    await assert.rejects(
      requireStillHere(cluster, hypervisor, facts),
      /its cluster runs it on n2 now, and ran it on n1/,
    )
    cluster.change('r-web', { node: 'n1' })
    await hypervisor.suspend(uuid)
    await assert.rejects(requireStillHere(cluster, hypervisor, facts), /it was running when it was planned/)
  })

  test('is undone by a hypervisor that asks no cluster', async () => {
    const { world, cluster, hypervisor } = await sandbox()
    cluster.before = () => {
      throw new Error('the cluster does not answer')
    }
    await assert.rejects(hypervisor.vm('web01'), /does not answer/, 'in doubt it is left alone')
    assert.equal((await withoutCluster(hypervisor).vm('web01')).uuid, uuid)
    assert.equal(withoutCluster(world.hypervisor), world.hypervisor)
  })

  test('that runs elsewhere is not found here, and the refusal says where it runs', async () => {
    const { cluster, hypervisor, world } = await sandbox()
    cluster.add({ resource: 'r-db', name: 'db', node: 'n2', here: false })
    await assert.rejects(hypervisor.vm('db'), {
      code: 'VM_NOT_FOUND',
      message: /db here \(cluster resource r-db on n2\)/,
    })
    const found = elsewhere(await cluster.vms(), await world.hypervisor.listVms())
    assert.deepEqual(found, [{ label: 'db', reason: 'cluster resource r-db on n2' }])
  })
})
