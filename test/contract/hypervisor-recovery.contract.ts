/**
 * The contract of auto-recovery: copies that are hot-added to the VM they were taken of and removed again without a
 * trace, and the guest's own shadow copies where the world's guest can take some.
 */
import assert from 'node:assert/strict'
import type { AttachedCopy, OverlayInPlace } from '../../src/vm/hypervisor.ts'
import type { ContractTest } from './hypervisor.contract.ts'
import { type HypervisorScene, rejectsWith } from './hypervisor-scene.ts'

const set = '0a1b2c3d'
const serialOf = (target: string): string => `umbra-${set}-${target}`

export function recoveryTests(contractTest: ContractTest): void {
  attachTests(contractTest)
  detachTests(contractTest)
  requestorTests(contractTest)
}

/** Overlays on the disks, and a writable copy of what is beneath each. */
async function copies(scene: HypervisorScene): Promise<{ overlays: OverlayInPlace[]; made: AttachedCopy[] }> {
  const overlays = await scene.overlay()
  const made: AttachedCopy[] = []
  for (const { target, base } of overlays) {
    const file = scene.path(`copy-${target}`)
    await scene.world.makeWritableCopy(file, base)
    made.push({ serial: serialOf(target), image: { format: 'qcow2', storage: { file } } })
  }
  return { overlays, made }
}

async function oneCopy(scene: HypervisorScene): Promise<{ overlays: OverlayInPlace[]; copy: AttachedCopy }> {
  const { overlays, made } = await copies(scene)
  const [copy] = made
  assert.ok(copy)
  return { overlays, copy }
}

function attachTests(contractTest: ContractTest): void {
  contractTest('what the guest writes to attached copies reaches these and nothing else', async (scene) => {
    const { hypervisor, running, world } = scene
    assert.equal(running.hotAddsScsi, true)
    const { overlays, made } = await copies(scene)
    const { configuration } = await hypervisor.vm(running.uuid)
    for (const copy of made) await scene.attach(copy)
    const attached = await hypervisor.vm(running.uuid)
    assert.equal(attached.configuration, configuration)
    assert.match(attached.busy ?? '', /copy umbra-/)
    const markers: string[] = []
    for (const { serial } of made) {
      markers.push(`written-to-${serial}-${process.pid}`)
      await world.writeToCopy(running.name, serial, markers.at(-1) ?? '')
    }
    for (const { serial } of made) await hypervisor.detachCopy(running.uuid, serial)
    for (const [index, { image }] of made.entries()) {
      for (const [number, marker] of markers.entries())
        assert.equal(await scene.contains(image, marker), number === index, `${marker} in copy ${index}`)
      const overlay = overlays[index]
      const top = await scene.image(overlay?.target ?? '')
      assert.ok(overlay && !(await scene.contains(overlay.base, markers[index] ?? '')))
      assert.equal(await scene.contains(top, markers[index] ?? ''), false)
    }
    await scene.merge(overlays)
    await scene.isWhereItWas()
    assert.equal((await hypervisor.vm(running.uuid)).busy, undefined)
  })

  contractTest('a copy is attached to a running VM only', async (scene) => {
    const { hypervisor, running, off } = scene
    const { copy } = await oneCopy(scene)
    await rejectsWith(hypervisor.attachCopy(off.uuid, copy), 'VM_STATE')
    await hypervisor.suspend(running.uuid)
    await rejectsWith(hypervisor.attachCopy(running.uuid, copy), 'VM_STATE')
  })

  contractTest('a copy that is not there, and a serial that is taken, are refused', async (scene) => {
    const { hypervisor, running } = scene
    const { made } = await copies(scene)
    const [first, second] = made
    assert.ok(first && second)
    const nowhere = { format: 'qcow2', storage: { file: scene.path('nowhere') } } as const
    await rejectsWith(
      hypervisor.attachCopy(running.uuid, { serial: 'umbra-00000000-none', image: nowhere }),
      'HYPERVISOR_REFUSED',
    )
    await scene.attach(first)
    await rejectsWith(hypervisor.attachCopy(running.uuid, { ...second, serial: first.serial }), 'HYPERVISOR_REFUSED')
  })

  contractTest('a VM without virtio-scsi says so', async (scene, t) => {
    const name = scene.world.withoutScsi
    if (name === undefined) return t.skip('this world has no such VM')
    const { copy } = await oneCopy(scene)
    const vm = await scene.hypervisor.vm(name)
    assert.equal(vm.hotAddsScsi, false)
    const { message } = await rejectsWith(scene.hypervisor.attachCopy(vm.uuid, copy), 'VM_STATE')
    assert.match(message, /virtio-scsi/)
  })
}

