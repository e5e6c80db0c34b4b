import assert from 'node:assert/strict'
import { test } from 'node:test'
import { storedVm } from '../../test/fault/sample-vm.ts'
import { asOverlays, editOf, planInstant } from './instant-plan.ts'
import { planVmRestore, type RestoreSurroundings, type StoredVm } from './restore-plan.ts'

const here: RestoreSurroundings = {
  networks: [{ name: 'default', kind: 'network', active: true }],
  pathKind: () => 'absent',
  newUuid: '99999999-8888-4777-8666-555555555555',
  newMac: () => '52:54:00:ff:00:01',
  token: 'abcd',
  workDirectory: '/work',
}
const overlaid = (vm: StoredVm): StoredVm => ({ ...vm, disks: vm.disks.map((disk) => ({ ...disk, format: 'qcow2' })) })
const plan = (changes: Partial<StoredVm> = {}, surroundings: Partial<RestoreSurroundings> = {}) => {
  const request = { as: 'web02', networks: {}, start: true }
  return planInstant(planVmRestore(overlaid(storedVm(changes)), request, { ...here, ...surroundings }))
}

test('every disk becomes an overlay of its own where a copy would be, whatever its format was', () => {
  assert.deepEqual(
    plan().disks.map(({ target, stream, overlay }) => [target, stream, overlay]),
    [
      ['sda', 'disks/sda', '/images/web02-sda.qcow2'],
      ['sdb', 'disks/sdb', '/data/web02-sdb.qcow2'],
    ],
  )
})

test('firmware variables come out of the recovery point at once; memory never does', () => {
  const { files, disks, warnings } = plan({ memoryBytes: 4096 })
  assert.deepEqual(
    files.map(({ path }) => path),
    ['/nvram/web02_VARS.fd'],
  )
  assert.ok(disks.every(({ stream }) => stream !== 'memory'))
  assert.match(warnings.join(), /its memory is left out/)
})

test('it is a copy: another identity, in words as in deed', () => {
  const { uuid, edit, steps } = plan()
  assert.equal(uuid, here.newUuid)
  assert.equal(edit.uuid, here.newUuid)
  assert.equal(edit.nics?.['52:54:00:00:00:01']?.mac, '52:54:00:ff:00:01')
  assert.match(steps.join('\n'), /^pin [\s\S]*make the overlay [\s\S]*register web02 [\s\S]*\nstart web02$/)
})

test('the configuration names the overlay and what is served beneath it, for every disk', () => {
  const backing = (exportName: string) => ({ socketPath: '/s', exportName, reconnectDelaySeconds: 1 })
  assert.deepEqual(editOf(plan(), backing).disks, {
    sda: { file: '/images/web02-sda.qcow2', format: 'qcow2', backing: backing('sda') },
    sdb: { file: '/data/web02-sdb.qcow2', format: 'qcow2', backing: backing('sdb') },
  })
})

test('what stands in the way of a copy stands in its way; so do a VM without disks, and odd sizes', () => {
  assert.match(plan({}, { pathKind: () => 'file' }).obstacles.join(), /web02-sda.qcow2 exists already/)
  assert.match(plan({ disks: [] }).obstacles.join(), /no disk/)
  const odd = { target: 'sda', location: '/images/a', format: 'raw', sizeBytes: 513 }
  assert.match(plan({ disks: [odd] }).obstacles.join(), /sda has no whole number of sectors/)
})

test('stored formats are told as qcow2, and nothing else changes', () => {
  const component = { writerId: 'w', name: 'x' } as never
  const metadata = { name: 'web01', disks: [{ target: 'sda', format: 'raw' }] }
  const stored = { component, metadata, streams: {}, documents: {} }
  assert.deepEqual(asOverlays(stored).metadata, { name: 'web01', disks: [{ target: 'sda', format: 'qcow2' }] })
  assert.deepEqual(asOverlays({ ...stored, metadata: { disks: 7 } }).metadata, { disks: 7 })
})
