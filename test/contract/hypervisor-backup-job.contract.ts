/**
 * The contract of backup jobs and change tracking: copies of one instant while the VM writes on to its own disks, what has
 * changed since an earlier instant, and nothing believed that may not be the whole truth.
 */
import assert from 'node:assert/strict'
import type { ContractTest } from './hypervisor.contract.ts'
import { Jobs } from './hypervisor-jobs.ts'
import { type HypervisorScene, rejectsWith } from './hypervisor-scene.ts'

export function backupJobTests(contractTest: ContractTest): void {
  const jobTest = (name: string, body: (jobs: Jobs, scene: HypervisorScene) => Promise<void>) =>
    contractTest(name, async (scene) => {
      await using jobs = new Jobs(scene)
      await body(jobs, scene)
    })
  copyTests(jobTest)
  endTests(jobTest)
  changeTests(jobTest)
  doubtTests(jobTest)
  contractTest('a job whose scratch file finds no room stops the VM; its end lets it run on', async (scene, t) => {
    if (scene.world.fillHost === undefined) return t.skip('this world can not fill the host')
    await using jobs = new Jobs(scene)
    const job = await jobs.begin()
    {
      await using _full = await scene.world.fillHost(scene.running.name)
      assert.deepEqual((await jobs.status(job)).pausedByIoError, true)
      await jobs.end(job)
      assert.equal(await scene.power(), 'running')
    }
    await scene.mark()
    for (const { scratch } of job.disks) assert.equal(await scene.world.fileExists(scratch), false)
    await scene.isWhereItWas()
  })
  contractTest('after a VM was killed its bitmaps are not believed: refused by name, then begun without', (scene, t) =>
    killed(scene, (why) => t.skip(why)),
  )
}

type JobTest = (name: string, body: (jobs: Jobs, scene: HypervisorScene) => Promise<void>) => void

function copyTests(jobTest: JobTest): void {
  jobTest('copies are of the instant; the VM writes on to its own disks', async (jobs, scene) => {
    const before = await scene.mark()
    const job = await jobs.begin()
    const after = await scene.mark()
    await scene.isWhereItWas()
    const copy = await jobs.read(job, scene.targets[0])
    assert.deepEqual([copy.includes(before), copy.includes(after)], [true, false])
    assert.ok(await scene.contains(await scene.image(scene.targets[0]), after))
    assert.equal(copy.length, scene.running.disks.find(({ target }) => target === scene.targets[0])?.sizeBytes)
  })

  jobTest('the extents of a copy cover it without gaps, and what is no data reads as zeros', async (jobs, scene) => {
    const job = await jobs.begin()
    for (const target of scene.targets) {
      const bytes = await jobs.read(job, target)
      await using copy = await scene.hypervisor.openBackupJob(scene.running.uuid, job, target)
      let reached = 0
      for await (const { offset, length, data } of copy.extents(0, copy.sizeBytes)) {
        assert.equal(offset, reached)
        reached += length
        if (!data) assert.ok(bytes.subarray(offset, reached).every((byte) => byte === 0))
      }
      assert.equal(reached, copy.sizeBytes)
    }
  })

  jobTest('a paused VM has a job as well, and stays paused', async (jobs, scene) => {
    const before = await scene.mark()
    await scene.hypervisor.suspend(scene.running.uuid)
    const job = await jobs.begin({ point: jobs.name() })
    assert.ok((await jobs.read(job, scene.targets[0])).includes(before))
    await jobs.end(job)
    assert.equal(await scene.power(), 'paused')
  })

  jobTest('a VM that is off has none; its points can not be judged', async (jobs, scene) => {
    const { hypervisor, off, world } = scene
    const disk = { target: world.off.target, scratch: scene.path('scratch'), track: false }
    await rejectsWith(
      hypervisor.prepareBackupJob(off.uuid, { socket: `${scene.path('job')}/s`, disks: [disk] }),
      'VM_STATE',
    )
    assert.equal(await world.fileExists(disk.scratch), false)
    assert.deepEqual((await hypervisor.changeTracking(off.uuid)).points, [])
    assert.deepEqual(await jobs.names(), [])
  })

  jobTest('a scratch file that is in the way is refused and left alone', async (jobs, scene) => {
    const plan = jobs.plan()
    const last = plan.disks.at(-1)
    assert.ok(last)
    await scene.world.createFile(last.scratch)
    await rejectsWith(scene.hypervisor.prepareBackupJob(scene.running.uuid, plan), 'VM_STATE')
    assert.ok(await scene.world.fileExists(last.scratch))
    for (const { scratch } of plan.disks.slice(0, -1)) assert.equal(await scene.world.fileExists(scratch), false)
  })
}

