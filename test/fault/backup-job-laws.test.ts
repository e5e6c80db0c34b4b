/**
 * The laws that change tracking adds to a whole backup: the second half of law 6, and that a backup which nothing disturbs
 * reads what has changed and no more. README.md says which test proves which law.
 */
import assert from 'node:assert/strict'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { pointNameOf } from '../../src/libvirt/bitmap-state.ts'
import { readJournal } from '../../src/requester/journal.ts'
import { journalDirectory } from '../../src/requester/session.ts'
import { FaultPlan } from '../sim/faulty.ts'
import { jobPolicy, jobProcess, old95, ownPoints, prepareJobHost, web01 } from './backup-job-host.ts'
import type { Host } from './harness.ts'

const vms = { web01, old95 }

describe('law 6, tracking', () => {
  test('the next tracking point is promoted, and the earlier one removed, only when the recovery point is there', async () => {
    const job = await prepareJobHost(vms, { earlier: true })
    await using host = job.host
    const before = new Map([...host.world.vms.values()].map((vm) => [vm, ownPoints(job, vm)]))
    let looks = 0
    let removed = 0
    const plan = atEachCall((call) => {
      if (listed(host) > 1) {
        if (call.includes('removeTrackingPoint(')) removed++
        return
      }
      for (const [vm, points] of before)
        for (const name of points) assert.ok(ownPoints(job, vm).includes(name), `${name} is gone before ${call}`)
      // What was begun is taken back if the process dies now.
      const steps = stepsLeft(host)
      for (const [vm, points] of before)
        for (const name of ownPoints(job, vm).filter((each) => !points.includes(each))) {
          assert.ok(steps.includes(`remove-stamp ${vm.uuid} ${name}`), `${name} is kept before ${call}`)
          looks++
        }
    })
    const outcome = await jobProcess(host, plan).backup(jobPolicy)
    assert.ok(outcome.ended === 'done')
    assert.ok(looks > 10, 'the new points are there while nothing is committed')
    assert.equal(removed, 2)
    for (const vm of host.world.vms.values())
      assert.deepEqual(ownPoints(job, vm), [pointNameOf(job.owner, outcome.value.recoveryPoint)])
  })
})

describe('law 1, jobs', () => {
  test('the ends of a job and of its tracking point are in the journal before the job is made', async () => {
    const job = await prepareJobHost(vms, { earlier: false })
    await using host = job.host
    let looks = 0
    const plan = atEachCall((call) => {
      const [, uuid] = /(?:prepare|begin)BackupJob\(([0-9a-f-]{36})/.exec(call) ?? []
      if (uuid === undefined) return
      looks++
      const steps = stepsLeft(host)
      for (const undo of ['end-backup-job', 'remove-stamp'])
        assert.ok(
          steps.some((step) => step.startsWith(`${undo} ${uuid}`)),
          `${undo} before ${call}`,
        )
    })
    assert.equal((await jobProcess(host, plan).backup(jobPolicy)).ended, 'done')
    assert.equal(looks, 4)
  })
})

describe('a backup by jobs that nothing disturbs', () => {
  test('reads of tracked disks only what has changed, twice in a row, and of a raw disk everything', async () => {
    const job = await prepareJobHost(vms, { earlier: true })
    await using host = job.host
    for (let since = job.earlier.at(-1), turn = 0; turn < 2; turn++) {
      const outcome = await jobProcess(host).backup(jobPolicy)
      assert.ok(outcome.ended === 'done')
      assert.deepEqual(how(outcome.value.vms), {
        'old95 sda': `changed since ${since}`,
        'web01 sda': `changed since ${since}`,
        'web01 sdb': `changed since ${since}`,
        'web01 sdc': 'compared',
      })
      since = outcome.value.recoveryPoint
    }
  })
})

/** A plan without faults that looks before each call. */
function atEachCall(look: (call: string) => void): FaultPlan {
  const plan = new FaultPlan()
  const enter = plan.enter.bind(plan)
  plan.enter = (call) => {
    look(call)
    return enter(call)
  }
  return plan
}

function listed({ repository }: Host): number {
  const points = join(repository, 'points')
  return existsSync(points) ? readdirSync(points).length : 0
}

/** "undo VM point" of every record in the journals. */
function stepsLeft({ stateDirectory }: Host): string[] {
  const directory = journalDirectory(stateDirectory)
  const texts = readdirSync(directory).map((name) => readFileSync(join(directory, name), 'utf8'))
  return texts.flatMap((text) => readJournal(text).left).map(({ undo, vm, point }) => [undo, vm, point].join(' '))
}

interface Told {
  readonly name?: unknown
  readonly disks?: unknown
}

/** With what a raw disk was compared depends on the ids of points that were made within one second. */
function how(vms: readonly Told[]): Record<string, string> {
  const told = ({ how, since }: { how: string; since?: string }) => (how === 'changed' ? `changed since ${since}` : how)
  const disks = vms.flatMap(({ name, disks }) =>
    (disks as { target: string; how: string }[]).map((disk) => [`${name} ${disk.target}`, told(disk)] as const),
  )
  return Object.fromEntries(disks)
}
