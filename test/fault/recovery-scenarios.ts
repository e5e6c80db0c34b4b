/**
 * Recoveries of the fault matrix: what a process that was killed at a telling moment left, undone by a recovery that meets
 * trouble itself, and then by another one.
 */
import assert from 'node:assert/strict'
import type { Recovered } from '../../src/requester/journal.ts'
import { FaultPlan } from '../sim/faulty.ts'
import { backupScenarios } from './backup-scenarios.ts'
import { type Host, Incarnation, preparedOnce } from './harness.ts'
import type { Scenario } from './matrix.ts'
import { restoreScenarios } from './restore-scenarios.ts'

/** By scenario: the calls after which its process is killed. */
const backups: Readonly<Record<string, readonly RegExp[]>> = {
  'a backup by guest-freeze and checkpoint, one instant for each set': [
    /freeze\(/,
    /createOverlays\(/,
    /images\.open\(/,
  ],
  'a backup by saved state, one instant for each set': [/save\(/, /restoreSaved\(/, /createOverlays\(/, /resume\(/],
}
const restores: Readonly<Record<string, readonly RegExp[]>> = {
  'a restore in place over a running VM': [/undefine\(/, /\.define\(/],
  'a restore in place over a paused VM, memory included': [/keepSaved\(/],
  'a restore to another directory, of a running VM with memory': [/\.define\(/],
}

interface HasHost {
  readonly host: Host
}

/** A host on which a process was killed, and what that process worked on, but for the host. */
interface Killed<H> extends HasHost {
  readonly workedOn: H
}

export type RecoveryScenario = Scenario<readonly Recovered[], Killed<HasHost>>

export const recoveryScenarios: Readonly<Record<string, RecoveryScenario>> = {
  ...all(backups, backupScenarios),
  ...all(restores, restoreScenarios),
}

function all<T, H extends HasHost>(
  moments: Readonly<Record<string, readonly RegExp[]>>,
  scenarios: Readonly<Record<string, Scenario<T, H>>>,
): Record<string, RecoveryScenario> {
  const named = Object.entries(moments).flatMap(([name, calls]) =>
    calls.map((call) => {
      const killed = scenarios[name]
      assert.ok(killed !== undefined, name)
      const what = call.source.replace(/\W+$/, '').replaceAll('\\', '').replace(/^\./, '')
      return [`${name}, killed after ${what}`, scenario(killed, call)] as const
    }),
  )
  return Object.fromEntries(named)
}

function scenario<T, H extends HasHost>(
  killed: Scenario<T, H>,
  call: RegExp,
): Scenario<readonly Recovered[], Killed<H>> {
  return {
    prepare: preparedOnce(async () => {
      const at = await numberOf(killed, call)
      const workedOn = await killed.prepare()
      const { outcome } = await killed.run(workedOn, new FaultPlan({ at, fault: 'kill after' }))
      assert.equal(outcome.ended, 'killed')
      return { host: workedOn.host, workedOn }
    }),
    async run({ host }, plan) {
      const incarnation = new Incarnation(host, plan)
      return { incarnation, outcome: await incarnation.recover() }
    },
    async judge({ host, workedOn }, outcome) {
      // A step that failed stays, and the next recovery does it; one that was killed left its journal.
      const again = await host.recoverAll()
      const failed = again.flatMap((one) => one.failed).map((step) => `recovery failed again: ${step}`)
      const told = outcome.ended === 'done' ? outcome.value.flatMap((one) => one.failed) : []
      const wrong = [...failed, ...(await killed.judge({ ...workedOn, host }, { ended: 'killed' }))]
      return wrong.length === 0 ? [] : [...wrong, ...told.map((step) => `at first: ${step}`)]
    },
  }
}

/** The number of the first call of that name. */
async function numberOf<T, H extends HasHost>(killed: Scenario<T, H>, call: RegExp): Promise<number> {
  const plan = new FaultPlan()
  const one = await killed.prepare()
  await using _host = one.host
  await killed.run(one, plan)
  const index = plan.calls.findIndex((name) => call.test(name))
  assert.ok(index >= 0, `there is no call ${call}`)
  return index + 1
}
