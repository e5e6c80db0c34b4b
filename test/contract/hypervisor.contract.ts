/**
 * The contract of the Hypervisor port: every sentence of its comments, as a test. Run by the simulator and by real
 * libvirt. What only some worlds can bring about is an optional member of HypervisorContractWorld; its tests are skipped
 * without it.
 */
import assert from 'node:assert/strict'
import { describe, type TestContext, test } from 'node:test'
import { backupJobTests } from './hypervisor-backup-job.contract.ts'
import { guestTests } from './hypervisor-guest.contract.ts'
import { hostTests } from './hypervisor-host.contract.ts'
import { overlayTests } from './hypervisor-overlays.contract.ts'
import { recoveryTests } from './hypervisor-recovery.contract.ts'
import { type HypervisorContractWorld, HypervisorScene, rejectsWith } from './hypervisor-scene.ts'

export type { HypervisorContractWorld } from './hypervisor-scene.ts'

/** Declares one test of the contract. */
export type ContractTest = (name: string, body: (scene: HypervisorScene, t: TestContext) => Promise<void>) => void

/** `makeWorld` is called for every test; a world of real VMs may be the same one each time. */
export function hypervisorContract(
  name: string,
  makeWorld: () => Promise<HypervisorContractWorld>,
  options: { timeoutMs?: number } = {},
): void {
  describe(`hypervisor contract: ${name}`, { timeout: (options.timeoutMs ?? 120_000) * 100 }, () => {
    const contractTest: ContractTest = (sentence, body) => {
      test(sentence, { timeout: options.timeoutMs ?? 120_000 }, async (t) => {
        await using world = await makeWorld()
        await using scene = await HypervisorScene.begin(world)
        await body(scene, t)
      })
    }
    factTests(contractTest)
    powerTests(contractTest)
    savedStateTests(contractTest)
    overlayTests(contractTest)
    backupJobTests(contractTest)
    registrationTests(contractTest)
    networkTests(contractTest)
    hostTests(contractTest)
    guestTests(contractTest)
    recoveryTests(contractTest)
  })
}

function factTests(contractTest: ContractTest): void {
  contractTest('about names hypervisor, version, library and host', async ({ hypervisor }) => {
    for (const fact of Object.values(await hypervisor.about())) assert.ok(fact.length > 0)
    assert.ok(hypervisor.uri.length > 0)
  })

  contractTest('listVms has all VMs, by name', async ({ hypervisor, running, off }) => {
    const names = (await hypervisor.listVms()).map(({ name }) => name)
    assert.deepEqual(names, [...names].sort())
    assert.ok(names.includes(running.name) && names.includes(off.name))
  })

  contractTest('a VM is found by name and by UUID', async ({ hypervisor, running }) => {
    assert.match(running.uuid, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/)
    assert.equal((await hypervisor.vm(running.name)).uuid, running.uuid)
    assert.equal((await hypervisor.vm(running.uuid)).name, running.name)
  })

  contractTest('VM_NOT_FOUND names the VMs there are', async ({ hypervisor, running, off }) => {
    const { message } = await rejectsWith(hypervisor.vm('no-such-vm'), 'VM_NOT_FOUND')
    for (const part of ['no-such-vm', running.name, off.name]) assert.ok(message.includes(part), message)
  })

  contractTest('power is the state only, and gone when there is no such VM', async ({ hypervisor, running, off }) => {
    assert.equal(await hypervisor.power(running.uuid), 'running')
    assert.equal(await hypervisor.power(off.uuid), 'off')
    assert.equal(await hypervisor.power('00000000-0000-4000-8000-000000000000'), 'gone')
  })

  contractTest('the facts say how to open the disks, and what the next start uses', async ({ running, targets }) => {
    assert.equal(running.agent, 'connected')
    assert.equal(running.persistent, true)
    assert.equal(running.busy, undefined)
    assert.ok(running.configuration.includes(`<name>${running.name}</name>`))
    assert.ok(running.configuration.includes(running.uuid))
    for (const target of targets) {
      const disk = running.disks.find((each) => each.target === target)
      assert.ok(disk?.image !== undefined && disk.location !== '', target)
      assert.ok((disk.sizeBytes ?? 0) > 0)
      assert.equal(disk.device, 'disk')
      assert.equal(disk.passThrough, false)
    }
  })

  contractTest('the facts of a VM that is off: no agent connected', async ({ off, world }) => {
    assert.notEqual(off.agent, 'connected')
    assert.ok(off.disks.some(({ target, image }) => target === world.off.target && image !== undefined))
  })
}

