/**
 * The Virtual Machine writer: what Microsoft's Hyper-V VSS writer does, on the Hypervisor port. One component per VM,
 * named by its UUID; its caption says how it will be backed up. "Partial backups are not supported": a VM that can not
 * take part is a veto, and the coordinator judges.
 */
import { basename } from 'node:path'
import { mapLimit, settleAll } from '../base/async.ts'
import type { JsonObject } from '../base/cleanup.ts'
import { type Clock, systemClock } from '../base/clock.ts'
import { describeError, Failure } from '../base/failure.ts'
import { failure } from '../errors.ts'
import type { ComponentMetadata, ComponentRef, WriterMetadata } from '../vss/components.ts'
import { failureCodeOf } from '../vss/failure-code.ts'
import type { ShadowCopy, Volume } from '../vss/provider.ts'
import type { FileOwner } from '../vss/restore-plan.ts'
import { backupRecoveryFlag, defaultLimits, hyperVWriterId, type SessionLimits, type Veto } from '../vss/vocabulary.ts'
import type { WritableCopies } from '../vss/windows.ts'
import type {
  ComponentFile,
  ComponentOutcome,
  RestoredComponent,
  RestoreSession,
  Writer,
  WriterSession,
} from '../vss/writer.ts'
import { askGuest } from './ask-guest.ts'
import type { RecoveryWay, WritableCopy } from './auto-recovery.ts'
import { childSnapshot } from './child-snapshot.ts'
import { type Cluster, elsewhere, noCluster } from './cluster.ts'
import { clusteredCopies, requireStillHere } from './cluster-hold.ts'
import { guestFreeze } from './guest-freeze.ts'
import { ownerOf, readHostFiles, type StoredHostFile } from './host-files.ts'
import type { DiskImage, Hypervisor, VmFacts } from './hypervisor.ts'
import { atLeast, type BackupPolicy, type MethodPlan, planMethod } from './method.ts'
import { type MethodRun, undisturbed } from './method-run.ts'
import { captionOf, type Profile } from './profile.ts'
import type { OpenAutoRecovery } from './recovery-ways.ts'
import type { VmRestore } from './restore.ts'
import { savedState } from './saved-state.ts'

export interface VmWriterOptions {
  readonly hypervisor: Hypervisor
  /** The cluster that looks after some of its VMs; none unless told. */
  readonly cluster?: Cluster
  readonly policy: BackupPolicy
  readonly workDirectory: string
  readonly clock?: Clock
  readonly limits?: SessionLimits
  /** VMs with which something slow is done side by side, outside of any freeze of the host's; 8 unless told. */
  readonly atOnce?: number
  /** Only a backup has one. */
  readonly openAutoRecovery?: () => OpenAutoRecovery
  /** Makes sure, before anything is touched, that a way of recovery can be gone. */
  readonly requireRecovery?: (way: RecoveryWay) => Promise<void>
  /** The restore that PreRestore and PostRestore carry out; only a restore session has one. */
  readonly restore?: VmRestore
}

interface VmInSet {
  readonly facts: VmFacts
  readonly plan: MethodPlan
  readonly run: MethodRun
  files: readonly ComponentFile[]
  hostFiles: readonly StoredHostFile[]
  /** Owner of each disk that is a file, by target. */
  owners: Readonly<Record<string, FileOwner>>
}

export class VmWriter implements Writer {
  readonly id = hyperVWriterId
  readonly instanceId: string = crypto.randomUUID()
  readonly name = 'Umbra VM Writer'
  readonly #options: VmWriterOptions
  #vms = new Map<string, VmInSet>()
  /** What each VM's copies were planned for at the last Identify, which the set's volumes were taken from. */
  readonly #identified = new Map<string, string>()

  constructor(options: VmWriterOptions) {
    this.#options = options
  }

