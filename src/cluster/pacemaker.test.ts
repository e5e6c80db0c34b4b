/**
 * Pacemaker's answers: read as they are, refused when they are not what they should be, and never waited for (C1, C3; S2).
 * The texts are those of Pacemaker 2.1.5, shortened.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { ManualClock } from '../../test/sim/manual-clock.ts'
import { failure } from '../errors.ts'
import { pacemaker } from './pacemaker.ts'

const uuid = '6cfcc9ac-f155-50ea-a5dc-2566c16756cb'
const status = `<pacemaker-result api-version="2.25" request="crm_mon -1 --output-as=xml">
  <resources>
    <resource id="r-web" resource_agent="ocf:heartbeat:VirtualDomain" role="Started" active="true" orphaned="false" managed="true" failed="false" nodes_running_on="1">
      <node name="n1" id="1" cached="true"/>
    </resource>
    <group id="g" number_resources="2">
      <resource id="r-db" resource_agent="ocf::heartbeat:VirtualDomain" role="Stopped" target_role="Stopped" managed="false" orphaned="false" nodes_running_on="0"/>
      <resource id="ip" resource_agent="ocf:heartbeat:IPaddr2" role="Started" managed="true" orphaned="false"><node name="n2" id="2"/></resource>
    </group>
    <resource id="-x" resource_agent="ocf:heartbeat:VirtualDomain" role="Started" managed="true"/>
    <resource id="old" resource_agent="ocf:heartbeat:VirtualDomain" role="Started" managed="true" orphaned="true"/>
  </resources>
  <node_history>
    <node name="n1"><resource_history id="r-web" orphan="false" migration-threshold="1000000" fail-count="2"/></node>
    <node name="n2"><resource_history id="r-web" orphan="false" fail-count="INFINITY"/><resource_history id="r-db"/></node>
  </node_history>
  <status code="0" message="OK"/>
</pacemaker-result>`
const resources = `<resources>
  <template id="t" class="ocf" provider="heartbeat" type="VirtualDomain">
    <instance_attributes id="t-i"><nvpair id="t-s" name="snapshot" value="/var/saved"/></instance_attributes>
  </template>
  <primitive id="r-web" template="t">
    <instance_attributes id="w-i"><nvpair id="w-c" name="config" value="/etc/vms/web.xml"/></instance_attributes>
    <meta_attributes id="w-m"><nvpair id="w-t" name="target-role" value="Started"/></meta_attributes>
  </primitive>
  <group id="g"><primitive id="r-db" class="ocf" provider="heartbeat" type="VirtualDomain">
    <instance_attributes id="d-i"><nvpair id="d-c" name="config" value="/etc/vms/db.xml"/></instance_attributes>
  </primitive></group>
</resources>`

interface Answers {
  readonly crm_mon?: string | Error
  readonly cibadmin?: string | Error
  readonly crm_resource?: string | Error
}

function sandbox(answers: Answers = {}) {
  const ran: string[] = []
  const clock = new ManualClock()
  const all: Record<string, string | Error> = {
    crm_mon: status,
    cibadmin: resources,
    crm_node: 'n1\n',
    crm_resource: '',
    ...answers,
  }
  const run = async (command: string, args: readonly string[]) => {
    ran.push([command, ...args].join(' '))
    const answer = all[command] ?? ''
    if (answer instanceof Error) throw answer
    return answer
  }
  const configs: Record<string, string> = {
    '/etc/vms/web.xml': `<domain type='kvm'><name>web</name><uuid>${uuid.toUpperCase()}</uuid></domain>`,
  }
  const readConfig = async (path: string) => configs[path] ?? Promise.reject(new Error('not here'))
  return { cluster: pacemaker({ run, readConfig, clock }), ran, clock, configs }
}

const failed = (reason: string) => failure('COMMAND_FAILED', { command: 'crm_mon', reason })

describe('pacemaker', () => {
  test('tells which resources are VMs, where they run, and how the cluster sees them', async () => {
    const { cluster } = sandbox()
    assert.deepEqual(await cluster.vms(), [
      {
        resource: 'r-web',
        name: 'web',
        uuid,
        node: 'n1',
        here: true,
        role: 'Started',
        managed: true,
        failCount: 1_000_002,
        configPath: '/etc/vms/web.xml',
        memoryPath: '/var/saved/web.state',
      },
      {
        resource: 'r-db',
        name: 'db',
        here: false,
        role: 'Stopped',
        managed: false,
        failCount: 0,
        configPath: '/etc/vms/db.xml',
      },
    ])
  })

  for (const reason of ['spawn crm_mon ENOENT', 'it ended with 102', 'crm_mon: Connection refused']) {
    test(`has no VMs where no cluster runs (${reason}), after one question`, async () => {
      const { cluster, ran } = sandbox({ crm_mon: failed(reason) })
      assert.deepEqual(await cluster.vms(), [])
      assert.equal(ran.length, 1)
    })
  }

  test('in doubt refuses: a cluster that does not answer is not the same as none', async () => {
    const late = failure('DEADLINE_EXCEEDED', { what: 'crm_mon', limitMs: 5000 })
    for (const answer of [
      late,
      failed('it ended with 1'),
      '',
      '<other/>',
      `<!DOCTYPE x>${status}`,
      status.slice(0, 900),
    ])
      await assert.rejects(sandbox({ crm_mon: answer }).cluster.vms(), { code: 'CLUSTER_NOT_ANSWERING' })
    for (const answer of [late, '<pacemaker-result/>', '<resources>'])
      await assert.rejects(sandbox({ cibadmin: answer }).cluster.vms(), { code: 'CLUSTER_NOT_ANSWERING' })
  })

  test('is not asked again for a second, and is after a change', async () => {
    const { cluster, ran, clock } = sandbox()
    const asks = () => ran.filter((line) => line.startsWith('crm_mon')).length
    await Promise.all([cluster.vms(), cluster.vms()])
    assert.equal(asks(), 1)
    await clock.advance(1000)
    await cluster.vms()
    assert.equal(asks(), 2)
    await cluster.setAttribute('r-web', 'maintenance', 'true')
    await cluster.vms()
    assert.equal(asks(), 3)
  })

  test('changes attributes of the resource itself, and removes what was absent', async () => {
    const { cluster, ran } = sandbox()
    assert.equal(await cluster.attribute('r-web', 'target-role'), 'Started')
    assert.equal(await cluster.attribute('r-web', 'maintenance'), null)
    await assert.rejects(cluster.attribute('r-gone', 'maintenance'), { code: 'CLUSTER_NOT_ANSWERING' })
    ran.length = 0
    await cluster.setAttribute('r-web', 'maintenance', 'true')
    await cluster.setAttribute('r-web', 'maintenance', null)
    await cluster.settled(90_000)
    assert.deepEqual(ran, [
      'crm_resource --resource r-web --meta --set-parameter maintenance --parameter-value true',
      'crm_resource --resource r-web --meta --delete-parameter maintenance',
      'crm_resource --wait --timeout=90s',
    ])
  })
})
