/**
 * Saved state: in PrepareForSnapshot the VM's memory is saved to a file of our own; the VM is loaded again at once but
 * stands still, so that the hypervisor's transaction over all its disks can take the copies; PostSnapshot returns it to
 * the state it was in before, remembered in the journal and not assumed (law 7). Not a managed save: that file belongs to
 * libvirt and is not meant to be copied (libvirt, "Domain state capture").
 */
import { existsSync } from 'node:fs'
import { rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { UndoStep } from '../base/cleanup.ts'
import type { Clock } from '../base/clock.ts'
import { describeError } from '../base/failure.ts'
import { type Cluster, noCluster } from './cluster.ts'
import { maintenanceOf, stillHeld } from './cluster-hold.ts'
import type { Hypervisor } from './hypervisor.ts'
import type { MethodContext, MethodRun } from './method-run.ts'

const jobPollMs = 500

export function savedState(context: MethodContext): MethodRun {
  const { hypervisor, facts, undo, clock, tell, snapshotSetId, workDirectory } = context
  const memory = join(workDirectory, `${snapshotSetId.slice(0, 8)}-${facts.uuid}.memory`)
  const maintenance = maintenanceOf(context, memory)
  let step: UndoStep | undefined
  let stoppedMs = 0
  let returnedMs = 0

  const takeBack = async () => {
    if (step === undefined) return
    await undo.run(step)
    step = undefined
  }

  return {
    async prepareForSnapshot() {
      await maintenance.begin()
      const { uuid: vm, name, power } = facts
      const clustered = facts.cluster === undefined ? {} : { resource: facts.cluster.resource }
      step = await undo.defer({ undo: 'return-vm', vm, name, file: memory, power, ...clustered })
      stoppedMs = clock.monotonicMs()
      await hypervisor.save(facts.uuid, memory)
      tell(`${facts.power} -> saved`)
      await hypervisor.restoreSaved(memory)
    },

    freeze: async () => undefined, // "No processing is done by the Hyper-V VSS writer during the Freeze and Thaw events."
    thaw: async () => undefined,

    async postSnapshot() {
      await returnVm(hypervisor, facts.uuid, memory, facts.power, facts.cluster !== undefined)
      returnedMs = clock.monotonicMs()
      tell(`saved -> ${facts.power}`)
      if (step !== undefined) step = await undo.supersede(step, { undo: 'remove-file', path: keptAs(memory) })
      await maintenance.end()
    },

    async abort() {
      await takeBack()
      await maintenance.end()
    },

    /** The guest's clock stood still. An agent that does not answer leaves that to the guest's own time service. */
    async complete() {
      await takeBack() // the memory has been read
      if (facts.power !== 'running' || facts.agent !== 'connected') return
      await hypervisor
        .guest(facts.uuid)
        .syncClock()
        .then(
          () => tell('guest clock set'),
          (error) => tell(`the guest clock could not be set: ${describeError(error)}`),
        )
    },

    outcome: () => ({
      consistency: 'application',
      reasons: ['memory and disks are of one instant: restored in its own place the VM goes on where it was'],
      freezeMs: 0,
      heldMs: 0,
      pausedMs: Math.max(0, returnedMs - stoppedMs),
      files: [{ name: 'memory', path: keptAs(memory) }],
    }),
  }
}

/** The record of the undo step `return-vm`; `resource`: the cluster's, which looks away meanwhile. */
interface SavedRecord {
  readonly vm: string
  readonly file: string
  readonly power: string
  readonly resource?: string | undefined
}

async function occupation(hypervisor: Hypervisor, vm: string): Promise<string | undefined> {
  if ((await hypervisor.power(vm)) === 'gone') return undefined
  const { busy } = await hypervisor.vm(vm).catch(async (error: unknown) => {
    if ((await hypervisor.power(vm)) === 'gone') return { busy: undefined }
    throw error
  })
  return busy
}

/**
 * The undo step `return-vm`: whatever point a crash left, the VM is again what it was before, and only then its memory image
 * goes: it may be all that is left of a VM that is off. A save that a killed process began goes on without it.
 */
export async function takeBackSave(
  hypervisor: Hypervisor,
  clock: Clock,
  { vm, file, power, resource }: SavedRecord,
  cluster: Cluster = noCluster,
): Promise<void> {
  if (resource === undefined && (await hypervisor.power(vm)) === 'gone')
    throw new Error(`the VM is gone; its memory in ${file} was left as it is`)
  while ((await occupation(hypervisor, vm)) !== undefined) await clock.sleep(jobPollMs)
  // A VM that its cluster started is gone while it is saved.
  if (resource !== undefined && existsSync(file) && !(await stillHeld(cluster, resource)))
    throw new Error(`the cluster looks after ${resource} again; the memory in ${file} was left as it is`)
  await returnVm(hypervisor, vm, file, power, resource !== undefined)
  await removeFile(file)
  await removeFile(keptAs(file))
}

/**
 * Brings the VM back. Saving keeps it running until its file is complete, so a VM that is off has a complete file. The file
 * changes its name before the VM resumes: memory under its first name has not run since, and only such memory may be
 * loaded; anything else would meet disks that have changed.
 */
async function returnVm(
  hypervisor: Hypervisor,
  vm: string,
  file: string,
  former: string,
  clustered: boolean,
): Promise<void> {
  if (existsSync(file)) {
    const power = await hypervisor.power(vm)
    if (power === 'off' || (power === 'gone' && clustered)) await hypervisor.restoreSaved(file)
    await rename(file, keptAs(file))
  }
  if (former === 'running' && (await hypervisor.power(vm)) === 'paused') await hypervisor.resume(vm)
}

const keptAs = (file: string) => `${file}.kept`

/** The undo step `remove-file`. */
export async function removeFile(path: string): Promise<void> {
  await rm(path, { force: true })
}
