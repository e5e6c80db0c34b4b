/**
 * Backup and restore of real VMs when things go wrong: Umbra killed at the worst moments, libvirtd restarted, guests that
 * do not answer, full disks, damaged repositories. Whatever happens, the VMs run thawed on their own disks afterwards and
 * no recovery point is listed that does not restore.
 * Runs alone: its guests must answer in time.
 */

import assert from 'node:assert/strict'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { after, afterEach, before, describe } from 'node:test'
import { createDisks } from '../../sample-guest/sample-guest.ts'
import { crashTests } from './crash-tests.ts'
import { refusalTests } from './refusal-tests.ts'
import { beginStage, boot, defineVm, type Stage, type StageVm, skipLive } from './stage.ts'
import { nothingIsLeft } from './stage-session.ts'

export interface FaultScene {
  readonly stage: Stage
  /** Raw disks; writes flat out. */
  readonly web: StageVm
  /** Its disks are on a file system of their own; it thaws by itself after 3 s. */
  readonly tight: StageVm
}

const mebibyte = 1024 * 1024

describe('faults under real VMs', { skip: skipLive, timeout: 900_000 }, () => {
  let scene: FaultScene
  before(async () => {
    const mounts = { disks: 320 * mebibyte, repositories: 4 * mebibyte }
    const stage = await beginStage('faults', {
      mounts,
      guestLimits: { freezeMs: 4000 },
      policy: { profile: '2012r2' }, // copies on overlays; incremental.test.ts has backup jobs
    })
    try {
      const raws = (name: string) => createDisks(stage.images, join(stage.directory, name), 'raw')
      const web = await defineVm(stage, 'web', await raws('vms/web'), { rate: 0 })
      const on = { ...(await defineVm(stage, 'tight', await raws('disks/tight'), { freezeMaxSeconds: 3 })) }
      const tight = { ...on, directory: join(stage.directory, 'disks/tight') }
      scene = { stage, web, tight }
      await Promise.all([web, tight].map((vm) => boot(stage, vm)))
    } catch (error) {
      await stage[Symbol.asyncDispose]()
      throw error
    }
  })
  after(async () => {
    await scene?.stage[Symbol.asyncDispose]()
  })
  afterEach(async () => {
    const { stage, web, tight } = scene
    await nothingIsLeft(stage, [web, tight])
    for (const vm of [web, tight]) {
      assert.equal(await stage.hypervisor.power(vm.uuid), 'running')
      assert.equal(await stage.hypervisor.guest(vm.uuid).freezeStatus(), 'thawed')
    }
    assert.deepEqual(await readdir(join(stage.repository.location, 'drafts')).catch(() => []), [])
  })

  crashTests(() => scene)
  refusalTests(() => scene)
})
