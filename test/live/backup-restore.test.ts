/**
 * Backup and restore of real VMs, end to end: every method, VMs that are off or many, restores in place, elsewhere, as a
 * new VM, and of VMs that were lost. Raw and qcow2 on a template, logical volumes, VHD and an NBD disk. The guests write
 * all the time, and judge by themselves what they got back.
 * Takes long: begun before the others.
 */

import assert from 'node:assert/strict'
import { after, afterEach, before, describe } from 'node:test'
import { methodTests } from './method-tests.ts'
import { restoreTests } from './restore-tests.ts'
import { beginScene, type Scene } from './scene.ts'
import { skipLive } from './stage.ts'
import { hashOf, nothingIsLeft } from './stage-session.ts'

describe('backup and restore of real VMs', { skip: skipLive, timeout: 900_000 }, () => {
  let scene: Scene
  before(async () => {
    scene = await beginScene()
  })
  after(async () => {
    await scene?.[Symbol.asyncDispose]()
  })
  afterEach(async () => {
    const { stage, web, db, mixed, template, templateHash } = scene
    await nothingIsLeft(stage, [web, db, mixed])
    assert.equal(await hashOf(template), templateHash, 'the template was changed')
  })

  methodTests(() => scene)
  restoreTests(() => scene)
})
