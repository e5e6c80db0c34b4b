/**
 * A VM that a real Pacemaker looks after (C1 to C3): through backups by each method and a restore the cluster counts no
 * failure and does nothing that it was not asked to do; and what it does when a VM is saved behind its back, so that these
 * tests are known to see it.
 *
 * Runs late: a cluster expects answers in time, and there is one of it on a host.
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { createDisks, sampleGuestXml } from '../../sample-guest/sample-guest.ts'
import { openHypervisor, recover } from '../../src/compose.ts'
import type { Hypervisor } from '../../src/vm/hypervisor.ts'
import { runUmbra } from '../umbra-process.ts'
import { beginClusterNode, type ClusterNode, crm, nodeName, skipCluster, status } from './cluster-node.ts'
import { killedAt } from './crash-tests.ts'
import {
  agentAnswers,
  beginStage,
  bootOf,
  eventually,
  inside,
  type Stage,
  type StageVm,
  skipLive,
  virsh,
  vmDirectory,
  writeText,
} from './stage.ts'
import { backUp, nothingIsLeft, restoreVm } from './stage-session.ts'
import { rarely } from './thorough.ts'

const name = 'umbra-ha1'
const resource = 'vm-ha1'
let stage: Stage
let node: ClusterNode
let hypervisor: Hypervisor
let vm: StageVm
let config = ''

const nvpair = (key: string, value: string) => `<nvpair id="${resource}-${key}" name="${key}" value="${value}"/>`
const op = (what: string, interval: string, timeout: string) =>
  `<op id="${resource}-${what}" name="${what}" interval="${interval}" timeout="${timeout}"/>`

async function begin(): Promise<void> {
  // Where files can be copied at rest, as a saved VM of a cluster needs it.
  stage = await beginStage('cluster', { mounts: { vms: { type: 'xfs', sizeBytes: 800 * 1024 * 1024 } } })
  const disks = await createDisks(stage.images, vmDirectory(stage, name), 'qcow2')
  const consolePath = join(stage.directory, `${name}.console`)
  config = await writeText(stage, `${name}.xml`, sampleGuestXml({ name, images: stage.images, disks, consolePath }))
  node = await beginClusterNode(join(stage.directory, 'node'))
  // A guest that has just been started hears no request to shut down, and would be given all its time.
  const parameters = nvpair('config', config) + nvpair('hypervisor', stage.libvirtd.uri) + nvpair('force_stop', 'true')
  const operations = op('monitor', '2s', '60s') + op('start', '0', '120s') + op('stop', '0', '120s')
  const primitive = `<primitive id="${resource}" class="ocf" provider="heartbeat" type="VirtualDomain">
    <instance_attributes id="${resource}-parameters">${parameters}</instance_attributes>
    <operations>${operations}</operations></primitive>`
  crm('cibadmin', '--create', '--scope', 'resources', '--xml-text', primitive)
  crm('crm_resource', '--wait', '--timeout=120s')
  hypervisor = await openHypervisor(stage.settings)
  const { uuid } = await hypervisor.vm(name)
  vm = { name, uuid, directory: vmDirectory(stage, name) }
  await agentAnswers(stage, vm)
}

async function end(): Promise<void> {
  await hypervisor?.[Symbol.asyncDispose]()
  await node?.[Symbol.asyncDispose]()
  await stage?.[Symbol.asyncDispose]()
}

/** What the cluster did, checks left out: they are begun again after a time of maintenance. */
const deeds = (): string[] =>
  [...status().matchAll(/<operation_history call="(\d+)" task="(\w+)" rc="(\d+)"/g)]
    .map(([, call, task, rc]) => `${task} ${call}: ${rc}`)
    .filter((deed) => !deed.startsWith('monitor'))
