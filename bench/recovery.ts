/**
 * bench/recovery: auto-recovery of 1, 10 and 30 real guests with two disks each, rolled back in the guest (2012 R2), by
 * the helper VM (2008) and by reading; in one run on the same guests, cloned from one saved state. Run it by hand as root
 * on a quiet machine with 10 GiB of free memory: `bench/recovery [VMS...]`.
 */
import { parseArgs } from 'node:util'
import { createDisks } from '../sample-guest/sample-guest.ts'
import { helperVmImages } from '../src/libvirt/helper-vm-images.ts'
import { recoveryWays } from '../src/vm/auto-recovery.ts'
import { bootOriginal, clonesOf } from '../test/live/clones.ts'
import { beginStage, type StageVm, vmDirectory } from '../test/live/stage.ts'
import { backUp, nothingIsLeft } from '../test/live/stage-session.ts'

const { positionals } = parseArgs({ allowPositionals: true })
const counts = positionals.length > 0 ? positionals.map(Number) : [1, 10, 30]
const median = (values: readonly number[]) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0
const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`

await using stage = await beginStage('recovery')
await helperVmImages()
const disks = await createDisks(stage.images, vmDirectory(stage, 'rx000'), 'qcow2', { layout: 'lvm' })
const original = await bootOriginal(stage, 'rx000', disks.slice(0, 2), { rootOnLvm: true, rate: 2, memoryMiB: 128 })
const vms: StageVm[] = []
console.log('VMs  way         hold median/max     rolled back   per VM   attached median   whole set')
for (const count of counts) {
  const more = Array.from({ length: count - vms.length }, (_, i) => `rx${String(vms.length + i + 1).padStart(3, '0')}`)
  vms.push(...(await clonesOf(stage, () => original, more)))
  const names = vms.slice(0, count).map(({ name }) => name)
  for (const recovery of recoveryWays) {
    const result = await backUp(stage, names, { policy: { method: 'child-snapshot', recovery } })
    const holds = result.vms.map(({ freezeMs }) => freezeMs)
    const each = median(result.vms.map(({ recoveryMs = 0 }) => recoveryMs))
    const at = (pattern: RegExp) =>
      result.events.filter(({ detail = '' }) => pattern.test(detail)).map(({ atMs }) => atMs)
    const postSnapshot = result.events.find(({ event }) => event === 'PostSnapshot')?.atMs ?? 0
    const rolledBackMs = Math.max(...at(/^copies rolled back/)) - postSnapshot
    const attached = result.events.flatMap(
      ({ detail = '' }) => /attached to the VM for (\d+) ms/.exec(detail)?.[1] ?? [],
    )
    const cells = [
      String(count).padStart(3),
      recovery.padEnd(10),
      `${(median(holds) / 1000).toFixed(2)} / ${(Math.max(...holds) / 1000).toFixed(2)} s`.padEnd(18),
      seconds(rolledBackMs).padStart(11),
      seconds(each).padStart(8),
      (attached.length === 0 ? '-' : seconds(median(attached.map(Number)))).padStart(17),
      seconds(result.durationMs).padStart(11),
    ]
    console.log(cells.join('  '))
    await nothingIsLeft(stage, vms.slice(0, count))
  }
}