function endTests(jobTest: JobTest): void {
  jobTest('the end of a job removes scratch files and socket; again is no harm', async (jobs, scene) => {
    const job = await jobs.begin()
    assert.equal((await jobs.status(job)).state, 'running')
    assert.notEqual((await scene.hypervisor.vm(scene.running.uuid)).busy, undefined)
    await jobs.end(job)
    await jobs.end(job)
    for (const path of [job.socket, job.socket.slice(0, -2), ...job.disks.map(({ scratch }) => scratch)])
      assert.equal(await scene.world.fileExists(path), false, path)
    assert.equal((await jobs.status(job)).state, 'ended')
    assert.equal((await scene.hypervisor.vm(scene.running.uuid)).busy, undefined)
    await rejectsWith(scene.hypervisor.openBackupJob(scene.running.uuid, job, scene.targets[0]))
  })

  jobTest('a job that was prepared and never begun is taken back', async (jobs, scene) => {
    const plan = jobs.plan({ point: jobs.name() })
    await scene.hypervisor.prepareBackupJob(scene.running.uuid, plan)
    await jobs.end(plan)
    for (const { scratch } of plan.disks) assert.equal(await scene.world.fileExists(scratch), false)
    assert.deepEqual(await jobs.names(), [])
  })

  jobTest('whoever ends his job does not end that of another', async (jobs, scene) => {
    const job = await jobs.begin()
    await jobs.end(jobs.plan())
    assert.equal((await jobs.status(job)).state, 'running')
    await jobs.read(job, scene.targets[0])
  })

  jobTest('what writes replace is seen in the scratch files', async (jobs, scene) => {
    const job = await jobs.begin()
    await scene.mark()
    assert.ok((await jobs.status(job)).scratchBytes > 0)
  })

  jobTest('a job ends with its VM; what it left is removed', async (jobs, scene) => {
    const job = await jobs.begin({ point: jobs.name() })
    await scene.hypervisor.turnOff(scene.running.uuid)
    assert.equal((await jobs.status(job)).state, 'ended')
    await jobs.end(job)
    for (const { scratch } of job.disks) assert.equal(await scene.world.fileExists(scratch), false)
  })
}

function changeTests(jobTest: JobTest): void {
  jobTest('the earlier copy, patched with what has changed, is the later one', async (jobs, scene) => {
    const [target] = await jobs.trackable()
    const first = await jobs.begin({ point: jobs.name() })
    const patched = await jobs.read(first, target)
    await jobs.end(first)
    await scene.mark(target)
    const since = first.point
    const second = await jobs.begin({ point: jobs.name(), since })
    await scene.mark(target)
    const later = await jobs.read(second, target)
    const { length } = await jobs.patch(second, target, patched)
    assert.ok(length > 0 && length < later.length / 2, `${length} bytes have changed`)
    assert.equal(Buffer.compare(patched, later), 0)
  })

  jobTest('the estimate of a point grows with what is written', async (jobs, scene) => {
    const [target] = await jobs.trackable()
    await jobs.end(await jobs.begin({ point: jobs.name() }))
    await scene.mark(target)
    const [disk] = await jobs.tracked(target)
    assert.equal(disk?.bitmap, 'recording')
    assert.ok((disk?.changedBytes ?? 0) > 0)
  })

  jobTest('a point remembers its image as it was then', async (jobs, scene) => {
    const [target] = await jobs.trackable()
    await jobs.end(await jobs.begin({ point: jobs.name() }))
    const [disk] = await jobs.tracked(target)
    const { disks } = await scene.hypervisor.changeTracking(scene.running.uuid)
    assert.deepEqual(disk?.image, disks.find((each) => each.target === target)?.image)
    assert.equal(disk?.image?.location, scene.running.disks.find((each) => each.target === target)?.location)
  })

  jobTest(
    'one can build on an older point than the latest: what others begin is nothing to it',
    async (jobs, scene) => {
      const [target] = await jobs.trackable()
      const first = await jobs.begin({ point: jobs.name() })
      const patched = await jobs.read(first, target)
      await jobs.end(first)
      await scene.mark(target)
      await jobs.end(await jobs.begin({ point: jobs.name('fedcba98') }))
      await scene.mark(target)
      const third = await jobs.begin({ since: first.point })
      await jobs.patch(third, target, patched)
      assert.equal(Buffer.compare(patched, await jobs.read(third, target)), 0)
    },
  )

  jobTest('without a point to build upon a copy tells no changes', async (jobs, scene) => {
    const job = await jobs.begin()
    await using copy = await scene.hypervisor.openBackupJob(scene.running.uuid, job, scene.targets[0])
    await assert.rejects(async () => {
      for await (const _range of copy.changes()) assert.fail('a range')
    })
  })

  jobTest(
    'a point is removed during a job, also the one that it builds upon; again is no harm',
    async (jobs, scene) => {
      const [target] = await jobs.trackable()
      const first = await jobs.begin({ point: jobs.name() })
      await jobs.end(first)
      await scene.mark(target)
      const second = await jobs.begin({ point: jobs.name(), since: first.point })
      for (let time = 0; time < 2; time++) await jobs.remove(first.point)
      assert.deepEqual(await jobs.names(), [second.point])
      assert.ok((await jobs.patch(second, target, await jobs.read(second, target))).length > 0)
    },
  )

  jobTest('points of others are never removed', async (jobs, scene) => {
    await assert.rejects(scene.hypervisor.removeTrackingPoint(scene.running.uuid, 'nightly-1'))
    assert.deepEqual(await jobs.names(), [])
  })
}

