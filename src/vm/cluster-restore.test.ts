/**
 * The restore of a VM of a cluster (C2): offline by the cluster's hand before any file moves, its configuration in the file
 * the cluster starts it from, its former target role back; and whatever is killed, what was here comes back.
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { SimCluster } from '../../test/sim/sim-cluster.ts'
import { simulatedWorld } from '../../test/sim/sim-world.ts'
import { undoLog } from '../../test/sim/undo-log.ts'
import { Cleanup } from '../base/cleanup.ts'
import { type ClusterRestore, clusterRestorePlan, handBack, takeOffline } from './cluster-restore.ts'
import type { VmRestorePlan } from './restore-plan.ts'
import { vmUndoHandlers } from './undo.ts'

const root = await mkdtemp(join(tmpdir(), 'umbra-cluster-restore-'))
after(() => rm(root, { recursive: true }))

interface Setup {
  readonly role?: 'Stopped' | 'Started'
  /** The resource keeps memory whenever it is stopped. */
  readonly keepsMemory?: boolean
  readonly withoutConfig?: boolean
}

/** A host with one VM of a cluster, whose disk and configuration are files, and the plan of its restore. */
async function sandbox({ role, keepsMemory = false, withoutConfig = false }: Setup = {}) {
  const directory = await mkdtemp(join(root, 'host-'))
  const at = (name: string) => join(directory, name)
  const { hypervisor, clock } = simulatedWorld({})
  const cluster = new SimCluster()
  const memoryPath = at('web.state')
  const config = { configPath: at('web.xml'), ...(keepsMemory ? { memoryPath } : {}) }
  cluster.add({ resource: 'r-web', name: 'web', uuid: 'u', ...config })
  if (role !== undefined) cluster.attributes.set('r-web target-role', role)
  if (role === 'Stopped') cluster.stop('r-web')
  const acted: string[] = []
  cluster.act = async (resource, target) => {
    const runs = cluster.members.get(resource)?.node !== undefined
    const disk = await readFile(at('web.raw'), 'utf8').catch(() => 'no disk')
    if (target === 'Stopped' && runs) {
      cluster.stop(resource)
      acted.push(`stop on ${disk}`)
      if (keepsMemory) await writeFile(memoryPath, `memory of ${disk}`)
    }
    if (target !== 'Stopped' && !runs) {
      const memory = existsSync(memoryPath) ? await readFile(memoryPath, 'utf8') : 'no memory'
      const from = await readFile(at('web.xml'), 'utf8').catch(() => 'nothing')
      acted.push(`start on ${disk} with ${memory} from ${from}`)
      await rm(memoryPath, { force: true })
      cluster.change(resource, { node: 'n1', here: true, role: 'Started' })
    }
  }
  await writeFile(at('web.raw'), 'old')
  if (!withoutConfig) await writeFile(at('web.xml'), 'old.xml', { mode: 0o640 })
  const [found] = await cluster.vms()
  assert.ok(found !== undefined)
  const target = {
    source: { stream: 'disks/sda', sizeBytes: 3 },
    staged: at('web.raw.new'),
    path: at('web.raw'),
    format: 'raw',
  }
  const plain: VmRestorePlan = {
    uuid: 'u',
    name: 'web',
    edit: {},
    targets: [target],
    asides: [{ path: at('web.raw'), aside: at('web.raw.aside') }],
    links: [],
    needsUnconnected: false,
    steps: [
      'write sda to /x',
      'turn off and remove the VM web that is here now',
      'keep /x aside',
      'register web',
      'leave web off',
    ],
    warnings: [],
    obstacles: [],
  }
  const plan = clusterRestorePlan(plain, found, 'tok')
  const { records, log } = undoLog()
  const handlers = vmUndoHandlers(hypervisor, clock, cluster)
  const session = { components: [], undo: new Cleanup(log, handlers, { clock }), emit: () => undefined }
  const restore: ClusterRestore = { plan: { ...plan, cluster: found }, cluster, hypervisor }
  /** All the events of a restore, as a requester brings them about. */
  const run = async () => {
    await takeOffline(restore, session as unknown as Parameters<typeof takeOffline>[1])
    await writeFile(at('web.raw'), 'new')
    await handBack(restore, 'new.xml', session as unknown as Parameters<typeof handBack>[2])
    for (const [id, record] of [...records].reverse()) {
      await handlers[record.undo]?.(record)
      records.delete(id)
    }
  }
  const recover = async () => {
    for (const [, record] of [...records].reverse()) await handlers[record.undo]?.(record)
    for (const [, record] of [...records].reverse()) await handlers[record.undo]?.(record) // law 2
    await cluster.settled()
  }
  return { cluster, plan, at, acted, run, recover, files: async () => (await readdir(directory)).sort() }
}

