/**
 * What a boot check will do, as a value: other names and identities for everything, the order that was asked for, and
 * what can not be checked said beforehand.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { CheckRequest } from '../vss/boot-check.ts'
import { type CheckableVm, planVmCheck } from './check-plan.ts'

const place = { token: '0badcafe', directory: '/state/checks/0badcafe', socketPath: '/state/checks/0badcafe/disks' }
const request: CheckRequest = { order: [], probes: [{ kind: 'agent' }], timeoutMs: 90_000 }
const uuids: Readonly<Record<string, string>> = {
  web: '11111111-2222-4333-8444-555555555555',
  db: '22222222-2222-4333-8444-555555555555',
}
const owner = { uid: 1, gid: 2, mode: 0o600 }
const at = `/var/lib/libvirt/swtpm/${uuids.web}/tpm2/tpm2-00.permall`

function stored(name: string, vm: Partial<CheckableVm['vm']> = {}): CheckableVm {
  const uuid = uuids[name] ?? ''
  return {
    component: { writerId: 'w', type: 'filegroup', logicalPath: '', name: uuid },
    configuration: `<domain><name>${name}</name></domain>`,
    documents: { nvram: Buffer.from('variables'), tpm: Buffer.from('state') },
    vm: {
      name,
      uuid,
      power: 'running',
      disks: [{ target: 'vda', location: `/vms/${name}.qcow2`, format: 'qcow2', sizeBytes: 4096 }],
      excluded: [],
      nics: [{ mac: '52:54:00:00:00:01', type: 'bridge', source: 'br0' }],
      hostFiles: [],
      owners: {},
      ...vm,
    },
  }
}

function plan(vms: readonly CheckableVm[], wanted: Partial<CheckRequest> = {}) {
  let identities = 0
  const newUuid = () => `00000000-0000-4000-8000-00000000000${++identities}`
  const make = { newUuid, newMac: () => '52:54:00:ff:ff:ff', choose: (below: number) => below - 1 }
  return planVmCheck(vms, { ...request, ...wanted }, place, make)
}

test('everything has another identity, and every disk is an overlay above its served one', () => {
  const { vms, exports, network, captions, steps, subnet } = plan([stored('web')])
  const [web] = vms
  assert.deepEqual([captions, network, subnet], [['web'], 'umbra-check-0badcafe', undefined])
  assert.deepEqual(exports, [{ name: '0-vda', component: web?.component, stream: 'disks/vda' }])
  const file = '/state/checks/0badcafe/0-vda.qcow2'
  assert.deepEqual(web?.overlays, [{ path: file, exportName: '0-vda', sizeBytes: 4096 }])
  const backing = { socketPath: place.socketPath, exportName: '0-vda', reconnectDelaySeconds: 1 }
  assert.deepEqual(web.edit, {
    name: 'umbra-check-0badcafe-web',
    uuid: web.uuid,
    separateFrom: { name: 'web', uuid: uuids.web },
    disks: { vda: { file, format: 'qcow2', backing } },
    nics: { '52:54:00:00:00:01': { mac: '52:54:00:ff:ff:ff' } },
    nvram: `/state/checks/0badcafe/${web.uuid}_VARS.fd`,
    isolation: { network, keptDisks: ['vda'] },
  })
  assert.notEqual(web.uuid, uuids.web)
  assert.match(
    steps.join('\n'),
    /^make the isolated.*\nstart web as umbra-check-0badcafe-web.*\nwait.*agent; at most 90 s\nremove/,
  )
})

test('the order that was asked for, then the others; disks of all under names of their own', () => {
  const both = [stored('web'), stored('db')]
  assert.deepEqual(plan(both).captions, ['web', 'db'])
  assert.deepEqual(plan(both, { order: ['db'] }).captions, ['db', 'web'])
  assert.deepEqual(plan(both, { order: [String(uuids.db), 'web', 'db'] }).captions, ['db', 'web'])
  assert.deepEqual(
    plan(both).exports.map(({ name }) => name),
    ['0-vda', '1-vda'],
  )
})

test('firmware variables and TPM state are copies, and neither lies where the original has its own', () => {
  const hostFiles = [
    { role: 'nvram' as const, document: 'nvram', path: '/var/lib/libvirt/qemu/nvram/web_VARS.fd', owner },
    { role: 'tpm' as const, document: 'tpm', path: at, owner },
  ]
  const [web] = plan([stored('web', { hostFiles })]).vms
  const nvram = `/state/checks/0badcafe/${web?.uuid}_VARS.fd`
  assert.equal(web?.edit.nvram, nvram)
  assert.deepEqual(
    web.files.map(({ path }) => path),
    [nvram, at.replace(String(uuids.web), web.uuid)],
  )
  assert.equal(web.tpmDirectory, `/var/lib/libvirt/swtpm/${web.uuid}`)
})

test('TPM state whose place is not called by the UUID is not written anywhere, which is said', () => {
  for (const path of ['/srv/tpm/tpm2-00.permall', `/etc/${uuids.web}/x`, `/swtpm/${uuids.web}/../../etc/x`]) {
    const { vms, warnings } = plan([stored('web', { hostFiles: [{ role: 'tpm', document: 'tpm', path, owner }] })])
    assert.deepEqual([vms[0]?.files, vms[0]?.tpmDirectory], [[], undefined], path)
    assert.deepEqual(warnings, ['web: its TPM is a new one: the state can not be placed here'])
  }
})

test('addresses are offered only where a probe needs them', () => {
  assert.equal(plan([stored('web')], { probes: [{ kind: 'run', command: 'true' }] }).subnet, undefined)
  assert.equal(plan([stored('web')], { probes: [{ kind: 'http', port: 80, path: '/' }] }).subnet, '198.19.255')
})

test('what is missing is said: disks that were not backed up, memory that is left out', () => {
  const excluded = [
    { target: 'vdb', reason: 'pass-through LUN' },
    { target: 'sdx', reason: 'removable medium' },
  ]
  assert.deepEqual(plan([stored('web', { excluded, memoryBytes: 1 })]).warnings, [
    'web: it starts without vdb, which was not backed up (pass-through LUN)',
    'web: its memory is left out: it starts from its disks, as after a power cut',
  ])
})

test('what can not be checked is an obstacle', () => {
  assert.deepEqual(plan([]).obstacles, ['there is no VM to start'])
  assert.deepEqual(plan([stored('web', { disks: [] })]).obstacles, ['web: the recovery point has none of its disks'])
  assert.deepEqual(plan([stored('web')], { order: ['gone'] }).obstacles, ['--order: gone is not among what is checked'])
})