  get #cluster(): Cluster {
    return this.#options.cluster ?? noCluster
  }

  get #atOnce(): number {
    return this.#options.atOnce ?? 8
  }

  async onIdentify(): Promise<WriterMetadata> {
    const vms = await this.#options.hypervisor.listVms()
    const components = await mapLimit(vms, this.#atOnce, (facts) => this.#describe(facts))
    const others = elsewhere(await this.#cluster.vms(), vms)
    const told = others.length === 0 ? {} : { elsewhere: others }
    return { writerId: this.id, instanceId: this.instanceId, name: this.name, components, ...told }
  }

  /** Looks again at each VM: what was true at Identify may have changed, and only facts of now may be acted upon. */
  async onPrepareBackup(session: WriterSession): Promise<readonly Veto[]> {
    return this.#forEach(session, async (ref) => {
      const facts = await this.#options.hypervisor.vm(ref.name)
      const plan = planMethod(
        facts,
        await askGuest(this.#options.hypervisor, facts, this.#options.policy),
        this.#options.policy,
      )
      if (plan.obstacles.length > 0) {
        throw new Failure('VM_METHOD_UNSUPPORTED', plan.obstacles.join('; '))
      }
      if (copiesOf(plan) !== this.#identified.get(ref.name)) {
        throw failure('VM_STATE', {
          vm: facts.name,
          state: facts.power,
          reason: 'its disks, or how it can be backed up, have just changed',
        })
      }
      if (plan.recovery !== undefined) await this.#options.requireRecovery?.(plan.recovery.way)
      const tell = (detail: string) => session.emit({ event: 'VM', vm: facts.name, detail })
      const { hypervisor, workDirectory } = this.#options
      const { undo, snapshotSetId, emit, signal } = session
      const { clock = systemClock, limits = defaultLimits } = this.#options
      const about = { hypervisor, cluster: this.#cluster, facts, plan, workDirectory, snapshotSetId }
      const context = { ...about, undo, clock, limits, emit, signal, tell }
      const run = {
        'child-snapshot': childSnapshot,
        'guest-freeze': guestFreeze,
        checkpoint: undisturbed,
        'saved-state': savedState,
        offline: undisturbed,
      }[plan.method]
      this.#vms.set(ref.name, { facts, plan, run: run(context), files: [], hostFiles: [], owners: {} })
    })
  }

  onPrepareSnapshot(session: WriterSession): Promise<readonly Veto[]> {
    const prepare = async ({ facts, run }: VmInSet) => {
      await requireStillHere(this.#cluster, this.#options.hypervisor, facts)
      await run.prepareForSnapshot()
    }
    return this.#forEachVm(session, prepare, this.#atOnce)
  }

  /** No work but guest-freeze's; for the other methods the handlers are empty, as in the Hyper-V writer. */
  onFreeze(session: WriterSession): Promise<readonly Veto[]> {
    return this.#forEachVm(session, ({ run }) => run.freeze())
  }

  onThaw(session: WriterSession): Promise<readonly Veto[]> {
    return this.#forEachVm(session, ({ run }) => run.thaw())
  }

  async onPostSnapshot(
    session: WriterSession,
    copies: readonly ShadowCopy[],
    window: WritableCopies,
  ): Promise<readonly Veto[]> {
    await using autoRecovery = this.#options.openAutoRecovery?.()
    const work = async (vm: VmInSet) => {
      const { stored, contents } = await readHostFiles(vm.facts.hostFiles) // before a saved VM goes on: they belong to it
      vm.hostFiles = stored
      vm.files = contents
      vm.owners = await ownersOf(vm.plan)
      await vm.run.postSnapshot(writableCopies(copies, vm, window), autoRecovery)
      const { consistency, reasons } = vm.run.outcome()
      const { require } = this.#options.policy
      if (!atLeast(consistency, require)) {
        throw new Failure(
          'VM_CONSISTENCY_UNMET',
          `${consistency} consistency was reached where ${require} is required: ${reasons.join('; ')}`,
        )
      }
    }
    return await this.#forEachVm(session, work, this.#atOnce)
  }

  async outcomes(session: WriterSession): Promise<readonly ComponentOutcome[]> {
    return session.components.flatMap((component) => {
      const vm = this.#vms.get(component.name)
      if (vm === undefined) return []
      const outcome = vm.run.outcome()
      const configuration = { name: 'configuration.xml', content: new TextEncoder().encode(vm.facts.configuration) }
      return [{ component, metadata: metadataOf(vm), files: [configuration, ...vm.files, ...outcome.files] }]
    })
  }

  onBackupComplete(session: WriterSession): Promise<readonly Veto[]> {
    return this.#forEachVm(session, async ({ run }) => run.complete?.())
  }

  async onBackupShutdown(): Promise<void> {
    this.#vms.clear()
  }

  async onAbort(session: WriterSession): Promise<void> {
    const vetoes = await this.#forEachVm(session, ({ run }) => run.abort())
    if (vetoes.length > 0) throw new Error(vetoes.map(({ component, reason }) => `${component}: ${reason}`).join('; '))
  }

  onPreRestore(session: RestoreSession): Promise<readonly Veto[]> {
    return this.#forEach(session, (ref) => this.#restore().preRestore(ref, session))
  }

  onPostRestore(session: RestoreSession, restored: readonly RestoredComponent[]): Promise<readonly Veto[]> {
    return this.#forEach(session, async (ref) => {
      const status = restored.find(({ component }) => component.name === ref.name)?.status ?? 'undefined'
      if (status !== 'all') throw new Failure('VM_NOT_RESTORED', `not all of its files were restored (${status})`)
      await this.#restore().postRestore(ref, session)
    })
  }

  #restore(): VmRestore {
    if (this.#options.restore === undefined) throw new Error('bug: this session was not opened for a restore')
    return this.#options.restore
  }

  async #describe(facts: VmFacts): Promise<ComponentMetadata> {
    const { policy, hypervisor } = this.#options
    const plan = planMethod(facts, await askGuest(hypervisor, facts, policy), policy)
    this.#identified.set(facts.uuid, copiesOf(plan))
    const files = [...plan.disks.map(({ location }) => location), ...facts.hostFiles.map(({ path }) => path)].map(
      (path) => ({ path: path.slice(0, -basename(path).length), filespec: basename(path), recursive: false }),
    )
    return {
      writerId: this.id,
      type: 'filegroup',
      logicalPath: '',
      name: facts.uuid,
      label: facts.name,
      caption: captionOf(policy.profile, plan.method, facts.name),
      selectable: true,
      selectableForRestore: true,
      notifyOnBackupComplete: false,
      flags: plan.method === 'child-snapshot' ? backupRecoveryFlag : 0,
      files,
      volumes: plan.disks.map((disk) => volumeOf(facts, plan, disk, policy.profile)),
      instant: policy.instant === 'set' ? 'set' : facts.uuid,
      plan: planMetadata(facts, plan),
      obstacles: plan.obstacles,
    }
  }

  #forEachVm(session: WriterSession, work: (vm: VmInSet) => Promise<void>, limit?: number): Promise<readonly Veto[]> {
    const known = async (ref: ComponentRef) => {
      const vm = this.#vms.get(ref.name)
      if (vm !== undefined) await work(vm)
    }
    return this.#forEach(session, known, limit)
  }

  /** Law 10: every VM is asked, every no is gathered. */
  async #forEach(
    session: { components: readonly ComponentRef[] },
    work: (ref: ComponentRef) => Promise<void>,
    limit?: number,
  ): Promise<Veto[]> {
    const settled = await settleAll(session.components, work, limit)
    return settled.flatMap(({ item, outcome }) => {
      if (outcome.ok) return []
      const component = this.#vms.get(item.name)?.facts.name ?? item.name
      return [
        { writer: this.name, component, code: failureCodeOf(outcome.error), reason: describeError(outcome.error) },
      ]
    })
  }
}

