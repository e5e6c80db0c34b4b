/**
 * A simulated host for tests of the backup job provider: VMs with disks whose changes can be tracked and one whose can not,
 * a provider, a session with stamps, and the whole of a set in one call.
 */
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Cleanup } from '../../src/base/cleanup.ts'
import { BackupJobProvider, type BackupJobProviderOptions } from '../../src/libvirt/backup-job-provider.ts'
import { backupJobUndoHandlers } from '../../src/libvirt/backup-job-undo.ts'
import { defaultPolicy } from '../../src/vm/method.ts'
import { VmWriter } from '../../src/vm/vm-writer.ts'
import type { BackupStamps } from '../../src/vss/change-tracking.ts'
import type { ProviderSession, ShadowCopy, Volume } from '../../src/vss/provider.ts'
import { type FaultAt, FaultPlan, faulty } from './faulty.ts'
import { leftovers } from './leftovers.ts'
import type { ManualClock } from './manual-clock.ts'
import { type SimVmSpec, type SimWorld, simulatedWorld } from './sim-world.ts'
import { undoLog } from './undo-log.ts'

export const tracked = { sizeBytes: 512 * 1024, format: 'qcow2' } as const
export const untracked = { sizeBytes: 256 * 1024 } as const

const vms: Record<string, SimVmSpec> = {
  web01: { disks: { sda: tracked, sdb: untracked } },
  old95: { disks: { sda: tracked } },
}

export const owner = '0f1e2d3c-4b5a-4678-8796-a5b4c3d2e1f0'

export interface BackupJobScene extends AsyncDisposable {
  readonly world: SimWorld
  readonly clock: ManualClock
  readonly plan: FaultPlan
  readonly volumes: readonly Volume[]
  readonly abandoned: Error[]
  readonly events: string[]
  provider(options?: Partial<BackupJobProviderOptions>): BackupJobProvider
  session(stamps?: BackupStamps): ProviderSession
  pointsOf(vm: string): Promise<string[]>
  /** What is left besides points. */
  leftovers(): string[]
}

export async function backupJobScene(fault?: FaultAt): Promise<BackupJobScene> {
  const directory = await mkdtemp(join(tmpdir(), 'umbra-backup-job-'))
  const world = simulatedWorld(vms, { directory, stepsPerCall: 0 })
  const plan = new FaultPlan(fault)
  const hypervisor = faulty(world.hypervisor, plan, 'hypervisor')
  const clock = world.clock as ManualClock
  const abandoned: Error[] = []
  const events: string[] = []
  const policy = { ...defaultPolicy, method: 'checkpoint', instant: 'set' } as const
  const { components } = await new VmWriter({ hypervisor: world.hypervisor, policy, workDirectory: '/' }).onIdentify()
  const undoHandlers = backupJobUndoHandlers(world.hypervisor)
  return {
    world,
    clock,
    plan,
    volumes: components.flatMap((component) => component.volumes),
    abandoned,
    events,
    provider: (options) =>
      new BackupJobProvider({
        hypervisor,
        scratchDirectory: world.path('/scratch'),
        socketDirectory: world.path('/s'),
        clock,
        freeBytes: async () => world.files.capacityBytes - world.files.usedBytes,
        minimumFreeBytes: 1,
        ...options,
      }),
    session: (stamps) => ({
      snapshotSetId: crypto.randomUUID(),
      undo: new Cleanup(undoLog().log, undoHandlers, { clock }),
      emit: ({ event }) => void events.push(event),
      signal: new AbortController().signal,
      abandon: (reason) => void abandoned.push(reason),
      ...(stamps === undefined ? {} : { stamps }),
    }),
    async pointsOf(vm) {
      const { points, forgotten } = await world.hypervisor.changeTracking(world.vm(vm).uuid)
      return [...points.map(({ name }) => name), ...forgotten].map((name) => name.replace(/^umbra-........-/, ''))
    },
    leftovers: () => [
      ...leftovers(world),
      ...[...world.vms.values()].flatMap((vm) => (vm.live?.backupJob === undefined ? [] : [`a job of ${vm.uuid}`])),
    ],
    [Symbol.asyncDispose]: () => rm(directory, { recursive: true }),
  }
}

/** The stamps of a backup `next` that can build on `previous`, newest first. */
export const stampsOf = (next: string, previous: readonly string[] = [], of = owner): BackupStamps => ({
  owner: of,
  next,
  previous: () => previous,
})

export async function createSet(
  provider: BackupJobProvider,
  session: ProviderSession,
  volumes: readonly Volume[],
): Promise<readonly ShadowCopy[]> {
  for (const volume of volumes) await provider.beginPrepareSnapshot(session, volume)
  await provider.endPrepareSnapshots(session)
  await provider.commitSnapshots(session, volumes)
  return await provider.preFinalCommitSnapshots(session)
}

/** What a copy holds. */
export async function contentOf(copy: ShadowCopy): Promise<Uint8Array> {
  await using source = await copy.open()
  const bytes = new Uint8Array(source.sizeBytes)
  await source.read(0, bytes)
  return bytes
}

/** `then` with what has changed since put into it. */
export async function patched(copy: ShadowCopy, then: Uint8Array): Promise<Uint8Array> {
  if (copy.changes?.since === undefined) throw new Error(`no changes: ${copy.changes?.reason}`)
  const bytes = Uint8Array.from(then)
  await using source = await copy.open()
  for await (const { offset, length } of copy.changes.ranges()) {
    await source.read(offset, bytes.subarray(offset, offset + length))
  }
  return bytes
}

/** A whole backup; answers the copies' contents. */
export async function backUp(scene: BackupJobScene, next: string, previous: readonly string[] = [], kept = true) {
  const provider = scene.provider()
  const session = scene.session(stampsOf(next, previous))
  const copies = await createSet(provider, session, scene.volumes)
  const contents = new Map<string, Uint8Array>()
  const changes = new Map<string, string>()
  for (const copy of copies) {
    contents.set(copy.volume.id, await contentOf(copy))
    changes.set(`${copy.volume.caption} ${copy.volume.name}`, copy.changes?.since ?? 'whole')
  }
  if (kept) await provider.keepStamps(session)
  await provider.deleteSnapshots(session)
  assert.deepEqual(scene.leftovers(), [])
  return { contents, changes }
}

export const findCopy = (copies: readonly ShadowCopy[], vm: string, disk: string): ShadowCopy => {
  const copy = copies.find(({ volume }) => volume.caption === vm && volume.name === disk)
  assert.ok(copy !== undefined)
  return copy
}
