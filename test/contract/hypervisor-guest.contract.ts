/**
 * The contract of the integration service inside a guest: freezing and thawing above all.
 */
import assert from 'node:assert/strict'
import { setTimeout } from 'node:timers/promises'
import type { ContractTest } from './hypervisor.contract.ts'
import { rejectsWith } from './hypervisor-scene.ts'

export function guestTests(contractTest: ContractTest): void {
  answerTests(contractTest)
  freezeTests(contractTest)
  trouble(contractTest)
}

function answerTests(contractTest: ContractTest): void {
  contractTest('the service answers, and names its operating system', async ({ guest }) => {
    await guest.ping()
    const { id, name } = await guest.osInfo()
    assert.ok(id.length > 0 && name.length > 0)
  })

  contractTest('file systems are told with the disks they lie on', async ({ guest, running, targets }) => {
    await guest.ping()
    const fileSystems = await guest.fileSystems()
    const known = running.disks.map(({ target }) => target)
    for (const fileSystem of fileSystems) {
      assert.ok(fileSystem.mountPoint.length > 0 && fileSystem.type.length > 0)
      for (const target of fileSystem.targets) assert.ok(known.includes(target), target)
    }
    const covered = fileSystems.flatMap((fileSystem) => fileSystem.targets)
    for (const target of targets) assert.ok(covered.includes(target), `no file system on ${target}`)
  })

  contractTest('exec gives output and exit code', async ({ guest, world }) => {
    await guest.ping()
    const said = await guest.exec(world.programs?.echo ?? '/bin/echo', ['umbra', 'contract'])
    assert.deepEqual(said, { exitCode: 0, stdout: 'umbra contract\n', stderr: '' })
    assert.equal((await guest.exec(world.programs?.fail ?? '/bin/false', [])).exitCode, 1)
    await rejectsWith(guest.exec('/no/such/program', []), 'GUEST_REFUSED')
  })

  contractTest('output is cut at 1 MiB', async ({ guest, world }, t) => {
    const flood = world.programs?.flood
    if (flood === undefined) return t.skip('this world has no program that writes much')
    await guest.ping()
    const { stdout } = await guest.exec(flood.path, flood.args)
    assert.equal(stdout.length, 1024 * 1024)
  })

  contractTest('the clock can be set', async ({ guest }) => {
    await guest.ping()
    await guest.syncClock()
  })
}

function freezeTests(contractTest: ContractTest): void {
  contractTest('freeze and thaw tell how many file systems', async ({ guest }) => {
    await guest.ping()
    assert.equal(await guest.freezeStatus(), 'thawed')
    const frozen = await guest.freeze()
    assert.ok(frozen > 0)
    assert.equal(await guest.freezeStatus(), 'frozen')
    assert.equal(await guest.thaw(), frozen)
    assert.equal(await guest.freezeStatus(), 'thawed')
  })

  contractTest('a thaw of a guest that is not frozen thaws nothing', async ({ guest }) => {
    await guest.ping()
    assert.equal(await guest.thaw(), 0)
    assert.equal(await guest.freezeStatus(), 'thawed')
  })

  contractTest('a frozen guest refuses to run programs, and runs them after the thaw', async ({ guest, world }) => {
    const echo = world.programs?.echo ?? '/bin/echo'
    await guest.ping()
    await guest.freeze()
    await guest.ping()
    await rejectsWith(guest.exec(echo, ['frozen']), 'GUEST_REFUSED')
    await guest.thaw()
    assert.equal((await guest.exec(echo, ['thawed'])).stdout, 'thawed\n')
  })

  contractTest('after a lost freeze the thaw returns only when the guest is thawed', async (scene, t) => {
    const { guest, world, running } = scene
    if (world.loseNextFreeze === undefined) return t.skip('this world loses no freezes')
    const afterMs = 300
    await guest.ping()
    await world.loseNextFreeze(running.name, afterMs)
    await rejectsWith(guest.freeze(), 'GUEST_NOT_RESPONDING', 'GUEST_REFUSED')
    await guest.thaw()
    await setTimeout(afterMs * 2)
    assert.equal(await guest.freezeStatus(), 'thawed')
    await scene.mark()
  })

  contractTest(
    'a guest that thawed by itself is told by the count of the thaw',
    async ({ guest, world, running }, t) => {
      if (world.thawBySelf === undefined) return t.skip('the guests of this world do not thaw by themselves')
      const afterMs = 200
      await using _watchdog = await world.thawBySelf(running.name, afterMs)
      await guest.ping()
      const frozen = await guest.freeze()
      await setTimeout(afterMs * 2)
      const thawed = await guest.thaw()
      assert.ok(thawed < frozen, `${thawed} of ${frozen}`)
    },
  )
}

function trouble(contractTest: ContractTest): void {
  contractTest('the guest of a VM that is off or paused does not respond', async ({ hypervisor, running, off }) => {
    await rejectsWith(hypervisor.guest(off.uuid).ping(), 'GUEST_NOT_RESPONDING', 'VM_STATE')
    await hypervisor.suspend(running.uuid)
    await rejectsWith(hypervisor.guest(running.uuid).ping(), 'GUEST_NOT_RESPONDING', 'VM_STATE')
    await rejectsWith(hypervisor.guest(running.uuid).freeze(), 'GUEST_NOT_RESPONDING', 'VM_STATE')
  })

  contractTest('every call is bounded in time when the service is silent', async ({ guest, world, running }, t) => {
    if (world.silenceAgent === undefined) return t.skip('the agents of this world always answer')
    await guest.ping()
    await using _silence = await world.silenceAgent(running.name)
    await rejectsWith(guest.ping(), 'GUEST_NOT_RESPONDING')
    await rejectsWith(guest.freeze(), 'GUEST_NOT_RESPONDING')
    await rejectsWith(guest.thaw(), 'GUEST_NOT_RESPONDING')
  })
}
