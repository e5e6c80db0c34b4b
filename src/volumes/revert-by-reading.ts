/**
 * Revert by reading: the copies of a VM's disks get back what the guest's own snapshot of classic LVM volumes holds, in
 * user space, without mounting and without a device. First everything is checked, then chunks are copied back, then the
 * snapshot leaves the metadata; so a refusal has written nothing, and a revert that was cut off can be made again.
 */
import { mapLimit } from '../base/async.ts'
import { flushAll, type RevertDisk } from './disk-stretch.ts'
import { type CopyRun, copyRuns } from './exception-store.ts'
import { writeChanges } from './metadata-change.ts'
import { type PlannedVolume, planRevert, type RevertPlan } from './plan-revert.ts'
import { readVolume, writeVolume } from './volume-map.ts'

const mostInFlight = 8
const pieceBytes = 256 * 1024

export interface RevertedVolume {
  /** `group/volume`, as the guest calls it. */
  readonly where: string
  readonly chunks: number
  readonly bytes: number
}

/** Rejects with VOLUMES_NOT_UNDERSTOOD or GUEST_SET_LOST before the first write, or with the failure of a disk. */
export async function revertByReading(
  vm: string,
  set: string,
  disks: readonly RevertDisk[],
  signal?: AbortSignal,
): Promise<readonly RevertedVolume[]> {
  return await executeRevert(await planRevert(vm, set, disks), disks, signal)
}

export async function executeRevert(
  plan: RevertPlan,
  disks: readonly RevertDisk[],
  signal?: AbortSignal,
): Promise<readonly RevertedVolume[]> {
  const reverted: RevertedVolume[] = []
  for (const planned of plan.volumes) {
    const bytes = await copyBack(planned, signal)
    reverted.push({ where: `${planned.group}/${planned.volume}`, chunks: planned.chunks, bytes })
  }
  await flushAll(disks)
  signal?.throwIfAborted()
  await writeChanges(plan.changes)
  return reverted
}

/** Resolves to how many bytes; after the first error no new copy begins, and all that run are waited for. */
async function copyBack({ origin, store }: PlannedVolume, signal?: AbortSignal): Promise<number> {
  const runs = copyRuns(store, origin.sizeBytes, pieceBytes)
  let bytes = 0
  let failed = false
  const lane = async () => {
    try {
      while (!failed) {
        signal?.throwIfAborted()
        const { value: run, done } = await runs.next()
        if (done) return
        await copyRun(run)
        bytes += run.length
      }
    } catch (error) {
      failed = true
      throw error
    }
  }
  const copyRun = async ({ from, length, parts }: CopyRun) => {
    const data = await readVolume(store.map, from, length)
    for (const part of parts) await writeVolume(origin, part.to, data.subarray(part.at, part.at + part.length))
  }
  await mapLimit(Array(mostInFlight).keys(), mostInFlight, lane)
  return bytes
}
