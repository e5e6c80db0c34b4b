/**
 * Backups of real VMs by each method, alone and together; part of backup-restore.test.ts, whose afterEach looks for
 * whatever a backup left behind.
 */
import assert from 'node:assert/strict'
import { it } from 'node:test'
import { createDisks } from '../../sample-guest/sample-guest.ts'
import { rejectsWith } from '../contract/hypervisor-scene.ts'
import { duringTransfer } from './hooks.ts'
import { dbMac, onlyRun, type Scene } from './scene.ts'
import {
  acknowledged,
  agentAnswers,
  bootOf,
  defineVm,
  eventually,
  inside,
  removeVm,
  type Stage,
  type StageVm,
  verdictAtBoot,
  virsh,
  vmDirectory,
} from './stage.ts'
import { backUp, nothingIsLeft, pointIds, restoreVm, stateOf, verdictOf } from './stage-session.ts'

export function methodTests(scene: () => Scene): void {
  it('freezes two VMs that write flat out, and their copies boot to all they had acknowledged', async (t) => {
    const { stage, web, db } = scene()
    await onlyRun(scene(), 'web', 'db')
    const vms = [web, db]
    const ofAll = <T>(look: (stage: Stage, vm: StageVm) => Promise<T>) => Promise.all(vms.map((vm) => look(stage, vm)))
    const [states, boots, before] = [await ofAll(stateOf), await ofAll(bootOf), await ofAll(acknowledged)]
    const result = await backUp(stage, ['web', 'db'])
    for (const vm of result.vms) {
      t.diagnostic(`${vm.name}: frozen ${vm.freezeMs} ms, writes held ${vm.heldMs} ms; ${result.durationMs} ms in all`)
      assert.equal(vm.method, 'guest-freeze')
      assert.equal(vm.consistency, 'filesystem')
      assert.ok(vm.freezeMs > vm.heldMs && vm.freezeMs < 5_000, `frozen for ${vm.freezeMs} ms`)
      assert.ok(vm.heldMs > 0 && vm.heldMs < 500, `writes held for ${vm.heldMs} ms`)
      assert.equal(vm.disks.length, 3)
    }
    const verdicts = await Promise.all(vms.map((vm) => verdictOf(stage, result.recoveryPoint, vm)))
    for (const [index, verdict] of verdicts.entries()) {
      assert.ok(verdict.ok && verdict.crossConsistent && verdict.quiesced, JSON.stringify(verdict))
      assert.ok((verdict.logs[1]?.last ?? 0) >= (before[index] ?? 0), 'all that was acknowledged is there')
    }
    await nothingIsLeft(stage, vms)

    await onlyRun(scene()) // the copies come up quicker
    const copies: StageVm[] = []
    for (const vm of vms) copies.push(await startCopy(stage, result.recoveryPoint, vm))
    for (const [index, copy] of copies.entries()) {
      const facts = await stage.hypervisor.vm(copy.uuid)
      assert.notEqual(facts.uuid, vms[index]?.uuid)
      assert.ok(facts.nics.every(({ mac }) => mac !== dbMac))
      for (const { backing } of facts.disks) assert.deepEqual(backing, [], 'a restored disk stands on its own')
      await agentAnswers(stage, copy)
      const verdict = await verdictAtBoot(stage, copy)
      assert.ok(verdict.ok && verdict.crossConsistent && verdict.quiesced, JSON.stringify(verdict))
      assert.ok((verdict.logs[1]?.last ?? 0) >= (before[index] ?? 0))
      await removeVm(stage, copy)
    }
    await onlyRun(scene(), 'web', 'db')
    assert.deepEqual(await ofAll(stateOf), states, 'the originals are as they were')
    assert.deepEqual(await ofAll(bootOf), boots, 'the originals have run on')
  })

  it('takes a checkpoint of a VM whose agent is dead, VHD and NBD disk at one instant', async (t) => {
    const { stage, mixed } = scene()
    await onlyRun(scene(), 'mixed')
    const before = await acknowledged(stage, mixed)
    await inside(stage, mixed, silenced)
    const agent = stage.hypervisor.guest(mixed.uuid)
    await eventually('the agent to fall silent', () =>
      agent.ping().then(
        () => undefined,
        () => true,
      ),
    )
    const result = await backUp(stage, ['mixed'])
    const [vm] = result.vms
    assert.equal(vm?.method, 'checkpoint')
    assert.equal(vm?.consistency, 'crash')
    t.diagnostic(`${result.durationMs} ms in all`)
    const verdict = await verdictOf(stage, result.recoveryPoint, mixed)
    assert.ok(verdict.ok && verdict.crossConsistent, JSON.stringify(verdict))
    assert.ok((verdict.logs[1]?.last ?? 0) >= before)
    virsh(stage, 'inject-nmi', 'mixed')
    await agentAnswers(stage, mixed)
    await onlyRun(scene())
    const copy = await startCopy(stage, result.recoveryPoint, mixed)
    await agentAnswers(stage, copy)
    const atBoot = await verdictAtBoot(stage, copy)
    assert.ok(atBoot.ok && atBoot.crossConsistent, JSON.stringify(atBoot))
    await removeVm(stage, copy)
  })

  it('saves a running VM, returns it, and brings it back to the very moment', async (t) => {
    const { stage, db } = scene()
    await onlyRun(scene(), 'db')
    const life = 'cat /proc/sys/kernel/random/boot_id; pidof umbra-writer'
    const before = await inside(stage, db, life)
    const uptimeBefore = Number(await inside(stage, db, 'cut -d. -f1 /proc/uptime'))
    await inside(stage, db, 'date -s "@$(($(date +%s) - 3600))"') // wrong by more than any pause could make it
    const result = await backUp(stage, ['db'], { policy: { method: 'saved-state' } })
    const [vm] = result.vms
    t.diagnostic(`stood still for ${vm?.pausedMs} ms`)
    assert.equal(vm?.consistency, 'application')
    assert.equal(await stage.hypervisor.power(db.uuid), 'running')
    assert.ok(result.events.some(({ detail }) => detail === 'guest clock set'))
    const behindSeconds = Date.now() / 1000 - Number(await inside(stage, db, 'date +%s'))
    // Hardware clock, its start and `date` each drop up to a second.
    assert.ok(behindSeconds > -2 && behindSeconds < 6, `the guest is ${behindSeconds} s behind`)
    assert.equal(await inside(stage, db, life), before)
    await inside(stage, db, 'touch /run/after-the-backup')
    await nothingIsLeft(stage, [db])

    await restoreVm(stage, result.recoveryPoint, 'db')
    assert.equal(await stage.hypervisor.power(db.uuid), 'saved')
    await stage.hypervisor.start(db.uuid)
    await agentAnswers(stage, db)
    assert.equal(await inside(stage, db, `${life}; ls /run/after-the-backup 2>/dev/null || true`), before)
    const uptime = Number(await inside(stage, db, 'cut -d. -f1 /proc/uptime'))
    assert.ok(uptime >= uptimeBefore && uptime < uptimeBefore + 60, `${uptimeBefore} s at the backup, ${uptime} s now`)
    await inside(stage, db, 'umbra-writer verify /srv/a/log /srv/b/log')
  })

  it('leaves a paused VM paused, and brings it back paused from its saved state', async () => {
    const { stage, web } = scene()
    await onlyRun(scene(), 'web')
    const life = await bootOf(stage, web)
    await stage.hypervisor.suspend(web.uuid)
    const points: string[] = []
    for (const method of ['saved-state', 'auto'] as const) {
      const result = await backUp(stage, ['web'], { policy: { method } })
      points.push(result.recoveryPoint)
      assert.equal(result.vms[0]?.consistency, method === 'auto' ? 'crash' : 'application')
      assert.equal(await stage.hypervisor.power(web.uuid), 'paused')
      const verdict = await verdictOf(stage, result.recoveryPoint, web)
      assert.ok(verdict.ok && verdict.crossConsistent, JSON.stringify(verdict))
    }
    await restoreVm(stage, points[0] ?? '', 'web')
    assert.equal(await stage.hypervisor.power(web.uuid), 'saved')
    await stage.hypervisor.start(web.uuid)
    assert.equal(await stage.hypervisor.power(web.uuid), 'paused')
    await stage.hypervisor.resume(web.uuid)
    await agentAnswers(stage, web)
    assert.equal(await bootOf(stage, web), life)
    await inside(stage, web, 'umbra-writer verify /srv/a/log /srv/b/log')
  })

  it('backs up a VM that is off, and its owner may start it meanwhile', async () => {
    const { stage, mixed } = scene()
    await onlyRun(scene(), 'mixed')
    const before = await acknowledged(stage, mixed)
    virsh(stage, 'shutdown', '--mode', 'agent', 'mixed')
    await eventually('the end', async () => ((await stage.hypervisor.power(mixed.uuid)) === 'off' ? true : undefined))
    const repository = duringTransfer(stage.repository, () => stage.hypervisor.start(mixed.uuid))
    const result = await backUp(stage, ['mixed'], { repository })
    assert.equal(result.vms[0]?.method, 'offline')
    assert.equal(result.vms[0]?.consistency, 'application')
    assert.equal(await stage.hypervisor.power(mixed.uuid), 'running')
    const verdict = await verdictOf(stage, result.recoveryPoint, mixed)
    assert.ok(verdict.ok && (verdict.logs[1]?.last ?? 0) >= before, JSON.stringify(verdict))
    await agentAnswers(stage, mixed)
    const atBoot = await verdictAtBoot(stage, mixed)
    assert.ok(atBoot.ok, JSON.stringify(atBoot))
    await nothingIsLeft(stage, [mixed])

    await stage.hypervisor.turnOff(mixed.uuid)
    const cut = await backUp(stage, ['mixed'])
    assert.equal(cut.vms[0]?.method, 'offline')
    assert.equal(cut.vms[0]?.consistency, 'crash')
    assert.equal(await stage.hypervisor.power(mixed.uuid), 'off')
  })

  it('backs up no VM when one of them can not be frozen', async () => {
    const { stage, web, db } = scene()
    await onlyRun(scene(), 'web', 'db')
    const [states, points] = [await Promise.all([web, db].map((vm) => stateOf(stage, vm))), await pointIds(stage)]
    await inside(stage, db, 'touch /run/hook-fail')
    for (const instant of ['vm', 'set'] as const) {
      const error = await rejectsWith(backUp(stage, ['web', 'db'], { policy: { instant } }), 'VSS_WRITER_VETO')
      assert.match(error.message, /db/)
      assert.doesNotMatch(error.message, /web/)
      await nothingIsLeft(stage, [web, db])
    }
    await inside(stage, db, 'rm /run/hook-fail')
    assert.deepEqual(await pointIds(stage), points)
    assert.deepEqual(await Promise.all([web, db].map((vm) => stateOf(stage, vm))), states)
    await allThawed(stage, [web, db])
  })

  it('takes copies of two VMs at one instant, and tells how far apart they are', async (t) => {
    const { stage, web, db } = scene()
    const result = await backUp(stage, ['web', 'db'], { policy: { instant: 'set', require: 'filesystem' } })
    t.diagnostic(`skew ${result.skewMs} ms; frozen ${result.vms.map(({ freezeMs }) => freezeMs).join(' and ')} ms`)
    assert.ok(result.skewMs > 0 && result.skewMs < 1000, `${result.skewMs} ms`)
    const names = result.events.flatMap(({ event }) => (['Freeze', 'Commit', 'Thaw'].includes(event) ? [event] : []))
    assert.deepEqual(names.slice(0, 4), ['Freeze', 'Commit', 'Commit', 'Thaw'])
    for (const verdict of await Promise.all([web, db].map((vm) => verdictOf(stage, result.recoveryPoint, vm)))) {
      assert.ok(verdict.ok && verdict.quiesced, JSON.stringify(verdict))
    }
  })

  it('thaws everybody when the freeze takes longer than its window', async (t) => {
    const { stage, web, db } = scene()
    const points = await pointIds(stage)
    await inside(stage, db, 'echo 4 > /run/hook-slow')
    const beganMs = performance.now()
    const setup = { policy: { instant: 'set' }, limits: { freezeMs: 1500 } } as const
    const error = await rejectsWith(backUp(stage, ['web', 'db'], setup), 'VSS_WRITER_TIMEOUT')
    t.diagnostic(`${error.message}; over after ${Math.round(performance.now() - beganMs)} ms`)
    await allThawed(stage, [web, db])
    await inside(stage, db, 'rm /run/hook-slow')
    assert.deepEqual(await pointIds(stage), points)
  })

  it('leaves out pass-through, LUN and iSCSI disks, and says so', async () => {
    const { stage } = scene()
    await onlyRun(scene())
    const disks = await createDisks(stage.images, vmDirectory(stage, 'pass'), 'raw')
    const extraDevices = `
    <disk type='block' device='lun'><driver name='qemu' type='raw'/><source dev='/dev/umbra-no-such-lun'/>
      <target dev='sdl' bus='scsi'/></disk>
    <disk type='network' device='disk'><driver name='qemu' type='raw'/>
      <source protocol='iscsi' name='iqn.2026-01.test:disk/1'><host name='192.0.2.1' port='3260'/></source>
      <target dev='sdm' bus='scsi'/></disk>
    <hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host99'/><address bus='0' target='0' unit='0'/></source></hostdev>`
    const vm = await defineVm(stage, 'pass', disks.slice(1, 2), { extraDevices })
    const result = await backUp(stage, ['pass'])
    const [told] = result.vms
    assert.deepEqual(
      told?.disks.map(({ target }) => target),
      ['sda'],
    )
    assert.equal(told?.excluded.length, 3)
    const reasons = told?.excluded.map(({ reason }) => reason).join('\n') ?? ''
    for (const kind of [/pass-through LUN/, /iSCSI/, /pass-through device/]) assert.match(reasons, kind)
    const point = await stage.repository.point(result.recoveryPoint)
    assert.deepEqual(point.content.vms, JSON.parse(JSON.stringify(result.vms)), 'the recovery point tells the same')
    assert.deepEqual(
      point.streams.map(({ name }) => name),
      [`${vm.uuid}/disks/sda`],
    )
    const { vms } = await restoreVm(stage, result.recoveryPoint, 'pass')
    assert.equal(vms[0]?.warnings.length, 3, 'and so does the restore')
    await nothingIsLeft(stage, [vm])
    await removeVm(stage, vm)
  })
}

/**
 * Stops the agent of a guest in a moment, and lets it go on after an NMI (`virsh inject-nmi`), which the host can give to a
 * guest that hears nothing else; after a minute in any case.
 */
const silenced = `nmis() { grep NMI: /proc/interrupts; }
(before=$(nmis); sleep 0.3; kill -STOP $(pidof qemu-ga)
for i in $(seq 300); do [ "$(nmis)" = "$before" ] || break; sleep 0.2; done
kill -CONT $(pidof qemu-ga)) >/dev/null 2>&1 &`

/** A copy of a VM, restored beside it and started. */
export async function startCopy(stage: Stage, point: string, vm: StageVm): Promise<StageVm> {
  const name = `${vm.name}-copy`
  const directory = vmDirectory(stage, name)
  await restoreVm(stage, point, vm.name, { as: name, to: directory, start: true })
  return { name, directory, uuid: (await stage.hypervisor.vm(name)).uuid }
}

async function allThawed(stage: Stage, vms: readonly StageVm[]): Promise<void> {
  for (const vm of vms) assert.equal(await stage.hypervisor.guest(vm.uuid).freezeStatus(), 'thawed', vm.name)
}