function detachTests(contractTest: ContractTest): void {
  contractTest('detaching is idempotent: again, never attached, no such VM', async (scene) => {
    const { hypervisor, running, off } = scene
    const { overlays, copy } = await oneCopy(scene)
    await scene.attach(copy)
    for (let times = 0; times < 2; times++) await hypervisor.detachCopy(running.uuid, copy.serial)
    for (const uuid of [off.uuid, '00000000-0000-4000-8000-000000000000'])
      await hypervisor.detachCopy(uuid, copy.serial)
    await scene.attach(copy)
    await hypervisor.detachCopy(running.uuid, copy.serial)
    await scene.merge(overlays)
    await scene.isWhereItWas()
  })

  contractTest('a VM that was cut off has no copy any more, nor has its next start', async (scene) => {
    const { hypervisor, running } = scene
    const { overlays, copy } = await oneCopy(scene)
    await scene.attach(copy)
    await hypervisor.turnOff(running.uuid)
    await hypervisor.detachCopy(running.uuid, copy.serial)
    await scene.merge(overlays)
    await hypervisor.start(running.uuid)
    await scene.agentAnswers()
    await scene.isWhereItWas()
  })

  contractTest('a copy that a saved memory goes on with can not be taken away before the VM runs', async (scene) => {
    const { hypervisor, running } = scene
    const { copy } = await oneCopy(scene)
    await scene.attach(copy)
    await hypervisor.keepSaved(running.uuid, 'running')
    await rejectsWith(hypervisor.detachCopy(running.uuid, copy.serial), 'VM_STATE')
    await hypervisor.start(running.uuid)
    await hypervisor.detachCopy(running.uuid, copy.serial)
  })

  contractTest('overlays are not merged beneath an attached copy, and are after the detach', async (scene) => {
    const { overlays, copy } = await oneCopy(scene)
    const [placed] = overlays
    assert.ok(placed)
    await scene.attach(copy)
    const caught = await scene.mark()
    await rejectsWith(scene.hypervisor.mergeOverlay(scene.running.uuid, placed), 'MERGE_REFUSED')
    await scene.hypervisor.detachCopy(scene.running.uuid, copy.serial)
    await scene.merge(overlays)
    assert.ok(await scene.contains(placed.base, caught))
    await scene.isWhereItWas()
  })

  contractTest('a copy that does not go: a refusal that says it is still attached', async (scene, t) => {
    const { hypervisor, running, world } = scene
    if (world.hangDetach === undefined) return t.skip('this world can not bring that about')
    const { copy } = await oneCopy(scene)
    await scene.attach(copy)
    {
      await using _ = await world.hangDetach(running.name)
      const refusal = await rejectsWith(hypervisor.detachCopy(running.uuid, copy.serial), 'HYPERVISOR_REFUSED')
      assert.match(refusal.message, /still attached/)
    }
    await hypervisor.detachCopy(running.uuid, copy.serial)
  })
}

function requestorTests(contractTest: ContractTest): void {
  const guestTest: ContractTest = (name, test) =>
    contractTest(name, async (scene, t) => {
      if (scene.world.takesShadowCopies !== true) return t.skip("this world's guest takes no shadow copies")
      const requestor = scene.hypervisor.requestor(scene.running.uuid)
      try {
        await test(scene, t)
      } finally {
        await requestor.release(set)
      }
    })

  guestTest('the guest describes its volumes; release and thaw harm nobody when there is nothing', async (scene) => {
    const requestor = scene.hypervisor.requestor(scene.running.uuid)
    const { volumes } = await requestor.describe()
    for (const target of scene.targets) {
      const volume = volumes.find(({ targets }) => targets.includes(target))
      assert.ok(volume !== undefined && volume.kind !== 'other' && volume.obstacle === undefined, target)
    }
    await requestor.thawWriters(set)
    for (let times = 0; times < 2; times++) await requestor.release(set)
    await rejectsWith(requestor.status(set), 'GUEST_SET_LOST')
    await rejectsWith(requestor.commit(set), 'GUEST_SET_LOST')
  })

  guestTest('attached copies are reverted to the instant of the guest, and the VM goes on', async (scene) => {
    const { hypervisor, running } = scene
    const requestor = hypervisor.requestor(running.uuid)
    const before = await scene.mark()
    await requestor.prepare(set, 600_000)
    await requestor.freezeWriters(set, 60_000)
    await requestor.commit(set)
    await requestor.thawWriters(set)
    const between = await scene.mark()
    const { overlays, made } = await copies(scene)
    assert.ok((await requestor.status(set)).length > 0)
    await requestor.release(set)
    for (const copy of made) await scene.attach(copy)
    await requestor.revert(
      set,
      made.map(({ serial }) => serial),
    )
    for (const { serial } of made) await hypervisor.detachCopy(running.uuid, serial)
    const [copy, placed] = [made[0], overlays[0]]
    assert.ok(copy && placed)
    assert.deepEqual(
      [await scene.contains(copy.image, before), await scene.contains(placed.base, between)],
      [true, true],
    )
    const [a, b] = made
    if (scene.world.verifyRecords !== undefined && a !== undefined && b !== undefined)
      assert.equal((await scene.world.verifyRecords(a.image, b.image)).quiesced, true)
    await scene.merge(overlays)
    await scene.isWhereItWas()
  })

  guestTest('a guest that thaws by itself has lost its set', async (scene) => {
    const requestor = scene.hypervisor.requestor(scene.running.uuid)
    await requestor.prepare(set, 600_000)
    await requestor.freezeWriters(set, 1_000)
    await new Promise((resolve) => setTimeout(resolve, 2_500))
    await rejectsWith(requestor.thawWriters(set), 'GUEST_SET_LOST')
    await rejectsWith(requestor.commit(set), 'GUEST_SET_LOST')
  })
}
