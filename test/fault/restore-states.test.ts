/**
 * The table of docs/restore.md, row by row: which state a VM is in after a restore, and where its next start leads (R7).
 */
import assert from 'node:assert/strict'
import { mkdirSync } from 'node:fs'
import { describe, test } from 'node:test'
import type { PowerState } from '../../src/vm/hypervisor.ts'
import { type BackupPolicy, defaultPolicy } from '../../src/vm/method.ts'
import type { RestoreRequest } from '../../src/vss/restore-plan.ts'
import { Host, Incarnation, inPlace } from './harness.ts'

interface Row {
  readonly was: PowerState
  readonly method: BackupPolicy['method']
  readonly request?: Partial<RestoreRequest>
  readonly elsewhere?: true
  readonly after: PowerState
  /** The next start goes on where it was (with that state), or boots anew. */
  readonly next: 'boots' | 'running' | 'paused'
}

const rows: Readonly<Record<string, Row>> = {
  'running, by the agent or a checkpoint: off': { was: 'running', method: 'auto', after: 'off', next: 'boots' },
  'running, checkpoint: off': { was: 'running', method: 'checkpoint', after: 'off', next: 'boots' },
  'running, saved state: saved, and goes on running': {
    was: 'running',
    method: 'saved-state',
    after: 'saved',
    next: 'running',
  },
  'paused, saved state: saved, and goes on paused': {
    was: 'paused',
    method: 'saved-state',
    after: 'saved',
    next: 'paused',
  },
  'running, saved state, in another directory: saved, on the disks there': {
    was: 'running',
    method: 'saved-state',
    elsewhere: true,
    after: 'saved',
    next: 'running',
  },
  'running, saved state, as a copy: off': {
    was: 'running',
    method: 'saved-state',
    request: { as: 'copy' },
    after: 'off',
    next: 'boots',
  },
  'running, saved state, one disk only: off': {
    was: 'running',
    method: 'saved-state',
    request: { only: ['sda'] },
    after: 'off',
    next: 'boots',
  },
  'off: off': { was: 'off', method: 'auto', after: 'off', next: 'boots' },
  'off, to be started: running': {
    was: 'off',
    method: 'auto',
    request: { start: true },
    after: 'running',
    next: 'boots',
  },
  'running, saved state, to be started: goes on': {
    was: 'running',
    method: 'saved-state',
    request: { start: true },
    after: 'running',
    next: 'running',
  },
}

async function state(row: Row): Promise<void> {
  await using host = await Host.create({
    web01: { power: row.was, disks: { sda: { sizeBytes: 256 * 1024 }, sdb: { sizeBytes: 256 * 1024 } } },
  })
  const { world } = host
  const boot = world.guest('web01').memory?.bootId
  const made = await new Incarnation(host).backup({ ...defaultPolicy, method: row.method, autoRecovery: false })
  assert.ok(made.ended === 'done')
  world.tick(3) // it goes on, so that its disks are no longer those of its memory
  const to = world.path('/elsewhere')
  mkdirSync(to)
  const request = { ...inPlace, ...row.request, ...(row.elsewhere ? { to } : {}) }
  const outcome = await new Incarnation(host).restore(made.value.recoveryPoint, ['web01'], request)
  assert.ok(outcome.ended === 'done', JSON.stringify(outcome))
  const { uuid, power, disks } = await world.hypervisor.vm(request.as ?? 'web01')
  assert.equal(power, row.after)
  if (row.elsewhere) for (const { location } of disks) assert.ok(location.startsWith(to), location)
  if (power !== 'running') await world.hypervisor.start(uuid)
  assert.equal(await world.hypervisor.power(uuid), row.next === 'paused' ? 'paused' : 'running')
  const now = world.guestOf(uuid).memory?.bootId
  assert.equal(now === boot && boot !== undefined, row.next !== 'boots', 'memory goes on, or the guest boots anew')
}

describe('after a restore', () => {
  for (const [sentence, row] of Object.entries(rows)) test(sentence, () => state(row))
})
