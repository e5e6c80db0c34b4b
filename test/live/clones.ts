/**
 * Many VMs from one: an original is booted once and its memory saved; every clone goes on from there within a second, on
 * disks of its own above the original's. The header of a saved state holds the VM's description as text (libvirt,
 * virQEMUSaveHeader: 16 bytes magic, then version and length); names of one length keep everything else in its place.
 */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdir, open, readFile, rm } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { type GuestImageFile, type SampleGuestOptions, sampleGuestXml } from '../../sample-guest/sample-guest.ts'
import { mapLimit } from '../../src/base/async.ts'
import { agentAnswers, boot, defineVm, type Stage, type StageVm, vmDirectory } from './stage.ts'

const lengthAt = 20
const headerBytes = 92

export interface Original {
  readonly name: string
  readonly memory: string
  readonly disks: readonly GuestImageFile[]
  readonly options: Partial<SampleGuestOptions>
}

/** Boots a VM of that name, saves it, and leaves its disks as they are from then on. */
export async function bootOriginal(
  stage: Stage,
  name: string,
  disks: readonly GuestImageFile[],
  options: Partial<SampleGuestOptions>,
): Promise<Original> {
  const vm = await boot(stage, await defineVm(stage, name, disks, options))
  const memory = join(stage.directory, `${name}.memory`)
  await stage.hypervisor.save(vm.uuid, memory)
  await stage.hypervisor.undefine(vm.uuid)
  return { name, memory, disks, options }
}

/** The name must be as long as the original's, and neither may occur in another word of the description. */
export async function cloneOf(stage: Stage, original: Original, name: string): Promise<StageVm> {
  return await awake(stage, await restoredClone(stage, original, name))
}

/** Its memory is there and it stands still. */
async function restoredClone(stage: Stage, original: Original, name: string): Promise<StageVm> {
  const directory = vmDirectory(stage, name)
  await mkdir(directory, { recursive: true })
  const disks = original.disks.map((disk) => ({ ...disk, path: join(directory, basename(disk.path)) }))
  for (const [index, { path }] of disks.entries()) {
    const base = original.disks[index]?.path ?? ''
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b', base, path])
  }
  const uuid = uuidOf(stage, name)
  const consolePath = join(stage.directory, `${name}.console`)
  const { images } = stage
  await stage.hypervisor.define(sampleGuestXml({ name, images, disks, consolePath, ...original.options, uuid }))
  const memory = join(directory, 'memory')
  await writeMemoryOf(original, { name, uuid }, memory)
  await stage.hypervisor.restoreSaved(memory)
  await rm(memory)
  return { name, uuid, directory }
}

async function awake(stage: Stage, vm: StageVm): Promise<StageVm> {
  await stage.hypervisor.resume(vm.uuid)
  await agentAnswers(stage, vm)
  return vm
}

async function writeMemoryOf(original: Original, clone: { name: string; uuid: string }, path: string): Promise<void> {
  const bytes = await readFile(original.memory)
  const length = bytes.readUInt32LE(lengthAt)
  const text = bytes.toString('latin1', headerBytes, headerBytes + length)
  const uuid = /<uuid>(.*?)<\/uuid>/.exec(text)?.[1] ?? ''
  const changed = text
    .replaceAll(original.name, clone.name)
    .replaceAll(uuid, clone.uuid)
    // An end of the chain that is written down would hide what is beneath the clone's own disks.
    .replaceAll('<backingStore/>', ' '.repeat('<backingStore/>'.length))
  if (changed.length !== text.length) throw new Error(`${clone.name} is not as long as ${original.name}`)
  await using file = await open(path, 'wx')
  await file.write(bytes.subarray(0, headerBytes))
  await file.write(Buffer.from(changed, 'latin1'))
  await file.write(bytes.subarray(headerBytes + length))
}

function uuidOf({ directory }: Stage, name: string): string {
  const hex = createHash('sha256').update(`${directory} ${name}`).digest('hex')
  return [hex.slice(0, 8), hex.slice(8, 12), `5${hex.slice(13, 16)}`, `a${hex.slice(17, 20)}`, hex.slice(20, 32)].join(
    '-',
  )
}

/** Several at a time: starting a VM is mostly waiting. None runs before all are there, so that it takes no time from others. */
export async function clonesOf(
  stage: Stage,
  original: (name: string) => Original,
  names: readonly string[],
): Promise<readonly StageVm[]> {
  const clones = await mapLimit(names, 3, (name) => restoredClone(stage, original(name), name))
  return await mapLimit(clones, 3, (clone) => awake(stage, clone))
}
