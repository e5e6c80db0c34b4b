/**
 * The loop of the fault matrix: a first run counts the calls, then one host for each number and fault. A case that ends
 * badly is told with the number and the name of its call, which is how it is run again.
 */
import assert from 'node:assert/strict'
import { cleanupErrors, describeError, Failure, primaryError } from '../../src/base/failure.ts'
import { type Fault, FaultPlan } from '../sim/faulty.ts'
import type { Host, Incarnation, Outcome } from './harness.ts'

/** One kind of run: a host is built, something is done on it by a process with a plan, and the host is judged. */
export interface Scenario<T, H extends { readonly host: Host }> {
  prepare(): Promise<H>
  run(prepared: H, plan: FaultPlan): Promise<{ outcome: Outcome<T>; incarnation: Incarnation }>
  judge(prepared: H, outcome: Outcome<T>): Promise<string[]>
}

const alike = /, sd[ab]\)\.(read|extents|dispose)\(/

/** Which calls. `may fail` leaves out the removal of a draft's marker (README, "Known gaps"). */
const filters = {
  all: () => true,
  ports: (call: string) => !call.includes(' files.'),
  hypervisor: (call: string) => call.includes(' hypervisor.'),
  /** Of the reads of a job's copies, which are all alike, those of one disk. */
  jobs: (call: string) => !alike.test(call),
  'ports of jobs': (call: string) => !alike.test(call) && !call.includes(' files.'),
  'may fail': (call: string) => !/ files\.rm\(\d{8}T\d{6}Z-/.test(call),
}

/** All of what is only sampled otherwise: some minutes more. */
export const everyFault = process.env.UMBRA_TEST_EVERY_FAULT === '1'

export interface Cases {
  readonly faults: readonly Fault[]
  readonly at?: keyof typeof filters
  /** Only each so many-th call, and of the next fault the calls beside those; every call unless told. */
  readonly oneOf?: number
}

/** How many cases there were, and each that ended badly. */
export interface MatrixResult {
  readonly cases: number
  readonly bad: readonly string[]
}

export async function runMatrix<T, H extends { readonly host: Host }>(
  scenario: Scenario<T, H>,
  { faults, at = 'all', oneOf = 1 }: Cases,
): Promise<MatrixResult> {
  const calls = await countCalls(scenario)
  const bad: string[] = []
  let cases = 0
  for (const [turn, fault] of faults.entries()) {
    for (const [index, call] of calls.entries()) {
      if (!filters[at](call) || (index + turn) % oneOf !== 0) continue
      const result = await runCase(scenario, { at: index + 1, fault })
      if (result === undefined) continue
      cases++
      if (result.wrong.length > 0) bad.push(`${fault} ${result.hit}:\n    ${result.wrong.join('\n    ')}`)
    }
  }
  return { cases, bad }
}

/** The calls of a run without any fault, which must end well. */
async function countCalls<T, H extends { readonly host: Host }>(scenario: Scenario<T, H>): Promise<readonly string[]> {
  const plan = new FaultPlan()
  const prepared = await scenario.prepare()
  await using _host = prepared.host
  const { outcome } = await scenario.run(prepared, plan)
  assert.equal(outcome.ended, 'done', outcome.ended === 'failed' ? describeError(outcome.error) : outcome.ended)
  assert.deepEqual(await scenario.judge(prepared, outcome), [])
  return plan.calls
}

/** One case; undefined when its call did not happen, for what runs at the same time has no fixed order. */
export async function runCase<T, H extends { readonly host: Host }>(
  scenario: Scenario<T, H>,
  fault: { at: number; fault: Fault },
): Promise<{ hit: string; wrong: string[] } | undefined> {
  const plan = new FaultPlan(fault)
  const prepared = await scenario.prepare()
  await using host = prepared.host
  const { outcome, incarnation } = await scenario.run(prepared, plan)
  if (plan.hit === undefined) return undefined
  const wrong: string[] = []
  if (outcome.ended === 'failed' || isIncomplete(outcome)) await incarnation.end() // as the command line does
  if (plan.isDead || isIncomplete(outcome)) wrong.push(...(await recovered(host)))
  wrong.push(...(await scenario.judge(prepared, outcome)))
  if (wrong.length > 0) wrong.push(`it ended: ${tell(outcome)}`)
  return { hit: plan.hit, wrong }
}

async function recovered(host: Host): Promise<string[]> {
  const results = await host.recoverAll()
  return results.flatMap(({ failed }) => failed.map((step) => `recovery failed: ${step}`))
}

/** Whether it said itself that something is left for `umbra recover`. */
export function isIncomplete(outcome: Outcome<unknown>): boolean {
  if (outcome.ended === 'done')
    return typeof outcome.value === 'object' && outcome.value !== null && 'cleanup' in outcome.value
      ? Array.isArray(outcome.value.cleanup) && outcome.value.cleanup.length > 0
      : false
  if (outcome.ended !== 'failed') return false
  return [primaryError(outcome.error), ...cleanupErrors(outcome.error)].some(
    (error) => error instanceof Failure && error.code === 'CLEANUP_INCOMPLETE',
  )
}

function tell(outcome: Outcome<unknown>): string {
  if (outcome.ended !== 'failed') return outcome.ended
  return [primaryError(outcome.error), ...cleanupErrors(outcome.error)].map(describeError).join(' | ')
}
