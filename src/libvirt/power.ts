/**
 * Power states and memory images of VMs (API reference of libvirt, virDomainState and virDomainSaveFlags; "Domain
 * state capture"). Whatever reply got lost, the state is looked at again before anything is said about it.
 */
import { lstat, rm } from 'node:fs/promises'
import { isAbsolute } from 'node:path'
import { invariant } from '../base/failure.ts'
import { failure } from '../errors.ts'
import type { PowerState } from '../vm/hypervisor.ts'
import type { DomainCalls } from './domain-calls.ts'
import { setDiskImage } from './domain-edit.ts'
import { readDomain } from './domain-xml.ts'
import { isFailure } from './libvirt-errors.ts'
import { domainStates, pausedByIoError, saveFlags, xmlFlags } from './protocol.ts'

/** libvirt's number as our word. A guest that suspended itself to RAM counts as running: its owner did not pause it. */
export function powerOf(state: number, hasManagedSave: boolean): PowerState {
  if (state === domainStates.off) return hasManagedSave ? 'saved' : 'off'
  return state === domainStates.paused || state === domainStates.crashed ? 'paused' : 'running'
}

export async function power(domains: DomainCalls, uuid: string): Promise<PowerState | 'gone'> {
  try {
    const { state } = await domains.state(uuid)
    return powerOf(state, state === domainStates.off && (await domains.hasManagedSave(uuid)))
  } catch (error) {
    if (isFailure(error, 'VM_NOT_FOUND')) return 'gone'
    throw error
  }
}

async function knownPower(domains: DomainCalls, uuid: string): Promise<PowerState> {
  const now = await power(domains, uuid)
  if (now === 'gone') throw failure('VM_NOT_FOUND', { vm: domains.nameOf(uuid), known: 'others' })
  return now
}

const wrongState = (domains: DomainCalls, uuid: string, state: PowerState, reason: string) =>
  failure('VM_STATE', { vm: domains.nameOf(uuid), state, reason })

async function exists(path: string): Promise<boolean> {
  return await lstat(path).then(
    () => true,
    () => false,
  )
}

export async function save(domains: DomainCalls, uuid: string, file: string): Promise<void> {
  invariant(isAbsolute(file), `the path of a memory image is absolute: ${file}`)
  const before = await knownPower(domains, uuid)
  if (before !== 'running' && before !== 'paused') throw wrongState(domains, uuid, before, 'it has no memory to save')
  if (await exists(file)) throw wrongState(domains, uuid, before, `${file} exists already`)
  try {
    await domains.save(uuid, file)
  } catch (error) {
    // Half an image must not stay; a whole one, whose reply was lost, is all that is left of the VM's memory.
    const after = await power(domains, uuid).catch(() => undefined)
    if (after === 'running' || after === 'paused') await rm(file, { force: true })
    throw error
  }
}

/**
 * Brings a VM back, paused. Without a configuration the one in the file is used, but with the disks as they are
 * defined now: to start on a base while an overlay lies on it would spoil both.
 */
export async function restoreSaved(
  domains: DomainCalls,
  file: string,
  configuration: string | undefined,
): Promise<void> {
  await domains.restore(file, configuration ?? (await savedXmlOnPresentDisks(domains, file)), saveFlags.paused)
}

async function savedXmlOnPresentDisks(domains: DomainCalls, file: string): Promise<string | undefined> {
  const saved = await domains.savedXml(file)
  const { uuid, disks } = readDomain(saved)
  if ((await power(domains, uuid)) === 'gone') return undefined
  const defined = readDomain(await domains.xml(uuid, xmlFlags.secure | xmlFlags.inactive)).disks
  const moved = disks.flatMap((disk) => {
    const now = defined.find((candidate) => candidate.target === disk.target)
    return now?.image !== undefined && now.location !== disk.location ? [{ target: disk.target, image: now.image }] : []
  })
  if (moved.length === 0) return undefined
  return moved.reduce((xml, { target, image }) => setDiskImage(xml, target, image), saved)
}

export async function resume(domains: DomainCalls, uuid: string): Promise<void> {
  const before = await knownPower(domains, uuid)
  if (before === 'running') return
  if (before !== 'paused') throw wrongState(domains, uuid, before, 'only a paused VM can be resumed')
  await domains.resume(uuid)
}

export async function resumeAfterIoError(domains: DomainCalls, uuid: string): Promise<boolean> {
  const { state, reason } = await domains.state(uuid)
  if (state !== domainStates.paused || reason !== pausedByIoError) return false
  await domains.resume(uuid)
  return true
}

export async function suspend(domains: DomainCalls, uuid: string): Promise<void> {
  const before = await knownPower(domains, uuid)
  if (before === 'paused') return
  if (before !== 'running') throw wrongState(domains, uuid, before, 'only a running VM can be paused')
  await domains.suspend(uuid)
}

export async function start(domains: DomainCalls, uuid: string): Promise<void> {
  const before = await knownPower(domains, uuid)
  if (before === 'running' || before === 'paused')
    throw wrongState(domains, uuid, before, 'it has been started already')
  await domains.start(uuid)
}

export async function turnOff(domains: DomainCalls, uuid: string): Promise<void> {
  const hasPower = async () => ['running', 'paused'].includes(await power(domains, uuid))
  if (!(await hasPower())) return
  try {
    await domains.destroy(uuid)
  } catch (error) {
    if (await hasPower()) throw error
  }
}

export async function keepSaved(domains: DomainCalls, uuid: string, next: 'running' | 'paused'): Promise<void> {
  const before = await knownPower(domains, uuid)
  if (before === 'saved' || before === 'off') throw wrongState(domains, uuid, before, 'it has no memory to save')
  await domains.managedSave(uuid, saveFlags[next])
}
