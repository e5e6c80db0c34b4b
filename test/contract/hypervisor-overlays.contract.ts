/**
 * The contract of overlays: one instant over all disks, all or none; taken off again shallowly and idempotently,
 * whatever state a crash left.
 */
import assert from 'node:assert/strict'
import type { DiskImage, OverlayInPlace } from '../../src/vm/hypervisor.ts'
import type { ContractTest } from './hypervisor.contract.ts'
import { type HypervisorScene, rejectsWith } from './hypervisor-scene.ts'

export function overlayTests(contractTest: ContractTest): void {
  creationTests(contractTest)
  mergeTests(contractTest)
  crashTests(contractTest)
  refusalTests(contractTest)
}

function creationTests(contractTest: ContractTest): void {
  contractTest('an overlay catches the writes from now on; what is beneath stays as it is', async (scene) => {
    const [target] = scene.targets
    const before = await scene.mark()
    const [placed] = await scene.overlay([target])
    const after = await scene.mark()
    assert.ok(placed)
    assert.equal(await scene.power(), 'running')
    assert.deepEqual(
      [await scene.contains(placed.base, before), await scene.contains(placed.base, after)],
      [true, false],
    )
    const disk = (await scene.hypervisor.vm(scene.running.uuid)).disks.find((each) => each.target === target)
    assert.equal(disk?.location, placed.overlay)
    assert.equal(disk?.image?.format, 'qcow2')
    assert.equal(disk?.backing[0], locationOf(scene, target))
    assert.ok(disk?.image && (await scene.contains(disk.image, before)) && (await scene.contains(disk.image, after)))
  })

  contractTest('disks that are not named stay untouched', async (scene) => {
    const [named, other] = scene.targets
    const before = await scene.image(other)
    await scene.overlay([named])
    assert.deepEqual(await scene.image(other), before)
    const after = await scene.mark(other)
    assert.ok(await scene.contains(before, after))
  })

  for (const state of ['paused', 'off'] as const) {
    contractTest(`overlays on a VM that is ${state}, and off again: it stays ${state}`, async (scene) => {
      const { hypervisor, running, off, world } = scene
      const uuid = state === 'off' ? off.uuid : running.uuid
      const targets = state === 'off' ? [world.off.target] : scene.targets
      if (state === 'paused') await hypervisor.suspend(uuid)
      const before = await hypervisor.vm(uuid)
      const overlays = await scene.overlay(targets, uuid)
      assert.equal(await hypervisor.power(uuid), state)
      for (const { target, overlay } of overlays) assert.deepEqual(await scene.image(target, uuid), qcow2(overlay))
      await scene.merge(overlays, uuid)
      const after = await hypervisor.vm(uuid)
      assert.equal(after.power, state)
      assert.deepEqual(after.disks, before.disks)
      assert.equal(after.configuration, before.configuration)
    })
  }

  contractTest('all or none: an overlay path that exists', async (scene) => {
    const [first, second] = scene.targets
    const free = scene.path('free')
    const taken = scene.path('taken')
    await scene.world.createFile(taken)
    const plans = [
      { target: first, overlay: free },
      { target: second, overlay: taken },
    ]
    await rejectsWith(scene.hypervisor.createOverlays(scene.running.uuid, plans))
    await scene.isWhereItWas()
    assert.deepEqual([await scene.world.fileExists(free), await scene.world.fileExists(taken)], [false, true])
    assert.equal(await scene.power(), 'running')
  })

  contractTest('all or none: a disk the VM has not', async (scene) => {
    const free = scene.path('free')
    const plans = [
      { target: scene.targets[0], overlay: free },
      { target: 'sdzz', overlay: scene.path('other') },
    ]
    await rejectsWith(scene.hypervisor.createOverlays(scene.running.uuid, plans))
    await scene.isWhereItWas()
    assert.equal(await scene.world.fileExists(free), false)
  })

  contractTest('prepared overlays change no VM; createOverlays with the same plans puts them on', async (scene) => {
    const { hypervisor, running } = scene
    const plans = scene.targets.map((target) => ({ target, overlay: scene.path(`prepared-${target}`) }))
    await hypervisor.prepareOverlays(running.uuid, plans)
    await scene.isWhereItWas()
    assert.equal(await scene.power(), 'running')
    const before = await scene.mark()
    const overlays = await scene.overlay(scene.targets, running.uuid, plans)
    const after = await scene.mark()
    const [placed] = overlays
    assert.ok(placed !== undefined)
    assert.deepEqual(
      [await scene.contains(placed.base, before), await scene.contains(placed.base, after)],
      [true, false],
    )
    await scene.merge(overlays)
    await scene.isWhereItWas()
  })

  contractTest('prepareOverlays refuses a path that exists, all or none', async (scene) => {
    const [first, second] = scene.targets
    const free = scene.path('free')
    const taken = scene.path('taken')
    await scene.world.createFile(taken)
    const plans = [
      { target: first, overlay: free },
      { target: second, overlay: taken },
    ]
    await rejectsWith(scene.hypervisor.prepareOverlays(scene.running.uuid, plans))
    assert.deepEqual([await scene.world.fileExists(free), await scene.world.fileExists(taken)], [false, true])
    await scene.isWhereItWas()
  })

  contractTest('all disks at one instant, while a workload writes to both', async (scene, t) => {
    if (scene.world.verifyRecords === undefined) return t.skip('this world has no workload')
    const [a, b] = await scene.overlay()
    await scene.guest.ping()
    assert.ok(a !== undefined && b !== undefined)
    assert.equal((await scene.world.verifyRecords(a.base, b.base)).crossConsistent, true)
  })

  contractTest('a freeze around the instant: the workload is quiesced in what is beneath', async (scene, t) => {
    if (scene.world.verifyRecords === undefined) return t.skip('this world has no workload')
    await scene.guest.ping()
    const frozen = await scene.guest.freeze()
    const [a, b] = await scene.overlay()
    assert.equal(await scene.guest.thaw(), frozen)
    assert.ok(a !== undefined && b !== undefined)
    const { crossConsistent, quiesced } = await scene.world.verifyRecords(a.base, b.base)
    assert.deepEqual([crossConsistent, quiesced], [true, true])
  })
}