/** Of this VM, those that may be written. */
function writableCopies(copies: readonly ShadowCopy[], { facts }: VmInSet, window: WritableCopies): WritableCopy[] {
  return copies.flatMap(({ volume, writableImage }) => {
    if (volume.component !== facts.uuid || writableImage === undefined) return []
    return [{ target: volume.name, image: writableImage(window) as unknown as DiskImage }]
  })
}

/** What the set's copies were planned for: which disks, and whether they are to be rolled back. */
const copiesOf = ({ disks, recovery }: MethodPlan): string =>
  [recovery?.way ?? '', ...disks.map(({ target, location }) => `${target}=${location}`)].join(' ')

function volumeOf(
  facts: VmFacts,
  { method, recovery }: MethodPlan,
  disk: VmFacts['disks'][number],
  profile: Profile,
): Volume {
  const runsOn = method === 'guest-freeze' || method === 'checkpoint'
  const clustered = facts.cluster === undefined ? undefined : clusteredCopies(facts, method)
  return {
    id: `${facts.uuid}/${disk.target}`,
    component: facts.uuid,
    caption: facts.name,
    name: disk.target,
    ...(clustered === undefined ? {} : { restriction: clustered.restriction }),
    properties: {
      kind: 'vm-disk',
      vm: facts.uuid,
      target: disk.target,
      power: facts.power,
      /** The VM does not write while the copies are made, whatever it does afterwards. */
      atRest: method === 'offline' || method === 'saved-state',
      /** Its instant may be the beginning of a backup job that tracks changes; the older eras had checkpoints only. */
      backupJob: clustered?.backupJob ?? (runsOn && recovery === undefined && profile === 'modern'),
      ...(clustered === undefined ? {} : { noOverlay: true }),
      location: disk.location,
      sizeBytes: disk.sizeBytes,
      image: disk.image as unknown as JsonObject,
    },
  }
}