const failures = (): string[] => [...status().matchAll(/fail-count="[^"]*"|<failure [^>]*>/g)].map(([text]) => text)
const meta = (): string =>
  /<meta_attributes[\s\S]*?<\/meta_attributes>/.exec(crm('cibadmin', '--query', '--scope=resources'))?.[0] ?? ''
/** The cluster looks at the VM again, and likes what it sees. */
async function quietCluster(): Promise<void> {
  const checked = async () => (/task="monitor" rc="0"[^>]*interval="2000ms"/.test(status()) ? true : undefined)
  await eventually('a check by the cluster', checked, 60_000)
  crm('crm_resource', '--wait', '--timeout=120s')
  assert.deepEqual(failures(), [])
  assert.doesNotMatch(meta(), /maintenance|target-role/)
}

describe('a VM of a cluster', { skip: skipLive || skipCluster }, () => {
  before(begin)
  after(end)

  it('is shown as one, and is never told to be on an overlay', async () => {
    const environment = { UMBRA_CONNECT: stage.libvirtd.uri, UMBRA_STATE: stage.settings.stateDirectory }
    const { stdout, exitCode, stderr } = await runUmbra(['vms', name], environment)
    assert.equal(exitCode, 0, stderr)
    assert.match(stdout, new RegExp(`cluster resource ${resource}, on ${nodeName}\n`))
    assert.match(stdout, /unmet {2}no cluster restarts it/)
    const refused = backUp(stage, [name], { hypervisor, policy: { method: 'child-snapshot' } })
    await assert.rejects(refused, /a restart by the cluster would begin without its overlay/)
  })

  const ways = {
    'guest-freeze': 'Umbra Backup Job Provider',
    checkpoint: 'Umbra Backup Job Provider',
    'saved-state': 'Umbra Reflink Provider',
  } as const
  for (const [method, provider] of Object.entries(ways) as [keyof typeof ways, string][]) {
    it(`${method}: the cluster sees no failure and does nothing`, async (t) => {
      const [life, before] = [await bootOf(stage, vm), deeds()]
      const { vms } = await backUp(stage, [name], { hypervisor, policy: { method } })
      assert.equal(vms[0]?.method, method)
      assert.deepEqual(new Set(vms[0]?.disks.map((disk) => disk.provider)), new Set([provider]))
      t.diagnostic(`paused for ${vms[0]?.pausedMs} ms; read: ${vms[0]?.disks.map(({ how }) => how)}`)
      await quietCluster()
      assert.deepEqual(deeds(), before)
      assert.equal(await bootOf(stage, vm), life, 'it is the same life')
      await nothingIsLeft(stage, [vm])
    })
  }

  it('saved-state is refused where nothing but an overlay could copy the disks', async () => {
    const [life, before] = [await bootOf(stage, vm), deeds()]
    const providers = ['Umbra Backup Job Provider', 'Umbra Overlay Provider']
    const refused = backUp(stage, [name], { hypervisor, providers, policy: { method: 'saved-state' } })
    await assert.rejects(refused, /would start it again without an overlay; libvirt would lose its guest agent/)
    assert.deepEqual(deeds(), before)
    assert.equal(await bootOf(stage, vm), life)
  })

  it('is managed as before after kill -9 while it was saved', async () => {
    const [life, before] = [await bootOf(stage, vm), deeds()]
    await killedAt(stage, { at: 'saved', vm: name, withWatchdog: true })
    assert.match(meta(), /name="maintenance" value="true"/)
    assert.equal(await hypervisor.power(vm.uuid), 'gone')
    const recovered = await recover(stage.settings)
    assert.deepEqual(
      recovered.flatMap(({ failed }) => failed),
      [],
    )
    const undone = recovered.flatMap(({ undone }) => undone)
    const [back, managed] = [`return-vm ${name}`, `manage-resource ${name}`].map((step) => undone.indexOf(step))
    assert.ok(back !== undefined && managed !== undefined && back >= 0 && back < managed, undone.join(', '))
    await quietCluster()
    assert.deepEqual(deeds(), before)
    assert.equal(await bootOf(stage, vm), life)
  })

  it('is restored in its own place by way of its cluster', async () => {
    const { recoveryPoint } = await backUp(stage, [name], { hypervisor })
    await inside(stage, vm, 'echo later > /srv/a/later && sync')
    const life = await bootOf(stage, vm)
    // The cluster has started what was restored, and it is not yet certain to stay.
    await killedAt(stage, { at: 'handed back', vm: name, point: recoveryPoint })
    const recovered = await recover(stage.settings)
    assert.deepEqual(
      recovered.flatMap(({ failed }) => failed),
      [],
    )
    crm('crm_resource', '--wait', '--timeout=120s')
    await agentAnswers(stage, vm)
    assert.equal(await inside(stage, vm, 'cat /srv/a/later'), 'later', 'the former disks are back')
    await quietCluster()

    const formerConfig = await readFile(config, 'utf8')
    await restoreVm(stage, recoveryPoint, name, {}, { hypervisor })
    await agentAnswers(stage, vm)
    assert.notEqual(await bootOf(stage, vm), life)
    assert.equal(await inside(stage, vm, 'test -e /srv/a/later || echo gone'), 'gone')
    await quietCluster()
    assert.equal((await stage.hypervisor.vm(name)).persistent, false, 'its cluster keeps it, and nobody else')
    assert.notEqual(await readFile(config, 'utf8'), formerConfig)
    assert.equal(existsSync(`${config}.umbra-new`), false)
    await nothingIsLeft(stage, [vm])
  })

  it('saved-state without an agent: the copies are those of a backup job', rarely, async () => {
    await inside(stage, vm, '(sleep 1; mv /sbin/umbra-agent /run; killall qemu-ga) >/dev/null 2>&1 &')
    const left = async () => ((await hypervisor.vm(name)).agent === 'connected' ? undefined : true)
    await eventually('the end of the agent', left)
    const before = deeds()
    const providers = ['Umbra Backup Job Provider', 'Umbra Overlay Provider']
    const { vms } = await backUp(stage, [name], { hypervisor, providers, policy: { method: 'saved-state' } })
    assert.ok(vms[0]?.disks.every(({ provider }) => provider === providers[0]))
    await quietCluster()
    assert.deepEqual(deeds(), before)
    assert.equal(await hypervisor.power(vm.uuid), 'running')
    await nothingIsLeft(stage, [vm])
  })

  it('saved behind the back of its cluster: a failure, which these tests see', async () => {
    const before = deeds()
    virsh(stage, 'save', name, join(stage.directory, 'behind'))
    await eventually('the failure', async () => (failures().length > 0 ? true : undefined), 60_000)
    crm('crm_resource', '--wait', '--timeout=120s')
    assert.notDeepEqual(deeds(), before, 'it was started again, without its memory')
  })
})