describe('the restore of a VM of a cluster', () => {
  test('says what it will do', async () => {
    const { plan, at } = await sandbox()
    assert.deepEqual(plan.steps, [
      'write sda to /x',
      'take the cluster resource r-web offline',
      'keep /x aside',
      `write the configuration to ${at('web.xml')}`,
      'give r-web its former target role back',
    ])
    assert.deepEqual(plan.obstacles, [])
  })

  test('is refused where its cluster would not stop it, or runs it on another node', async () => {
    const { plan, cluster } = await sandbox()
    const [vm] = await cluster.vms()
    assert.ok(vm !== undefined)
    assert.match(clusterRestorePlan(plan, { ...vm, managed: false }, 't').obstacles.join(), /does not manage r-web/)
    const there = clusterRestorePlan(plan, { ...vm, node: 'n2', here: false }, 't')
    assert.match(there.obstacles.join(), /web is cluster resource r-web on n2: restore it there/)
  })

  for (const role of [undefined, 'Started', 'Stopped'] as const) {
    test(`gives a target role that was ${role ?? 'absent'} back`, async () => {
      const { cluster, acted, run, files, at } = await sandbox(role === undefined ? {} : { role })
      await run()
      assert.equal(cluster.attributes.get('r-web target-role'), role)
      assert.deepEqual(acted, role === 'Stopped' ? [] : ['stop on old', 'start on new with no memory from new.xml'])
      assert.deepEqual(await files(), ['web.raw', 'web.xml'])
      assert.equal(await readFile(at('web.xml'), 'utf8'), 'new.xml')
    })
  }

  test('never lets memory of the former disks meet the restored ones', async () => {
    const { acted, run, files } = await sandbox({ keepsMemory: true })
    await run()
    assert.deepEqual(acted, ['stop on old', 'start on new with no memory from new.xml'])
    assert.deepEqual(await files(), ['web.raw', 'web.xml'])
  })

  for (const setup of [
    {},
    { keepsMemory: true },
    { role: 'Stopped' },
    { role: 'Started', withoutConfig: true },
  ] as const) {
    test(`killed after any call brings back what was here: ${JSON.stringify(setup)}`, async () => {
      let killedAt = 0
      for (let reached = true; reached; killedAt++) {
        reached = false
        const { cluster, run, recover, files, at } = await sandbox(setup)
        const before = [await files(), cluster.members.get('r-web')?.node, cluster.attributes.get('r-web target-role')]
        let calls = 0
        cluster.afterwards = cluster.before = () => {
          if (calls++ !== killedAt) return
          reached = true
          throw new Error('killed')
        }
        const end = await run().then(
          () => 'done',
          (error: Error) => error.message,
        )
        cluster.afterwards = cluster.before = () => undefined
        if (end === 'done') break
        assert.equal(end, 'killed')
        await recover()
        const now = [await files(), cluster.members.get('r-web')?.node, cluster.attributes.get('r-web target-role')]
        assert.deepEqual(now, before, `after call ${killedAt}`)
        assert.equal(await readFile(at('web.raw'), 'utf8'), 'old', `after call ${killedAt}`)
      }
      assert.ok(killedAt > 1)
    })
  }
})