function planMetadata(facts: VmFacts, plan: MethodPlan): JsonObject {
  return {
    name: facts.name,
    uuid: facts.uuid,
    power: facts.power,
    method: plan.method,
    consistency: plan.consistency,
    because: plan.because,
    ...(plan.recovery === undefined ? {} : { recovery: plan.recovery as unknown as JsonObject }),
    conditions: plan.conditions.map((condition) => ({ ...condition })),
    excluded: plan.excluded.map((exclusion) => ({ ...exclusion })),
    disks: plan.disks.map(({ target, location, image, sizeBytes, bus, serial }) => {
      return { target, location, bus, format: image?.format, sizeBytes, ...(serial === undefined ? {} : { serial }) }
    }),
    nics: facts.nics.map((nic) => ({ ...nic })),
    ...(facts.cluster === undefined ? {} : { cluster: { ...facts.cluster } }),
  }
}

function metadataOf({ facts, plan, run, hostFiles, owners }: VmInSet): JsonObject {
  const { consistency, reasons, freezeMs, heldMs, pausedMs, recoveryMs, recoveredBy } = run.outcome()
  const round = (ms: number) => Math.round(ms * 10) / 10
  return {
    ...planMetadata(facts, plan),
    hostFiles: hostFiles.map((file) => ({ ...file, owner: { ...file.owner } })),
    owners: Object.fromEntries(Object.entries(owners).map(([target, owner]) => [target, { ...owner }])),
    consistency,
    reasons,
    freezeMs: round(freezeMs),
    heldMs: round(heldMs),
    pausedMs: round(pausedMs),
    ...(recoveryMs === undefined ? {} : { recoveryMs: round(recoveryMs), recoveredBy }),
  }
}

async function ownersOf({ disks }: MethodPlan): Promise<Record<string, FileOwner>> {
  const found = await Promise.all(disks.map(async ({ target, location }) => [target, await ownerOf(location)] as const))
  return Object.fromEntries(found.flatMap(([target, owner]) => (owner === undefined ? [] : [[target, owner]])))
}