function mergeTests(contractTest: ContractTest): void {
  contractTest(
    'a merge puts what was caught into the base, runs on it, deletes the overlay; again is no harm',
    async (scene) => {
      const overlays = await scene.overlay()
      const caught = await scene.mark()
      await scene.merge(overlays)
      const [placed] = overlays
      assert.ok(placed !== undefined && (await scene.contains(placed.base, caught)))
      for (const { overlay } of overlays) assert.equal(await scene.world.fileExists(overlay), false)
      await scene.isWhereItWas()
      assert.equal(await scene.power(), 'running')
      await scene.merge(overlays)
      await scene.isWhereItWas()
      const later = await scene.mark()
      assert.ok(await scene.contains(placed.base, later))
    },
  )

  contractTest('an overlay that was never written to is merged', async (scene) => {
    await scene.merge(await scene.overlay())
    await scene.isWhereItWas()
  })

  contractTest('a merge goes into the image directly beneath and never further', async (scene) => {
    const [target] = scene.targets
    const [lower] = await scene.overlay([target])
    const [upper] = await scene.overlay([target])
    assert.ok(lower !== undefined && upper !== undefined)
    const caught = await scene.mark()
    await scene.merge([upper])
    assert.deepEqual(await scene.image(target), qcow2(lower.overlay))
    assert.deepEqual(
      [await scene.contains(upper.base, caught), await scene.contains(lower.base, caught)],
      [true, false],
    )
    await scene.merge([lower])
    assert.ok(await scene.contains(lower.base, caught))
    await scene.isWhereItWas()
  })
}