function powerTests(contractTest: ContractTest): void {
  contractTest('suspend and resume are idempotent', async ({ hypervisor, running }) => {
    for (const [change, state] of [
      ['suspend', 'paused'],
      ['resume', 'running'],
    ] as const) {
      await hypervisor[change](running.uuid)
      await hypervisor[change](running.uuid)
      assert.equal(await hypervisor.power(running.uuid), state)
    }
  })

  contractTest('a VM that is off can be neither resumed nor suspended nor saved', async (scene) => {
    const { hypervisor, off } = scene
    const file = scene.path('memory')
    await rejectsWith(hypervisor.resume(off.uuid), 'VM_STATE')
    await rejectsWith(hypervisor.suspend(off.uuid), 'VM_STATE')
    await rejectsWith(hypervisor.save(off.uuid, file))
    await rejectsWith(hypervisor.keepSaved(off.uuid, 'running'))
    assert.equal(await hypervisor.power(off.uuid), 'off')
    assert.equal(await scene.world.fileExists(file), false)
  })

  contractTest('start, and turnOff which is idempotent and not a clean shut-down', async ({ hypervisor, off }) => {
    await hypervisor.start(off.uuid)
    assert.equal(await hypervisor.power(off.uuid), 'running')
    await rejectsWith(hypervisor.start(off.uuid))
    await hypervisor.turnOff(off.uuid)
    await hypervisor.turnOff(off.uuid)
    const facts = await hypervisor.vm(off.uuid)
    assert.equal(facts.power, 'off')
    assert.equal(facts.shutDownCleanly, false)
  })

  contractTest('a VM that is off has no screen; one that runs may have one', async ({ hypervisor, off, running }) => {
    assert.equal(await hypervisor.screenshot(off.uuid), undefined)
    const picture = await hypervisor.screenshot(running.uuid)
    if (picture !== undefined) assert.match(Buffer.from(picture.subarray(0, 4)).toString('latin1'), /^(P6|\x89PNG)/)
  })

  contractTest('the addresses of a guest are those that others can reach', async ({ guest }) => {
    for (const address of await guest.addresses()) assert.doesNotMatch(address, /^(127\.|::1|fe80)/)
  })

  contractTest('a paused VM can be turned off', async (scene) => {
    await scene.hypervisor.suspend(scene.running.uuid)
    await scene.hypervisor.turnOff(scene.running.uuid)
    assert.equal(await scene.power(), 'off')
  })

  contractTest('resumeAfterIoError leaves alone what somebody else paused, and what runs', async (scene) => {
    const { hypervisor, running } = scene
    assert.equal(await hypervisor.resumeAfterIoError(running.uuid), false)
    await hypervisor.suspend(running.uuid)
    assert.equal(await hypervisor.resumeAfterIoError(running.uuid), false)
    assert.equal(await scene.power(), 'paused')
  })

  contractTest('resumeAfterIoError resumes a VM that met a full disk', async (scene, t) => {
    if (scene.world.fillHost === undefined) return t.skip('this world can not fill the host')
    await scene.overlay()
    {
      await using _full = await scene.world.fillHost(scene.running.name)
      assert.equal(await scene.power(), 'paused')
    }
    assert.equal(await scene.hypervisor.resumeAfterIoError(scene.running.uuid), true)
    assert.equal(await scene.power(), 'running')
  })
}

function savedStateTests(contractTest: ContractTest): void {
  for (const before of ['running', 'paused'] as const) {
    contractTest(`a saved state of a ${before} VM round trip: off, paused, running as it was`, async (scene) => {
      const { hypervisor, running, world } = scene
      const boot = await world.bootOf(running.name)
      const file = scene.path('memory')
      if (before === 'paused') await hypervisor.suspend(running.uuid)
      await hypervisor.save(running.uuid, file)
      assert.equal(await scene.power(), 'off')
      await hypervisor.restoreSaved(file)
      assert.equal(await scene.power(), 'paused')
      assert.ok(await world.fileExists(file), 'the file stays')
      await hypervisor.resume(running.uuid)
      await scene.agentAnswers()
      assert.equal(await world.bootOf(running.name), boot)
      await scene.isWhereItWas()
    })
  }

  contractTest('save refuses a file that exists, and the VM runs on', async (scene) => {
    const file = scene.path('memory')
    await scene.world.createFile(file)
    await rejectsWith(scene.hypervisor.save(scene.running.uuid, file))
    assert.equal(await scene.power(), 'running')
    assert.ok(await scene.world.fileExists(file))
  })

  contractTest('restoreSaved refuses a file that is none, and a VM that runs', async (scene) => {
    const { hypervisor, running } = scene
    await rejectsWith(hypervisor.restoreSaved(scene.path('nothing')))
    const file = scene.path('memory')
    await hypervisor.save(running.uuid, file)
    await hypervisor.restoreSaved(file)
    await hypervisor.resume(running.uuid)
    await rejectsWith(hypervisor.restoreSaved(file))
    assert.equal(await scene.power(), 'running')
  })

  contractTest('restoreSaved takes a configuration in place of the one in the file', async (scene) => {
    const { hypervisor, running } = scene
    const file = scene.path('memory')
    await hypervisor.save(running.uuid, file)
    await hypervisor.restoreSaved(file, running.configuration)
    assert.equal(await scene.power(), 'paused')
    await hypervisor.resume(running.uuid)
    await scene.agentAnswers()
    await scene.isWhereItWas()
  })

  contractTest(
    'restoreSaved of a VM that is not registered: it is not persistent until it is defined',
    async (scene) => {
      const { hypervisor, running } = scene
      const file = scene.path('memory')
      await hypervisor.save(running.uuid, file)
      await hypervisor.undefine(running.uuid)
      assert.equal(await scene.power(), 'gone')
      await hypervisor.restoreSaved(file)
      assert.equal((await hypervisor.vm(running.uuid)).persistent, false)
      await hypervisor.define(running.configuration)
      assert.equal((await hypervisor.vm(running.uuid)).persistent, true)
      assert.equal(await scene.power(), 'paused')
    },
  )

  for (const before of ['running', 'paused'] as const) {
    for (const next of ['running', 'paused'] as const) {
      contractTest(`keepSaved of a ${before} VM: saved, and the next start leads to ${next}`, async (scene) => {
        const { hypervisor, running, world } = scene
        const boot = await world.bootOf(running.name)
        if (before === 'paused') await hypervisor.suspend(running.uuid)
        await hypervisor.keepSaved(running.uuid, next)
        assert.equal(await scene.power(), 'saved')
        assert.equal((await hypervisor.vm(running.uuid)).power, 'saved')
        await hypervisor.start(running.uuid)
        assert.equal(await scene.power(), next)
        await hypervisor.resume(running.uuid)
        await scene.agentAnswers()
        assert.equal(await world.bootOf(running.name), boot)
      })
    }
  }
}

