/**
 * Sets of child VM snapshots when one member fails or Umbra dies: five real VMs, the third of which goes wrong in every
 * phase; no recovery point, all five run as before, nothing is left anywhere (V9, S1). And the eras on four VMs (W7).
 * Runs late: its guests must answer in time.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { createDisks, type GuestLayout } from '../../sample-guest/sample-guest.ts'
import { mapLimit } from '../../src/base/async.ts'
import { recover } from '../../src/compose.ts'
import { failure } from '../../src/errors.ts'
import { journalDirectory } from '../../src/requester/session.ts'
import type { RecoveryWay } from '../../src/vm/auto-recovery.ts'
import type { GuestRequestor } from '../../src/vm/guest-requestor.ts'
import type { Hypervisor } from '../../src/vm/hypervisor.ts'
import { profiles } from '../../src/vm/profile.ts'
import { rejectsWith } from '../contract/hypervisor-scene.ts'
import { bootOriginal, cloneOf, clonesOf, type Original } from './clones.ts'
import { around, type Hook, type Hooks } from './hooks.ts'
import type { Killable } from './killable.ts'
import {
  agentAnswers,
  beginStage,
  boot,
  bootOf,
  consoleOf,
  defineVm,
  eventually,
  inside,
  removeVm,
  type Stage,
  type StageVm,
  skipLive,
  vmDirectory,
} from './stage.ts'
import { backUp, nothingIsLeft, pointIds, stateOf } from './stage-session.ts'
import { thorough, usually } from './thorough.ts'

/** Usually the others are frozen, which is quicker where everything is emulated. */
const method = thorough ? 'child-snapshot' : 'auto'
const names = ['gx001', 'gx002', 'gx003', 'gx004', 'gx005']

