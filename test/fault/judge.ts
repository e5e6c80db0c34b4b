/**
 * What must be true of a host after a backup or a restore, however it ended. Everything that is not is a sentence.
 */
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { domainXmlEditor } from '../../src/libvirt/configuration-editor.ts'
import { openRepository, type RecoveryPoint } from '../../src/repository/repository.ts'
import type { BackupResult } from '../../src/requester/backup.ts'
import { planRestore } from '../../src/requester/restore.ts'
import { workDirectory } from '../../src/requester/session.ts'
import { VmRestore } from '../../src/vm/restore.ts'
import { VmRestorePlanner } from '../../src/vm/restore-planner.ts'
import { defaultLimits } from '../../src/vss/vocabulary.ts'
import { leftovers, type WorldMemory } from '../sim/leftovers.ts'
import { verifyRecords } from '../sim/sim-records.ts'
import { type Host, inPlace, type Outcome } from './harness.ts'

/** The watchdog comes two seconds after the end of the window. */
const longestFreezeMs = defaultLimits.freezeMs + 2000

/** What there was before a backup, when it was not the first. */
export interface Before {
  /** Ids of recovery points. */
  readonly points?: readonly string[]
  /** How the host has to be now; how it was in the beginning unless told. */
  readonly world?: WorldMemory
}

/** A backup leaves the host as it was, and a point that is complete or none. */
export async function afterBackup(host: Host, outcome: Outcome<BackupResult>, before: Before = {}): Promise<string[]> {
  const wrong = [...leftovers(host.world, before.world), ...freezes(host)]
  await using repository = await openRepository(host.repository)
  const all = await repository.listPoints()
  for (const id of before.points ?? [])
    if (!all.some((point) => point.id === id)) wrong.push(`the earlier point ${id} is gone`)
  const points = all.filter(({ id }) => before.points?.includes(id) !== true)
  for (const { id, reason } of await repository.listDamagedPoints()) wrong.push(`point ${id} is damaged: ${reason}`)
  for (const name of await unfinished(host.repository)) wrong.push(`draft ${name} was left`)
  if (outcome.ended === 'failed')
    for (const { id } of points) wrong.push(`it says that it failed, and point ${id} is there`)
  for (const point of points) wrong.push(...(await checkPoint(host, point)))
  const listed = points.map(({ id }) => id).join(', ')
  if (outcome.ended === 'done' && listed !== outcome.value.recoveryPoint)
    wrong.push(`answered with ${outcome.value.recoveryPoint} where ${listed || 'nothing'} is listed`)
  return wrong
}

function freezes(host: Host): string[] {
  if (host.longestFreezeMs <= longestFreezeMs) return []
  return [`a guest was frozen for ${host.longestFreezeMs} ms`]
}

async function unfinished(repository: string): Promise<string[]> {
  return await readdir(join(repository, 'drafts')).catch((): string[] => [])
}

/** Every byte is there, the VM's records are of one instant, and no more is claimed than was achieved (law 12). */
async function checkPoint(host: Host, point: RecoveryPoint): Promise<string[]> {
  const wrong: string[] = []
  const hypervisor = host.world.connect()
  const planner = new VmRestorePlanner(
    hypervisor,
    new VmRestore(hypervisor, domainXmlEditor),
    workDirectory(host.stateDirectory),
  )
  const { stored, plans } = await planRestore(point, [], inPlace, planner)
  for (const { caption, obstacles } of plans)
    for (const obstacle of obstacles) wrong.push(`${caption} can not be restored: ${obstacle}`)
  for (const { component, metadata } of stored) {
    const disks = point.streams.filter(({ name }) => name.startsWith(`${component.name}/disks/`))
    const names = disks.map(({ name }) => name).sort()
    const bytes = await Promise.all(names.map((name) => readStream(point, name)))
    const [first = new Uint8Array(), second = first] = bytes
    const { crossConsistent, quiesced } = await verifyRecords(first, second)
    if (!crossConsistent) wrong.push(`the disks of ${metadata.name} are not of one instant`)
    if (metadata.method === 'child-snapshot' && !quiesced)
      wrong.push(`the disks of ${metadata.name} are not of the guest's own instant`)
    if (metadata.method === 'guest-freeze' && metadata.consistency !== 'crash' && !quiesced)
      wrong.push(`${metadata.name} claims ${metadata.consistency} consistency and was not quiesced`)
    const memory = point.streams.some(({ name }) => name === `${component.name}/memory`)
    if (memory !== (metadata.method === 'saved-state')) wrong.push(`${metadata.name}: memory stored is ${memory}`)
  }
  return wrong
}

export async function readStream(point: RecoveryPoint, name: string): Promise<Uint8Array> {
  await using source = await point.openStream(name)
  const bytes = new Uint8Array(source.sizeBytes)
  await source.read(0, bytes)
  return bytes
}
