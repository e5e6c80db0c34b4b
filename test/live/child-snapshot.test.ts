/**
 * Child VM snapshots of real guests (W3, A1, A2): the guest takes its own snapshot and writes on for seconds before the
 * host takes its copies; what is restored is exactly what was acknowledged up to the guest's instant. On classic LVM, on
 * thin LVM and on btrfs, by each way of recovery; and the same without recovery, to know that the test sees the gap.
 * Runs late: its guests must answer in time.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { after, before, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { createDisks, type GuestLayout } from '../../sample-guest/sample-guest.ts'
import { backupEnvironment, recoveryTools } from '../../src/compose.ts'
import { backup } from '../../src/requester/backup.ts'
import { workDirectory } from '../../src/requester/session.ts'
import type { Recovery, RecoveryWay } from '../../src/vm/auto-recovery.ts'
import type { DiskImage, Hypervisor } from '../../src/vm/hypervisor.ts'
import { defaultPolicy } from '../../src/vm/method.ts'
import { type OpenAutoRecovery, openAutoRecovery } from '../../src/vm/recovery-ways.ts'
import { VmWriter } from '../../src/vm/vm-writer.ts'
import { around } from './hooks.ts'
import { startCopy } from './method-tests.ts'
import {
  agentAnswers,
  beginStage,
  boot,
  defineVm,
  eventually,
  inside,
  removeVm,
  type Stage,
  type StageVm,
  skipLive,
  type Verdict,
  verdictAtBoot,
  vmDirectory,
} from './stage.ts'
import { backUp, nothingIsLeft, type StageBackup } from './stage-session.ts'
import { usually } from './thorough.ts'

const gapMs = 5_000

/** Between the guest's instant and the host's: what is prepared takes its time. */
const withGap = (hypervisor: Hypervisor): Hypervisor =>
  around(hypervisor, {
    prepareOverlays: async (call) => {
      await sleep(gapMs)
      return call()
    },
  })

/** The record with which the writer in the guest held still last, and how many it has written since. */
async function lastHold(stage: Stage, vm: StageVm): Promise<{ seq: number; since: number }> {
  const last = (type: string) =>
    inside(stage, vm, `grep -a '^UMBRA1 ${type} ' /srv/b/log | tail -n 1 | cut -d' ' -f3`).then(Number)
  const [seq, written] = [await last('Q'), await last('W')]
  return { seq, since: written - seq }
}

describe('child VM snapshots of real guests', { skip: skipLive, timeout: 900_000 }, () => {
  let stage: Stage
  before(async () => {
    stage = await beginStage('child')
  })
  after(async () => {
    await stage?.[Symbol.asyncDispose]()
  })

  const layouts: readonly (readonly [GuestLayout, readonly RecoveryWay[]])[] = [
    ['lvm', usually<RecoveryWay>([], ['by-reading', 'on-host', 'in-guest'])], // all three are compared below
    ['thin', usually<RecoveryWay>([], ['on-host', 'in-guest'])],
    ['btrfs', usually<RecoveryWay>(['in-guest'], ['on-host'])],
  ]
  for (const [layout, ways] of layouts) {
    if (layout !== 'lvm' && ways.length === 0) continue
    describe(`on ${layout}`, () => {
      let vm: StageVm
      before(async () => {
        const disks = await createDisks(stage.images, vmDirectory(stage, layout), 'qcow2', { layout })
        vm = await boot(stage, await defineVm(stage, layout, disks, { rootOnLvm: true, rate: 50 }))
      })
      after(async () => {
        if (vm !== undefined) await removeVm(stage, vm)
      })

      for (const way of ways) {
        it(`rolled back ${way}: all that was acknowledged up to the guest's instant, and nothing from the gap`, async (t) => {
          const result = await backUp(stage, [layout], {
            hypervisor: withGap(stage.hypervisor),
            policy: { method: 'child-snapshot', recovery: way },
          })
          tellTimes(t, result)
          await isOfTheGuestsInstant(result)
        })
      }

      async function isOfTheGuestsInstant({ vms, recoveryPoint }: StageBackup): Promise<void> {
        const hold = await lastHold(stage, vm)
        assert.equal(vms[0]?.consistency, 'application')
        await nothingIsLeft(stage, [vm])
        assert.equal(await leftInGuest(stage, vm), '')
        assert.ok(hold.since > 100, 'the guest wrote on in the gap')
        const verdict = await verdictOfCopy(stage, recoveryPoint, vm)
        assert.ok(verdict.ok && verdict.quiesced && verdict.lead === 0, JSON.stringify(verdict))
        assert.equal(verdict.logs[1]?.last, hold.seq)
      }

      if (layout !== 'lvm') return

      it('not rolled back at all, holds records from the gap: the test above would see them', async () => {
        const nothing = async () => 'by-reading' as const
        const none = { 'by-reading': nothing, 'on-host': nothing, 'in-guest': nothing }
        const close = async () => undefined
        const result = await backUpWith(stage, layout, () => ({ ...none, [Symbol.asyncDispose]: close }))
        const hold = await lastHold(stage, vm)
        const verdict = await verdictOfCopy(stage, result.recoveryPoint, vm, { traces: true })
        assert.equal(verdict.quiesced, false)
        assert.ok((verdict.logs[1]?.last ?? 0) > hold.seq + 2, JSON.stringify(verdict))
      })

      it("is the same to the byte by all three ways, and of the guest's instant", async (t) => {
        const result = await backUpWith(stage, layout, (tools) => comparing(openAutoRecovery(tools)))
        tellTimes(t, result)
        await isOfTheGuestsInstant(result)
      })
    })
  }
})