describe('sets of child VM snapshots', { skip: skipLive, timeout: 900_000 }, () => {
  let stage: Stage
  let vms: readonly StageVm[]
  let plain: Original
  before(async () => {
    stage = await beginStage('childset')
    const small = { rate: 5, memoryMiB: 128 }
    const ofLayout = async (name: string, layout: GuestLayout) => {
      const disks = await createDisks(stage.images, vmDirectory(stage, name), 'qcow2', { layout })
      return bootOriginal(stage, name, disks.slice(0, 2), { rootOnLvm: layout === 'lvm', ...small })
    }
    const originals = await Promise.all([ofLayout('gx000', 'lvm'), ofLayout('gy000', 'plain')])
    const [original] = originals
    plain = originals[1]
    vms = await clonesOf(stage, (name) => (thorough || name === 'gx003' ? original : plain), names)
  })
  after(async () => {
    await stage?.[Symbol.asyncDispose]()
  })

  const third = (): StageVm => vms[2] as StageVm
  /** Everybody is as before; a hook that only the third VM feels. */
  const ofThird = (hypervisor: Hypervisor, hooks: Hooks): Hypervisor => {
    const only =
      (hook: Hook): Hook =>
      (call, args) =>
        args[0] === third().uuid ? hook(call, args) : call()
    return around(hypervisor, Object.fromEntries(Object.entries(hooks).map(([name, hook]) => [name, only(hook)])))
  }
  const requestorOfThird = (hooks: Hooks): Hypervisor =>
    ofThird(stage.hypervisor, {
      requestor: () => around<GuestRequestor>(stage.hypervisor.requestor(third().uuid), hooks),
    })
  const refuse: Hook = () => {
    throw failure('HYPERVISOR_REFUSED', { call: 'attach', reason: 'no more room on the controller' })
  }
  const inGap = (script: string): Hypervisor =>
    ofThird(stage.hypervisor, {
      prepareOverlays: async (call) => {
        await inside(stage, third(), script)
        return call()
      },
    })

  const failures: readonly {
    readonly what: string
    readonly recovery?: RecoveryWay
    readonly hypervisor: () => Hypervisor
    readonly before?: string
    readonly after?: string
    readonly says: RegExp
  }[] = [
    {
      what: 'its writer vetoes',
      hypervisor: () => stage.hypervisor,
      before: 'touch /run/writer-fail',
      after: 'rm /run/writer-fail',
      says: /vetoed/,
    },
    {
      what: 'its snapshot area fills up in the gap',
      hypervisor: () => inGap('dd if=/dev/urandom of=/srv/a/big bs=1M count=45 conv=fsync 2>/dev/null; rm /srv/a/big'),
      says: /can not be relied upon/,
    },
    {
      what: 'its copies can not be reverted',
      recovery: 'in-guest',
      hypervisor: () =>
        requestorOfThird({
          revert: () => {
            throw failure('GUEST_REFUSED', { vm: third().name, call: 'umbra-revert', reason: 'merge failed' })
          },
        }),
      says: /merge failed/,
    },
  ]
  const rareFailures: typeof failures = [
    {
      what: 'its agent dies in the gap',
      hypervisor: () =>
        inGap('(sleep 0.2; kill -STOP $(pidof qemu-ga); sleep 12; kill -CONT $(pidof qemu-ga)) >/dev/null 2>&1 &'),
      says: /does not answer/,
    },
    {
      what: 'its writer had lost its hold',
      hypervisor: () => stage.hypervisor,
      before: 'touch /run/writer-lost',
      after: 'rm /run/writer-lost',
      says: /can not be relied upon: the writer 10-test-switches: told that its hold was lost/,
    },
    {
      what: 'its copies can not be hot-added',
      recovery: 'in-guest',
      hypervisor: () => ofThird(stage.hypervisor, { attachCopy: refuse }),
      says: /no more room on the controller/,
    },
  ]
  for (const { what, recovery = 'auto', hypervisor, before: spoil, after: mend, says } of usually(
    failures,
    rareFailures,
  )) {
    it(`back up no VM when of the third of five ${what}`, async (t) => {
      const [states, lives] = [await each(stateOf), await each(bootOf)]
      const points = await pointIds(stage)
      if (spoil !== undefined) await inside(stage, third(), spoil)
      const policy = { method, recovery } as const
      const beganMs = performance.now()
      const error = await rejectsWith(backUp(stage, names, { hypervisor: hypervisor(), policy }), 'VSS_WRITER_VETO')
      t.diagnostic(`${Math.round(performance.now() - beganMs)} ms: ${error.message}`)
      assert.match(error.message, says)
      assert.match(error.message, /gx003/)
      for (const other of names.filter((name) => name !== 'gx003'))
        assert.doesNotMatch(error.message, new RegExp(other))
      await agentAnswers(stage, third())
      if (mend !== undefined) await inside(stage, third(), mend)
      await recover(stage.settings) // what an agent that was silent could not be told before
      assert.deepEqual(await pointIds(stage), points)
      assert.deepEqual(await each(stateOf), states)
      assert.deepEqual(await each(bootOf), lives)
      await nothingAnywhere()
    })
  }

  for (const at of usually<Killable['at']>(
    ['attached'],
    ['guest frozen', 'guest committed', 'host committed', 'reverted'],
  )) {
    it(`recover from kill -9 of Umbra: ${at}`, async (t) => {
      const vm = third()
      const [state, life, points] = [await stateOf(stage, vm), await bootOf(stage, vm), await pointIds(stage)]
      await killedAt(at, vm.name)
      const beganMs = performance.now()
      const journal = journalDirectory(stage.settings.stateDirectory)
      await eventually('the watchdog', async () => ((await readdir(journal)).length === 0 ? true : undefined))
      t.diagnostic(`all undone ${Math.round(performance.now() - beganMs)} ms after the kill`)
      assert.deepEqual(await stateOf(stage, vm), state)
      assert.equal(await bootOf(stage, vm), life)
      assert.deepEqual(await pointIds(stage), points)
      const size = () => inside(stage, vm, 'stat -c %s /srv/a/log').then(Number)
      const written = await size()
      await eventually('the writer', async () => ((await size()) > written ? true : undefined), 20_000)
      await nothingAnywhere()
    })
  }

  it('are taken back when the QEMU of one member dies in the gap', async () => {
    const states = await each(stateOf)
    const hypervisor = ofThird(stage.hypervisor, {
      prepareOverlays: async (call) => {
        await stage.hypervisor.turnOff(third().uuid)
        return call()
      },
    })
    await assert.rejects(backUp(stage, names, { hypervisor, policy: { method } })) // with what is left: a VM that is off
    await boot(stage, third())
    await recover(stage.settings)
    assert.deepEqual(await each(stateOf), states)
    await nothingAnywhere()
  })

  it('follow their era: the same four VMs in each profile, none paused or saved from 2012 R2 on', async (t) => {
    const one = third()
    for (const vm of vms) if (vm !== one) await removeVm(stage, vm)
    vms = [one]
    const mute = await createDisks(stage.images, vmDirectory(stage, 'mute'), 'qcow2')
    const cold = await createDisks(stage.images, vmDirectory(stage, 'cold'), 'qcow2')
    const agentless = { kernelArguments: 'umbra.agent=off' }
    const four = [
      one,
      await cloneOf(stage, plain, 'gy001'),
      await defineVm(stage, 'mute', mute.slice(0, 2), { memoryMiB: 128, ...agentless }),
      await defineVm(stage, 'cold', cold.slice(0, 1), { memoryMiB: 128 }),
    ]
    await stage.hypervisor.start(four[2]?.uuid ?? '')
    await eventually('the one without an agent', async () =>
      (await consoleOf(stage, { name: 'mute' })).includes('UMBRA-BOOTED') ? true : undefined,
    )
    const methodsOf = { '2008': 'child-snapshot saved-state saved-state offline' } as Record<string, string>
    methodsOf['2012'] = methodsOf['2008'] ?? ''
    methodsOf['2012r2'] = 'child-snapshot guest-freeze checkpoint offline'
    methodsOf.modern = methodsOf['2012r2']
    for (const profile of profiles) {
      if (profile === '2012' && !thorough) continue // does as 2008 did
      const saved: string[] = []
      const suspended: Hook = (call, args) => {
        saved.push(String(args[0]))
        return call()
      }
      const hypervisor = around(stage.hypervisor, { save: suspended, suspend: suspended })
      const four_ = four.map(({ name }) => name)
      const result = await backUp(stage, four_, { hypervisor, policy: { profile } })
      const methods = four_.map((name) => result.vms.find((vm) => vm.name === name)?.method)
      assert.equal(methods.join(' '), methodsOf[profile], profile)
      if (profile === '2012r2' || profile === 'modern') assert.deepEqual(saved, [], `${profile} saved a VM`)
      else assert.equal(saved.length, 2)
      for (const vm of result.vms)
        t.diagnostic(`${profile} ${vm.name}: ${vm.method}, held ${vm.freezeMs} ms, stood still ${vm.pausedMs} ms`)
      await nothingIsLeft(stage, four)
    }
  })

  const each = <T>(look: (stage: Stage, vm: StageVm) => Promise<T>): Promise<T[]> =>
    mapLimit(vms, 3, (vm) => look(stage, vm))

  async function nothingAnywhere(): Promise<void> {
    await nothingIsLeft(stage, vms)
    const traces =
      'lvm lvs --noheadings -o lv_name | grep umbra; dmsetup ls | grep umbra; ls -A /run/umbra-guest 2>/dev/null; true'
    const left = await each((_, vm) => inside(stage, vm, traces))
    for (const [index, { name }] of vms.entries()) assert.equal(left[index], '', name)
  }

  async function killedAt(at: Killable['at'], vm: string): Promise<void> {
    const task: Killable = { settings: stage.settings, repository: stage.repository.location, vm, at }
    const program = join(import.meta.dirname, 'killable.ts')
    const child = spawn(process.execPath, [program, JSON.stringify(task)], { stdio: ['ignore', 'ignore', 'pipe'] })
    let said = ''
    child.stderr.on('data', (data) => {
      said += data
    })
    const [, signal] = await once(child, 'exit')
    assert.equal(signal, 'SIGKILL', said)
  }
})