function crashTests(contractTest: ContractTest): void {
  contractTest('merged while the VM is paused', async (scene) => {
    const overlays = await scene.overlay()
    const caught = await scene.mark()
    await scene.hypervisor.suspend(scene.running.uuid)
    await scene.merge(overlays)
    assert.equal(await scene.power(), 'paused')
    assert.ok(overlays[0] && (await scene.contains(overlays[0].base, caught)))
    await scene.isWhereItWas()
  })

  contractTest('merged after the VM lost its power, then started', async (scene) => {
    const overlays = await scene.overlay()
    const caught = await scene.mark()
    await scene.hypervisor.turnOff(scene.running.uuid)
    await scene.merge(overlays)
    const { power } = await scene.hypervisor.vm(scene.running.uuid)
    assert.equal(power, 'off')
    assert.ok(overlays[0] && (await scene.contains(overlays[0].base, caught)))
    await scene.merge(overlays)
    await scene.isWhereItWas()
    await scene.hypervisor.start(scene.running.uuid)
    await scene.agentAnswers()
  })

  contractTest('merged after the VM lost its power and was started again on the overlay', async (scene) => {
    const overlays = await scene.overlay()
    await scene.hypervisor.turnOff(scene.running.uuid)
    await scene.hypervisor.start(scene.running.uuid)
    await scene.agentAnswers()
    const caught = await scene.mark()
    await scene.merge(overlays)
    assert.ok(overlays[0] && (await scene.contains(overlays[0].base, caught)))
    await scene.isWhereItWas()
  })

  contractTest('an overlay on one disk merged, on the other not: both calls again', async (scene) => {
    const overlays = await scene.overlay()
    await scene.merge(overlays.slice(0, 1))
    await scene.merge(overlays)
    await scene.isWhereItWas()
  })

  contractTest('an overlay file that no disk uses yet is removed', async (scene, t) => {
    if (scene.world.strayOverlay === undefined) return t.skip('this world can not make overlay files')
    const [target] = scene.targets
    const stray = { target, overlay: scene.path('stray'), base: await scene.image(target) }
    await scene.world.strayOverlay(stray.overlay, stray.base)
    await scene.merge([stray])
    assert.equal(await scene.world.fileExists(stray.overlay), false)
    await scene.isWhereItWas()
  })

  contractTest('overlays that were prepared and never put on are removed', async (scene) => {
    const overlays: OverlayInPlace[] = []
    for (const target of scene.targets)
      overlays.push({ target, overlay: scene.path(`prepared-${target}`), base: await scene.image(target) })
    const plans = overlays.map(({ target, overlay }) => ({ target, overlay }))
    await scene.hypervisor.prepareOverlays(scene.running.uuid, plans)
    await scene.merge(overlays)
    for (const { overlay } of overlays) assert.equal(await scene.world.fileExists(overlay), false)
    await scene.isWhereItWas()
  })

  contractTest('an overlay that was never made is no harm', async (scene) => {
    const [target] = scene.targets
    await scene.merge([{ target, overlay: scene.path('never'), base: await scene.image(target) }])
    await scene.isWhereItWas()
  })

  contractTest('overlays survive a saved state: saved on the base, brought back on the overlay', async (scene) => {
    const { hypervisor, running } = scene
    const file = scene.path('memory')
    await hypervisor.save(running.uuid, file)
    const overlays = await scene.overlay()
    await hypervisor.restoreSaved(file)
    for (const { target, overlay } of overlays) assert.deepEqual(await scene.image(target), qcow2(overlay))
    await hypervisor.resume(running.uuid)
    await scene.agentAnswers()
    const caught = await scene.mark()
    assert.ok(overlays[0] && !(await scene.contains(overlays[0].base, caught)))
    await scene.merge(overlays)
    await scene.isWhereItWas()
  })
}

function refusalTests(contractTest: ContractTest): void {
  contractTest('MERGE_REFUSED when what lies beneath is not the base; nothing is lost', async (scene) => {
    const [target, other] = scene.targets
    const [placed] = await scene.overlay([target])
    assert.ok(placed)
    const caught = await scene.mark()
    const foreign = await scene.image(other)
    await rejectsWith(scene.hypervisor.mergeOverlay(scene.running.uuid, { ...placed, base: foreign }), 'MERGE_REFUSED')
    assert.deepEqual(await scene.image(target), qcow2(placed.overlay))
    await scene.merge([placed])
    assert.ok(await scene.contains(placed.base, caught))
  })

  contractTest('MERGE_REFUSED when the disk lies on something else altogether', async (scene) => {
    const [target, other] = scene.targets
    const overlay = { target, overlay: scene.path('never'), base: await scene.image(other) }
    await rejectsWith(scene.hypervisor.mergeOverlay(scene.running.uuid, overlay), 'MERGE_REFUSED')
    await scene.isWhereItWas()
  })

  contractTest(
    'while somebody reads the base a merge fails and does nothing; afterwards it succeeds',
    async (scene, t) => {
      if (scene.world.openReader === undefined) return t.skip('this world can not open images')
      const [placed] = await scene.overlay([scene.targets[0]])
      assert.ok(placed)
      const caught = await scene.mark()
      {
        await using _reader = await scene.world.openReader(placed.base)
        await rejectsWith(scene.hypervisor.mergeOverlay(scene.running.uuid, placed))
        assert.deepEqual(await scene.image(placed.target), qcow2(placed.overlay))
        assert.equal(await scene.power(), 'running')
      }
      await scene.merge([placed])
      assert.ok(await scene.contains(placed.base, caught))
    },
  )
}

const qcow2 = (file: string): DiskImage => ({ format: 'qcow2', storage: { file } })

const locationOf = (scene: HypervisorScene, target: string): string | undefined =>
  scene.running.disks.find((disk) => disk.target === target)?.location