function doubtTests(jobTest: JobTest): void {
  jobTest('a VM that was stopped and started records on', async (jobs, scene) => {
    const [target] = await jobs.trackable()
    const first = await jobs.begin({ point: jobs.name() })
    const patched = await jobs.read(first, target)
    await jobs.end(first)
    const marker = await scene.mark(target)
    await scene.hypervisor.turnOff(scene.running.uuid)
    assert.equal((await jobs.tracked(target))[0]?.bitmap, 'unknown')
    await scene.hypervisor.start(scene.running.uuid)
    await scene.agentAnswers()
    assert.equal((await jobs.tracked(target))[0]?.bitmap, 'recording')
    const second = await jobs.begin({ since: first.point })
    await jobs.patch(second, target, patched)
    assert.ok(patched.includes(marker))
    assert.equal(Buffer.compare(patched, await jobs.read(second, target)), 0)
  })

  jobTest(
    'a point that was removed while the VM was off leaves bitmaps, which are found and go',
    async (jobs, scene) => {
      const job = await jobs.begin({ point: jobs.name() })
      await jobs.end(job)
      await scene.hypervisor.turnOff(scene.running.uuid)
      await jobs.remove(job.point)
      assert.deepEqual(await jobs.names(), [])
      await scene.hypervisor.start(scene.running.uuid)
      await scene.agentAnswers()
      assert.deepEqual((await jobs.tracking()).forgotten, [job.point])
      await jobs.remove(job.point)
      await jobs.end(await jobs.begin({ point: job.point ?? '' }))
      assert.deepEqual(await jobs.names(), [job.point])
    },
  )

  jobTest('an overlay that was put on and merged is no gap', async (jobs, scene) => {
    const [target] = await jobs.trackable()
    const first = await jobs.begin({ point: jobs.name() })
    const patched = await jobs.read(first, target)
    await jobs.end(first)
    const overlays = await scene.overlay([target])
    await scene.mark(target)
    await scene.merge(overlays)
    await scene.mark(target)
    const second = await jobs.begin({ since: first.point })
    await jobs.patch(second, target, patched)
    assert.equal(Buffer.compare(patched, await jobs.read(second, target)), 0)
  })

  jobTest('a point that nobody knows is refused, and nothing begun', async (jobs, scene) => {
    const [target] = await jobs.trackable()
    const plan = jobs.plan({ since: jobs.name() })
    await scene.hypervisor.prepareBackupJob(scene.running.uuid, plan)
    const error = await rejectsWith(scene.hypervisor.beginBackupJob(scene.running.uuid, plan), 'TRACKING_DOUBTFUL')
    assert.equal(error.context.target, target)
    assert.equal((await jobs.status(plan)).state, 'ended')
  })
}

async function killed(scene: HypervisorScene, skip: (why: string) => void): Promise<void> {
  const { hypervisor, running, world } = scene
  if (world.kill === undefined) return skip('this world can not kill a VM')
  await using jobs = new Jobs(scene)
  const targets = await jobs.trackable()
  const old = await jobs.begin({ point: jobs.name() })
  await jobs.end(old)
  await hypervisor.turnOff(running.uuid)
  await hypervisor.start(running.uuid)
  await scene.agentAnswers()
  // One whose bitmaps have been on disk, and one whose have not.
  const fresh = await jobs.begin({ point: jobs.name() })
  await jobs.end(fresh)
  await world.kill(running.name)
  await hypervisor.start(running.uuid)
  await scene.agentAnswers()
  for (const disk of await jobs.tracked(targets[0])) assert.equal(disk.bitmap, 'broken')
  for (const since of [old.point, fresh.point]) {
    const plan = jobs.plan({ point: jobs.name(), since })
    await hypervisor.prepareBackupJob(running.uuid, plan)
    const error = await rejectsWith(hypervisor.beginBackupJob(running.uuid, plan), 'TRACKING_DOUBTFUL')
    assert.ok(targets.includes(String(error.context.target)), error.message)
    const full = { ...plan, disks: plan.disks.map(({ since: _since, ...disk }) => disk) }
    await hypervisor.beginBackupJob(running.uuid, full)
    await jobs.read(full, targets[0])
    await jobs.end(full)
    await jobs.remove(plan.point)
  }
  await jobs.remove(old.point)
  await jobs.remove(fresh.point)
  const { points, forgotten } = await jobs.tracking()
  assert.deepEqual([points, forgotten], [[], []])
}
