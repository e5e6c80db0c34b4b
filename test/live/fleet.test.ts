/**
 * Thirty real guests with two disks each, in one snapshot set (A3): all of them, then none of them, and nothing is left on
 * the host either way.
 * Runs alone: its guests must answer in time.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readdir, readFile } from 'node:fs/promises'
import { after, before, describe, it } from 'node:test'
import { createDisks } from '../../sample-guest/sample-guest.ts'
import { rejectsWith } from '../contract/hypervisor-scene.ts'
import { bootOriginal, clonesOf } from './clones.ts'
import { beginStage, bootOf, inside, type Stage, type StageVm, skipLive, vmDirectory } from './stage.ts'
import { backUp, nothingIsLeft, pointIds, stateOf } from './stage-session.ts'

const names = Array.from({ length: 30 }, (_, index) => `fx${String(index + 1).padStart(3, '0')}`)

describe('a set of thirty VMs', { skip: skipLive, timeout: 900_000 }, () => {
  let stage: Stage
  let vms: readonly StageVm[]
  before(async () => {
    stage = await beginStage('fleet')
    const disks = await createDisks(stage.images, vmDirectory(stage, 'fx000'), 'qcow2')
    const original = await bootOriginal(stage, 'fx000', disks.slice(0, 2), { memoryMiB: 128, rate: 1 })
    vms = await clonesOf(stage, () => original, names)
  })
  after(async () => {
    await stage?.[Symbol.asyncDispose]()
  })

  it('is backed up whole: every guest frozen shortly, and no residue', async (t) => {
    const before = await residue(stage)
    const result = await backUp(stage, names, { policy: { method: 'guest-freeze' } })
    assert.equal(result.vms.length, names.length)
    const freezes = result.vms.map(({ freezeMs }) => freezeMs).toSorted((a, b) => a - b)
    t.diagnostic(`${result.durationMs} ms in all; frozen ${freezes[0]} to ${freezes.at(-1)} ms, median ${freezes[15]}`)
    assert.ok(result.vms.every(({ consistency }) => consistency === 'filesystem'))
    await nothingIsLeft(stage, vms)
    assert.deepEqual(await residue(stage), before)
  })

  it('is not backed up at all when the last of them can not be frozen; every other runs as before', async () => {
    const before = await residue(stage)
    const [first, last] = [vms[0] as StageVm, vms.at(-1) as StageVm]
    const [state, life, points] = [await stateOf(stage, first), await bootOf(stage, first), await pointIds(stage)]
    await inside(stage, last, 'touch /run/hook-fail')
    const error = await rejectsWith(backUp(stage, names, { policy: { method: 'guest-freeze' } }), 'VSS_WRITER_VETO')
    assert.match(error.message, /fx030/)
    assert.deepEqual(await pointIds(stage), points)
    assert.deepEqual(await stateOf(stage, first), state)
    assert.equal(await bootOf(stage, first), life)
    await nothingIsLeft(stage, vms)
    assert.deepEqual(await residue(stage), before)
  })
})

/** What a backup could leave on a host besides files of its own: mounts, loop devices, servers of disks. */
async function residue({ directory }: Stage): Promise<object> {
  const mounts = (await readFile('/proc/self/mounts', 'utf8')).split('\n').filter((line) => line.includes(directory))
  const loops = execFileSync('losetup', ['-a'], { encoding: 'utf8' })
    .split('\n')
    .filter((line) => line.includes(directory))
  const servers: string[] = []
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    const line = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
    if (line.includes('qemu-storage') && line.includes(directory)) servers.push(pid)
  }
  return { mounts, loops, servers }
}
