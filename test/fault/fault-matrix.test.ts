/**
 * The fault matrix of a backup: every call of every port fails, hangs, is cancelled and is the last one of its process, in
 * turn. Afterwards the host is as it was and a point is complete or not there (S1; laws 1, 2, 3, 6, 7, 8, 12).
 */
import { describe, test } from 'node:test'
import type { BackupResult } from '../../src/requester/backup.ts'
import type { BackupPolicy } from '../../src/vm/method.ts'
import type { SimVmSpec } from '../sim/sim-world.ts'
import { Host, Incarnation } from './harness.ts'
import { afterBackup } from './judge.ts'
import { runMatrix, type Scenario } from './matrix.ts'

const small = { sizeBytes: 256 * 1024 }
const twoDisks = { sda: small, sdb: small }
const oneDisk = { sda: small }

/** Guest-freeze, checkpoint and a VM that is off; and saved state of a running and of a paused VM. */
const methods: Readonly<Record<string, { method: BackupPolicy['method']; vms: Record<string, SimVmSpec> }>> = {
  'guest-freeze and checkpoint': {
    method: 'auto',
    vms: {
      web01: { disks: twoDisks, nvram: Buffer.from('variables') },
      old95: { agent: 'none', disks: oneDisk },
      cold: { power: 'off', disks: oneDisk },
    },
  },
  'saved state': {
    method: 'saved-state',
    vms: { mail: { disks: twoDisks }, held: { power: 'paused', disks: oneDisk } },
  },
}

function scenario(method: string, instant: BackupPolicy['instant']): Scenario<BackupResult, { host: Host }> {
  const { method: wanted, vms } = methods[method] as (typeof methods)[string]
  return {
    prepare: async () => ({ host: await Host.create(vms) }),
    async run({ host }, plan) {
      const incarnation = new Incarnation(host, plan)
      return { incarnation, outcome: await incarnation.backup({ method: wanted, require: 'crash', instant }) }
    },
    judge: ({ host }, outcome) => afterBackup(host, outcome),
  }
}

const ofTheHypervisor = (call: string) => call.includes(' hypervisor.')
/** All but the end of a draft's marker, which must not fail: "Known gaps" in README.md. */
const thatMayFail = (call: string) => !/ files\.rm\(\d{8}T\d{6}Z-/.test(call)

for (const method of Object.keys(methods)) {
  for (const instant of ['vm', 'set'] as const) {
    describe(`a backup by ${method}, one instant for each ${instant}`, () => {
      const one = scenario(method, instant)
      test('killed before any call', async (t) =>
        t.diagnostic(`${await runMatrix(one, { faults: ['kill before'] })} cases`))
      test('killed after any call', async (t) =>
        t.diagnostic(`${await runMatrix(one, { faults: ['kill after'] })} cases`))
      test('with any call failing', async (t) =>
        t.diagnostic(`${await runMatrix(one, { faults: ['fail before', 'fail after'], at: thatMayFail })} cases`))
      test('cancelled at any call', async (t) =>
        t.diagnostic(`${await runMatrix(one, { faults: ['cancel before', 'cancel after'] })} cases`))
      test('with any call of the hypervisor or a guest hanging', async (t) =>
        t.diagnostic(`${await runMatrix(one, { faults: ['hang before', 'hang after'], at: ofTheHypervisor })} cases`))
    })
  }
}
