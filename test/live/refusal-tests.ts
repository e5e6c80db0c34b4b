/**
 * Guests, disks and repositories that refuse in the midst of a backup or restore; part of faults.test.ts, whose afterEach
 * looks for whatever is left.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { open, readdir, rm, statfs } from 'node:fs/promises'
import { join } from 'node:path'
import { it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Failure } from '../../src/base/failure.ts'
import { createRepository } from '../../src/repository/repository.ts'
import type { OverlayPlan } from '../../src/vm/hypervisor.ts'
import { rejectsWith } from '../contract/hypervisor-scene.ts'
import type { FaultScene } from './faults.test.ts'
import { around, duringTransfer } from './hooks.ts'
import { agentAnswers, bootOf, eventually, inside, type Stage } from './stage.ts'
import { backUp, nothingIsLeft, pointIds, restoreVm, stateOf } from './stage-session.ts'

const mebibyte = 1024 * 1024
const thorough = { method: 'guest-freeze' } as const

export function refusalTests(scene: () => FaultScene): void {
  for (const [what, hook] of [
    ['hangs in its freeze', 'hook-hang'],
    ['freezes after we gave up', 'hook-slow'],
  ] as const) {
    it(`thaws a guest that ${what}, and backs nothing up`, async (t) => {
      const { stage, web } = scene()
      const points = await pointIds(stage)
      await inside(stage, web, `echo 8 > /run/${hook}; (sleep 6; rm -f /run/${hook}) >/dev/null 2>&1 &`)
      const beganMs = performance.now()
      const error = await rejectsWith(backUp(stage, ['web'], { policy: thorough }))
      t.diagnostic(`${error.code} after ${Math.round(performance.now() - beganMs)} ms: ${error.message}`)
      assert.match(error.message, /web/)
      await agentAnswers(stage, web)
      await sleep(2000) // long enough for a freeze that comes late
      assert.equal(await stage.hypervisor.guest(web.uuid).freezeStatus(), 'thawed')
      assert.deepEqual(await pointIds(stage), points)
      await nothingIsLeft(stage, [web])
    })
  }

  it('says crash when the guest thaws by itself before the end, and fails when more is required', async () => {
    const { stage } = scene()
    const slowCommit = around(stage.hypervisor, {
      createOverlays: async (call) => {
        await sleep(5000)
        return call()
      },
    })
    const result = await backUp(stage, ['tight'], { policy: thorough, hypervisor: slowCommit })
    assert.equal(result.vms[0]?.consistency, 'crash')
    assert.match(result.vms[0]?.reasons.join() ?? '', /3 file systems were frozen, but only 0/)
    const points = await pointIds(stage)
    const policy = { ...thorough, require: 'filesystem' } as const
    const error = await rejectsWith(backUp(stage, ['tight'], { policy, hypervisor: slowCommit }), 'VSS_WRITER_VETO')
    assert.match(error.message, /crash consistency was reached where filesystem is required/)
    assert.deepEqual(await pointIds(stage), points)
  })

  it('changes nothing anywhere when the copy of one disk of one VM can not be made', async () => {
    const { stage, web, tight } = scene()
    const [states, points] = [await Promise.all([web, tight].map((vm) => stateOf(stage, vm))), await pointIds(stage)]
    const hypervisor = around(stage.hypervisor, {
      createOverlays: async (call, [uuid, plans]) => {
        const [, second] = plans as OverlayPlan[]
        if (uuid === tight.uuid && second !== undefined) await rm(second.overlay)
        return call()
      },
    })
    for (const instant of ['vm', 'set'] as const) {
      const setup = { policy: { instant }, hypervisor }
      const error = await rejectsWith(backUp(stage, ['web', 'tight'], setup), 'VSS_PROVIDER_VETO')
      assert.match(error.message, /umbra-/)
      await nothingIsLeft(stage, [web, tight])
    }
    assert.deepEqual(await pointIds(stage), points)
    assert.deepEqual(await Promise.all([web, tight].map((vm) => stateOf(stage, vm))), states)
  })

  it('gives up when the repository is full, and the VM runs on', async () => {
    const { stage, web } = scene()
    const [state, boot] = [await stateOf(stage, web), await bootOf(stage, web)]
    await using repository = await createRepository(join(stage.directory, 'repositories', 'small'), {
      encryption: 'none',
    })
    await rejectsWith(backUp(stage, ['web'], { repository }), 'REPOSITORY_FULL')
    assert.deepEqual(await repository.listPoints(), [])
    assert.deepEqual(await readdir(join(repository.location, 'packs')).catch(() => []), [])
    assert.deepEqual(await stateOf(stage, web), state)
    assert.equal(await bootOf(stage, web), boot)
  })

  it('gives up before the guest meets a disk that its overlay fills', async () => {
    const { stage, tight } = scene()
    const [points, boot] = [await pointIds(stage), await bootOf(stage, tight)]
    await using filler = await fillDisks(stage, 80 * mebibyte)
    let power: string | undefined
    const repository = duringTransfer(stage.repository, async () => {
      await inside(stage, tight, '(head -c 30000000 /dev/urandom > /srv/a/much; sync) >/dev/null 2>&1 &')
      await eventually('an overlay that has grown', async () =>
        (await freeOf(stage)) < 60 * mebibyte ? true : undefined,
      )
      await sleep(1500)
      power = await stage.hypervisor.power(tight.uuid)
    })
    await rejectsWith(backUp(stage, ['tight'], { repository }), 'VSS_INSUFFICIENT_STORAGE')
    assert.equal(power, 'running', 'the guest has noticed nothing')
    assert.match((await rejectsWith(backUp(stage, ['tight']))).message, /bytes free/, 'and not tried again')
    await filler[Symbol.asyncDispose]()
    assert.deepEqual(await pointIds(stage), points)
    assert.equal(await bootOf(stage, tight), boot)
    await inside(stage, tight, 'rm /srv/a/much')
  })

  it('resumes a VM that did meet a full disk', async () => {
    const { stage, tight } = scene()
    const boot = await bootOf(stage, tight)
    const repository = duringTransfer(stage.repository, async () => {
      await using _full = await fillDisks(stage, 0)
      await stage.hypervisor
        .guest(tight.uuid)
        .exec('/bin/sh', ['-c', '(head -c 20000000 /dev/urandom > /srv/a/much; sync) >/dev/null 2>&1 &'])
        .catch(() => undefined) // it may have stopped at once
      await eventually('the pause', async () =>
        (await stage.hypervisor.power(tight.uuid)) === 'paused' ? true : undefined,
      )
      await sleep(1500)
    })
    await rejectsWith(backUp(stage, ['tight'], { repository }), 'VSS_INSUFFICIENT_STORAGE')
    await agentAnswers(stage, tight)
    assert.equal(await bootOf(stage, tight), boot)
    await inside(stage, tight, 'rm -f /srv/a/much; umbra-writer verify /srv/a/log /srv/b/log')
  })

  it('names what one flipped bit damaged, and does not touch the VM for it', async () => {
    const { stage, web } = scene()
    await using repository = await createRepository(join(stage.directory, 'damaged'), { encryption: 'none' })
    const { recoveryPoint } = await backUp(stage, ['web'], { repository })
    assert.deepEqual((await repository.verify()).damage, [])
    await flipBit(join(repository.location, 'packs'))
    const { damage } = await repository.verify()
    assert.ok(damage.length > 0)
    for (const { point, name, kind } of damage) {
      assert.equal(point, recoveryPoint)
      if (kind === 'stream') assert.match(name, new RegExp(`^${web.uuid}/disks/sd[abc]$`))
    }
    const [state, boot] = [await stateOf(stage, web), await bootOf(stage, web)]
    const events: string[] = []
    const setup = { repository, onEvent: ({ event }: { event: string }) => void events.push(event) }
    const error = await rejectsWith(restoreVm(stage, recoveryPoint, 'web', {}, setup), 'REPOSITORY_CHUNK_CORRUPT')
    assert.match(error.message, /at offset \d+/)
    assert.ok(!events.includes('PreRestore'))
    assert.deepEqual(await stateOf(stage, web), state)
    assert.equal(await bootOf(stage, web), boot)
  })

  it('tells a second backup at once that it has to wait', async () => {
    const { stage } = scene()
    const told: (string | undefined)[] = []
    const tell = async (name: string) => {
      const error = await backUp(stage, [name]).then(
        () => undefined,
        (thrown: unknown) => thrown,
      )
      told.push(error instanceof Failure ? error.code : String(error))
    }
    const hypervisor = around(stage.hypervisor, {
      prepareOverlays: async (call) => {
        await tell('tight')
        return call()
      },
    })
    const repository = duringTransfer(stage.repository, () => tell('web'))
    await backUp(stage, ['web'], { hypervisor, repository })
    assert.deepEqual(told, ['VSS_SNAPSHOT_SET_IN_PROGRESS', 'VM_BUSY'])
  })
}

async function freeOf({ directory }: Stage): Promise<number> {
  const { bavail, bsize } = await statfs(join(directory, 'disks'))
  return bavail * bsize
}

/** Takes all but so many bytes of the file system of the tight VM's disks; disposal gives them back. */
async function fillDisks(stage: Stage, leftBytes: number): Promise<AsyncDisposable> {
  const filler = join(stage.directory, 'disks', 'filler')
  for (let tries = 5; ; tries -= 1) {
    try {
      execFileSync('fallocate', ['-l', String((await freeOf(stage)) - leftBytes), filler], { stdio: 'pipe' })
      break
    } catch (error) {
      if (tries === 0) throw error // the guest writes too: what was free is less by now
    }
  }
  return { [Symbol.asyncDispose]: () => rm(filler, { force: true }) }
}

/** One bit in the middle of the largest pack. */
async function flipBit(packs: string): Promise<void> {
  const names = (await readdir(packs, { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile())
  let largest = { path: '', size: 0 }
  for (const { parentPath, name } of names) {
    const path = join(parentPath, name)
    await using file = await open(path)
    const { size } = await file.stat()
    if (size > largest.size) largest = { path, size }
  }
  await using file = await open(largest.path, 'r+')
  const at = Math.floor(largest.size / 2)
  const { buffer } = await file.read(Buffer.alloc(1), 0, 1, at)
  buffer.writeUInt8(buffer.readUInt8(0) ^ 8)
  await file.write(buffer, 0, 1, at)
}