function tellTimes(t: { diagnostic(text: string): void }, { vms, durationMs, events }: StageBackup): void {
  const [vm] = vms
  const attached = events.find(({ detail }) => detail?.startsWith('copies were attached'))?.detail ?? ''
  t.diagnostic(
    `held ${vm?.freezeMs} ms (${vm?.heldMs} ms the commit), recovery ${vm?.recoveryMs} ms, ${durationMs} ms in all ${attached}`,
  )
}

/** What our snapshots would leave behind in a guest. */
const leftInGuest = (stage: Stage, vm: StageVm): Promise<string> =>
  inside(
    stage,
    vm,
    `lvm lvs --noheadings -o lv_name 2>/dev/null | grep umbra; dmsetup ls 2>/dev/null | grep -i umbra;
     for m in $(awk '$3 == "btrfs" { print $2 }' /proc/mounts); do btrfs subvolume list $m | grep umbra; done;
     ls -A /run/umbra-guest 2>/dev/null; true`,
  )

/** What a restored copy finds on its disks when it boots. The original stands still meanwhile, which is quicker. */
async function verdictOfCopy(
  stage: Stage,
  point: string,
  vm: StageVm,
  { traces = false }: { traces?: boolean } = {},
): Promise<Verdict> {
  await stage.hypervisor.suspend(vm.uuid)
  try {
    const copy = await startCopy(stage, point, vm)
    await agentAnswers(stage, copy)
    const verdict = await eventually('the verdict', () => verdictAtBoot(stage, copy))
    if (!traces) {
      assert.equal(await leftInGuest(stage, copy), '', 'no trace of the guest snapshot')
      await inside(stage, copy, 'lvm vgck && test -z "$(lvm vgck 2>&1)"')
    }
    await removeVm(stage, copy)
    return verdict
  } finally {
    await stage.hypervisor.resume(vm.uuid)
  }
}

/** A backup whose recovery is the test's own. */
async function backUpWith(
  stage: Stage,
  name: string,
  open: (tools: Parameters<typeof openAutoRecovery>[0]) => OpenAutoRecovery,
): Promise<StageBackup> {
  const { settings, repository } = stage
  const hypervisor = withGap(stage.hypervisor)
  const policy = { ...defaultPolicy, method: 'child-snapshot' } as const
  const { signal } = new AbortController()
  const environment = await backupEnvironment(settings, hypervisor, repository, policy, signal)
  const tools = await recoveryTools(settings, hypervisor)
  const writer = new VmWriter({
    hypervisor,
    policy,
    workDirectory: workDirectory(settings.stateDirectory),
    openAutoRecovery: () => open(tools),
  })
  const result = await backup({ names: [name], all: false, except: [] }, { ...environment, writers: [writer] })
  return result as unknown as StageBackup
}

/** Rolls back three times, each time a layer of its own above the same frozen images, and compares. */
function comparing(real: OpenAutoRecovery): OpenAutoRecovery {
  const compare = async (recovery: Recovery) => {
    const results = new Map<RecoveryWay, readonly DiskImage[]>()
    for (const way of ['by-reading', 'on-host', 'in-guest'] as const) {
      const copies = recovery.copies.map(({ target, image }) => ({ target, image: layerBeside(image, way) }))
      await real[way]({ ...recovery, copies })
      results.set(
        way,
        copies.map(({ image }) => image),
      )
    }
    const [first = [], ...others] = results.values()
    for (const other of others) {
      for (const [index, image] of other.entries()) assertSameVolumes(first[index], image)
    }
    for (const image of [...results.values()].flat()) execFileSync('rm', [fileOf(image)])
    return await real['by-reading'](recovery)
  }
  return { ...real, 'by-reading': compare, [Symbol.asyncDispose]: () => real[Symbol.asyncDispose]() }
}

const fileOf = ({ storage }: DiskImage): string => ('file' in storage ? storage.file : '')

function layerBeside(image: DiskImage, way: string): DiskImage {
  const file = `${fileOf(image)}-${way}`
  const info = JSON.parse(
    execFileSync('qemu-img', ['info', '-U', '--output=json', fileOf(image)], { encoding: 'utf8' }),
  )
  const base = ['-b', info['full-backing-filename'], '-F', info['backing-filename-format']]
  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', ...base, file])
  return { ...image, storage: { file } }
}

/** Everything behind LVM's own first mebibyte, whose text says when it was written; free extents may hold anything. */
function assertSameVolumes(one: DiskImage | undefined, other: DiskImage): void {
  const sums = [one, other].map((image) => {
    const raw = `${fileOf(image ?? other)}.raw`
    execFileSync('qemu-img', ['convert', '-U', '-O', 'raw', fileOf(image ?? other), raw])
    const sum = execFileSync('sh', ['-c', `dd if=${raw} bs=1M skip=1 count=60 status=none | sha256sum; rm ${raw}`], {
      encoding: 'utf8',
    })
    return sum
  })
  assert.equal(sums[0], sums[1], fileOf(other))
}