function registrationTests(contractTest: ContractTest): void {
  contractTest('undefine, idempotent, leaves the disks; define brings the same VM back, verbatim', async (scene) => {
    const { hypervisor, off, world } = scene
    const disk = off.disks.find(({ target }) => target === world.off.target)
    await hypervisor.undefine(off.uuid)
    await hypervisor.undefine(off.uuid)
    assert.equal(await hypervisor.power(off.uuid), 'gone')
    await rejectsWith(hypervisor.vm(off.name), 'VM_NOT_FOUND')
    if (disk?.sourceType === 'file') assert.ok(await world.fileExists(disk.location))
    assert.equal(await hypervisor.define(off.configuration), off.uuid)
    const again = await hypervisor.vm(off.name)
    assert.equal(again.configuration, off.configuration)
    assert.equal(again.power, 'off')
    assert.deepEqual(again.disks, off.disks)
  })

  contractTest('undefine refuses a VM that is not off', async (scene) => {
    await rejectsWith(scene.hypervisor.undefine(scene.running.uuid))
    assert.equal(await scene.power(), 'running')
    assert.equal((await scene.hypervisor.vm(scene.running.uuid)).persistent, true)
  })

  contractTest('define replaces the configuration of a VM', async ({ hypervisor, off }) => {
    const title = '<title>umbra contract</title>'
    const uuid = await hypervisor.define(off.configuration.replace('</uuid>', `</uuid>\n  ${title}`))
    assert.equal(uuid, off.uuid)
    assert.ok((await hypervisor.vm(off.uuid)).configuration.includes(title))
    await hypervisor.define(off.configuration)
    assert.equal((await hypervisor.vm(off.uuid)).configuration, off.configuration)
  })

  contractTest('define while the VM runs is for the next start; the VM runs on', async ({ hypervisor, running }) => {
    assert.equal(await hypervisor.define(running.configuration), running.uuid)
    const facts = await hypervisor.vm(running.uuid)
    assert.equal(facts.power, 'running')
    assert.equal(facts.configuration, running.configuration)
  })

  contractTest('define refuses what is no configuration, and a name that is taken', async ({ hypervisor, off }) => {
    const before = (await hypervisor.listVms()).map(({ name }) => name)
    await rejectsWith(hypervisor.define('<domain><name>half'))
    await rejectsWith(hypervisor.define(off.configuration.replace(off.uuid, '00000000-0000-4000-8000-000000000001')))
    const after = (await hypervisor.listVms()).map(({ name }) => name)
    assert.deepEqual(after, before)
  })
}

function networkTests(contractTest: ContractTest): void {
  contractTest('ensureIsolatedNetwork makes an active network, once', async ({ hypervisor, world }) => {
    const name = 'umbra-contract'
    await hypervisor.ensureIsolatedNetwork(name)
    await hypervisor.ensureIsolatedNetwork(name)
    const made = (await hypervisor.networks()).filter((network) => network.name === name)
    assert.deepEqual(made, [{ name, kind: 'network', active: true }])
    await world.removeNetwork?.(name)
  })

  contractTest('createIsolatedNetwork makes one that removeIsolatedNetwork, idempotent, removes', async (scene) => {
    const { hypervisor } = scene
    const name = 'umbra-contract-own'
    const there = async () => (await hypervisor.networks()).filter((network) => network.name === name)
    await hypervisor.removeIsolatedNetwork(name)
    await hypervisor.createIsolatedNetwork(name)
    assert.deepEqual(await there(), [{ name, kind: 'network', active: true }])
    await rejectsWith(hypervisor.createIsolatedNetwork(name))
    await hypervisor.removeIsolatedNetwork(name)
    await hypervisor.removeIsolatedNetwork(name)
    assert.deepEqual(await there(), [])
  })
}
