/**
 * Umbra killed with SIGKILL and libvirtd restarted, in the midst of backups and restores; part of faults.test.ts, whose
 * afterEach looks for whatever is left.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { privateLibvirtd } from '../../sample-guest/sample-guest.ts'
import { recover } from '../../src/compose.ts'
import { journalDirectory } from '../../src/requester/session.ts'
import type { FaultScene } from './faults.test.ts'
import { duringTransfer } from './hooks.ts'
import type { Killable } from './killable.ts'
import { acknowledged, agentAnswers, boot, bootOf, eventually, type Stage, verdictAtBoot } from './stage.ts'
import { backUp, nothingIsLeft, pointIds, stateOf, verdictOf } from './stage-session.ts'

/** Above what a watchdog may take before a guest writes again. */
const watchdogLimitMs = 10_000

export function crashTests(scene: () => FaultScene): void {
  for (const at of ['frozen', 'committed', 'transfer', 'saved'] as const) {
    it(`recovers from kill -9 of a backup: ${at}`, async (t) => {
      const { stage, web } = scene()
      const [state, life, points] = [await stateOf(stage, web), await bootOf(stage, web), await pointIds(stage)]
      await killedAt(stage, { at, vm: 'web' })
      const beganMs = performance.now()
      const passedMs = () => Math.round(performance.now() - beganMs)
      const guest = stage.hypervisor.guest(web.uuid)
      await eventually(
        'the thaw',
        async () => ((await guest.freezeStatus()) === 'thawed' ? true : undefined),
        watchdogLimitMs,
      )
      t.diagnostic(`thawed ${passedMs()} ms after the kill`)
      const journal = journalDirectory(stage.settings.stateDirectory)
      if (at === 'frozen')
        await eventually('the watchdog', async () => ((await readdir(journal)).length === 0 ? true : undefined))
      const recovered = await recover(stage.settings)
      t.diagnostic(`all undone after ${passedMs()} ms: ${JSON.stringify(recovered.map(({ undone }) => undone))}`)
      assert.deepEqual(
        recovered.flatMap(({ failed }) => failed),
        [],
      )
      assert.deepEqual(await stateOf(stage, web), state)
      assert.equal(await bootOf(stage, web), life)
      assert.deepEqual(await pointIds(stage), points)
      const before = await acknowledged(stage, web)
      await eventually('the writer', async () => ((await acknowledged(stage, web)) > before ? true : undefined), 20_000)
    })
  }

  it('recovers with the next command when the watchdog was killed as well', async (t) => {
    const { stage, web } = scene()
    const [state, life] = [await stateOf(stage, web), await bootOf(stage, web)]
    await killedAt(stage, { at: 'committed', vm: 'web', withWatchdog: true })
    assert.equal(await stage.hypervisor.guest(web.uuid).freezeStatus(), 'frozen')
    const beganMs = performance.now()
    const recovered = await recover(stage.settings)
    t.diagnostic(`all undone within ${Math.round(performance.now() - beganMs)} ms: ${JSON.stringify(recovered)}`)
    assert.equal(recovered[0]?.undone[0], 'thaw-guest web', 'a guest does not wait for merges')
    assert.deepEqual(recovered[0]?.failed, [])
    assert.deepEqual(await stateOf(stage, web), state)
    assert.equal(await bootOf(stage, web), life)
  })

  it('ends well when QEMU is killed during the transfer, with the VM off on its own disks', async () => {
    const { stage, web } = scene()
    const repository = duringTransfer(stage.repository, async () => {
      process.kill(await qemuOf(stage, 'web'), 'SIGKILL')
      await eventually('its end', async () => ((await stage.hypervisor.power(web.uuid)) === 'off' ? true : undefined))
    })
    const { recoveryPoint } = await backUp(stage, ['web'], { repository })
    await nothingIsLeft(stage, [web])
    const verdict = await verdictOf(stage, recoveryPoint, web)
    assert.ok(verdict.ok && verdict.quiesced, JSON.stringify(verdict))
    await boot(stage, web)
    const atBoot = await verdictAtBoot(stage, web)
    assert.ok(atBoot.ok && atBoot.crossConsistent, JSON.stringify(atBoot))
    assert.ok((atBoot.logs[0]?.last ?? 0) >= (verdict.logs[0]?.last ?? 0), 'what was written meanwhile was merged')
  })

  for (const at of ['set aside', 'defined'] as const) {
    it(`brings the former VM back after kill -9 of a restore: ${at}`, async (t) => {
      const { stage, web } = scene()
      const { recoveryPoint } = await backUp(stage, ['web'])
      const [state, life] = [await stateOf(stage, web), await bootOf(stage, web)]
      await sleep(500)
      const sure = await acknowledged(stage, web)
      await killedAt(stage, { at, vm: 'web', point: recoveryPoint })
      const beganMs = performance.now()
      assert.deepEqual(
        (await recover(stage.settings)).flatMap(({ failed }) => failed),
        [],
      )
      t.diagnostic(`the former VM was started again ${Math.round(performance.now() - beganMs)} ms after the kill`)
      await agentAnswers(stage, web)
      assert.deepEqual(await stateOf(stage, web), state)
      assert.notEqual(await bootOf(stage, web), life, 'it was turned off in between')
      const verdict = await verdictAtBoot(stage, web)
      assert.ok(verdict.ok && (verdict.logs[1]?.last ?? 0) >= sure, JSON.stringify(verdict))
    })
  }

  it('outlives a libvirtd that is killed and started again during the transfer', async (t) => {
    const { stage, web } = scene()
    const [state, life] = [await stateOf(stage, web), await bootOf(stage, web)]
    const repository = duringTransfer(stage.repository, async () => {
      const pid = Number(await readFile(join(stage.libvirtd.directory, 'libvirtd.pid'), 'utf8'))
      process.kill(pid, 'SIGKILL')
      await privateLibvirtd(stage.libvirtd.directory)
    })
    const outcome = await backUp(stage, ['web'], { repository }).then(
      (result) => result,
      (error: unknown) => error,
    )
    t.diagnostic(outcome instanceof Error ? `failed: ${outcome.message}` : 'the backup ended well')
    assert.deepEqual(
      (await recover(stage.settings)).flatMap(({ failed }) => failed),
      [],
    )
    await agentAnswers(stage, web)
    assert.deepEqual(await stateOf(stage, web), state)
    assert.equal(await bootOf(stage, web), life)
    if (!(outcome instanceof Error)) {
      const { recoveryPoint } = outcome as { recoveryPoint: string }
      const verdict = await verdictOf(stage, recoveryPoint, web)
      assert.ok(verdict.ok && verdict.quiesced, JSON.stringify(verdict))
    }
  })
}

export const qemuOf = async ({ libvirtd }: Stage, name: string): Promise<number> =>
  Number(await readFile(join(libvirtd.directory, 'run/qemu', `${name}.pid`), 'utf8'))

/** Runs a session in a process that kills itself at that moment, and waits for its death. */
export async function killedAt(stage: Stage, what: Omit<Killable, 'settings' | 'repository'>): Promise<void> {
  const { settings, repository, policy } = stage
  const profile = policy.profile === undefined ? {} : { profile: policy.profile }
  const task: Killable = { settings, repository: repository.location, ...profile, ...what }
  const program = join(import.meta.dirname, 'killable.ts')
  const child = spawn(process.execPath, [program, JSON.stringify(task)], { stdio: ['ignore', 'pipe', 'pipe'] })
  let said = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (bytes: Buffer) => (said += bytes))
  const [code, signal] = await once(child, 'exit')
  assert.equal(signal, 'SIGKILL', `it ended with ${code} and not at that moment: ${said}`)
}
