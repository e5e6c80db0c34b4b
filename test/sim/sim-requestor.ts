/**
 * The requestor inside a simulated guest: shadow copies of its own volumes, well-behaved or not. Set `behaviour` and a
 * writer vetoes, a verb hangs or takes the agent with it, an area overflows, the guest thaws by itself.
 */
import { failure } from '../../src/errors.ts'
import type {
  ChangedFsid,
  GuestDescription,
  GuestRequestor,
  GuestVolume,
  GuestVolumeKind,
  ShadowStorage,
} from '../../src/vm/guest-requestor.ts'
import { uuidOf } from './sim-configuration.ts'
import { storageKey } from './sim-disk.ts'
import type { SimGuest } from './sim-guest.ts'
import { changedBytes, changesTo, type FrozenSets, readSetOn, type SetAreas } from './sim-guest-sets.ts'
import { attachedCopies } from './sim-hot-add.ts'
import type { GuestMemory, SetDeed } from './sim-memory.ts'
import type { SimWorld } from './sim-world.ts'

export const requestorVerbs = [
  'describe',
  'prepare',
  'freeze',
  'commit',
  'thaw',
  'status',
  'release',
  'revert',
] as const
export type RequestorVerb = (typeof requestorVerbs)[number]

/** `after`: the deed is done, but nobody learns of it. */
export type RequestorTrouble = 'refused' | 'hangs' | 'hangs after' | 'dies' | 'dies after'

export interface RequestorBehaviour {
  via: GuestDescription['via']
  /** What is mounted from each disk, by target; one classic logical volume of its own group unless told. */
  volumes: Readonly<Record<string, Partial<GuestVolume> & { readonly kind: GuestVolumeKind }>>
  /** The application with its freeze hook unless told; their names. */
  writers: readonly string[]
  arrays: readonly string[]
  strayDevices: readonly string[]
  /** The writer that says no to a freeze. */
  veto: string | undefined
  troubles: Partial<Record<RequestorVerb, RequestorTrouble>>
  /** After a verb has killed the agent, it is back so much later; never unless told. */
  agentReturnsAfterMs: number | undefined
  overflow: 'never' | 'before the commit' | 'after the commit'
  /** The guest thaws its writers so soon, whatever limit it was given. */
  selfThawMs: number | undefined
  /** A hot-added copy does not go when it is told to. */
  detachHangs: boolean
  /** How long that is waited for. */
  detachLimitMs: number
}

/** What a snapshot area may take, if there is room. */
const mostAreaBytes = 16 * 1024 * 1024
const thawedByItself = 'the guest thawed by itself'
const plentyBytes = 64 * 1024 * 1024

export class SimRequestor implements GuestRequestor {
  readonly behaviour: RequestorBehaviour = {
    via: 'exec',
    volumes: {},
    writers: ['umbra-writer'],
    arrays: [],
    strayDevices: [],
    veto: undefined,
    troubles: {},
    agentReturnsAfterMs: undefined,
    overflow: 'never',
    selfThawMs: undefined,
    detachHangs: false,
    detachLimitMs: 30_000,
  }
  /** What lies on the guest's disks, by the name of the set: it outlives the guest's memory. */
  readonly areas = new Map<string, SetAreas>()
  /** What the guest will do by itself, as timers that nobody need wait for. */
  readonly #limits = new Map<string, { cancel(): void }>()
  readonly #world: SimWorld
  readonly #uuid: string

  constructor(world: SimWorld, uuid: string) {
    this.#world = world
    this.#uuid = uuid
  }

  /** The set for which the guest's writers wait. */
  get heldFor(): string | undefined {
    return this.#guest.memory?.heldFor
  }

  /** The sets that the running guest keeps up. */
  get sets(): readonly string[] {
    return (this.#guest.memory?.sets ?? []).map(({ name }) => name)
  }

  describe(): Promise<GuestDescription> {
    const { via, writers, arrays, strayDevices } = this.behaviour
    return this.#verb('describe', () => ({ via, writers, arrays, strayDevices, volumes: this.#volumes() }))
  }

  prepare(set: string, limitMs: number): Promise<void> {
    return this.#verb('prepare', (memory) => {
      if (!/^[0-9a-f]{8}$/.test(set)) throw this.#guest.refused('prepare', `${set} is no name of a set`)
      if (this.areas.has(set)) throw this.#guest.refused('prepare', `there is a set ${set} already`)
      const full = this.#snapshotable().find(({ kind, roomBytes }) => kind === 'lvm' && roomBytes < 4096)
      if (full !== undefined) throw this.#guest.refused('prepare', `no room for a snapshot area of ${full.where}`)
      this.areas.set(set, { bytes: new Map(), valid: true })
      memory.sets.push({ name: set })
      this.#later({ kind: 'release', set }, limitMs)
    })
  }

  freezeWriters(set: string, limitMs: number): Promise<void> {
    return this.#verb('freeze', (memory) => {
      this.#kept(memory, set)
      if (memory.heldFor !== undefined) throw this.#guest.refused('freeze', `they wait for ${memory.heldFor}`)
      const { veto, writers, selfThawMs = limitMs } = this.behaviour
      if (veto !== undefined) throw failure('GUEST_WRITER_VETO', { vm: this.#guest.name, reason: `${veto} said no` })
      if (writers.length > 0) this.#guest.workload.quiesce()
      memory.heldFor = set
      this.#later({ kind: 'thaw-writers', set }, Math.min(limitMs, selfThawMs))
    })
  }

  commit(set: string): Promise<void> {
    return this.#verb('commit', (memory) => {
      const kept = this.#kept(memory, set)
      if (this.behaviour.overflow === 'before the commit') this.#overflow(memory, set)
      if (kept.lost !== undefined) throw this.#lost(kept.lost)
      const areas = this.areas.get(set)
      const targets = new Set(this.#snapshotable().flatMap(({ targets }) => targets))
      for (const { target, image } of this.#guest.workload.disks)
        if (image !== undefined && targets.has(target)) areas?.bytes.set(target, this.#world.imageBytes(image))
      if (this.behaviour.overflow === 'after the commit') this.#overflow(memory, set)
    })
  }

  thawWriters(set: string): Promise<void> {
    return this.#verb('thaw', (memory) => {
      this.#thaw(memory, set)
      const lost = memory.sets.find(({ name }) => name === set)?.lost
      if (lost === thawedByItself) throw this.#lost(lost)
    })
  }

  status(set: string): Promise<readonly ShadowStorage[]> {
    return this.#verb('status', (memory) => {
      this.#lookForOverflows()
      const { lost } = this.#kept(memory, set)
      if (lost !== undefined) throw this.#lost(lost)
      return this.#usage(set).map(({ where, usedBytes, totalBytes }) => ({ where, usedBytes, totalBytes }))
    })
  }

  release(set: string): Promise<void> {
    return this.#verb('release', (memory) => this.#release(memory, set))
  }

  revert(set: string, serials: readonly string[]): Promise<readonly ChangedFsid[]> {
    return this.#verb('revert', () => {
      const vm = this.#world.vms.get(this.#uuid)
      const disks = vm === undefined ? [] : attachedCopies(vm)
      const copies = serials.map((serial) => {
        const image = disks.find((disk) => disk.serial === serial)?.image
        if (image === undefined) throw this.#guest.refused('revert', `there is no disk with the serial ${serial}`)
        try {
          return { serial, ...readSetOn(this.#world, image, set) }
        } catch (error) {
          throw this.#lost(error instanceof Error ? error.message : String(error))
        }
      })
      for (const copy of copies) {
        const disk = this.#world.files.disk(copy.image)
        for (const [offset, data] of changesTo(this.#world, copy)) disk.write(offset, data)
      }
      return copies.flatMap(({ serial, target, image }) => this.#changedFsid(serial, target, storageKey(image.storage)))
    })
  }

  /** The host's instant for one disk: what is on it now is what its copy will have. */
  setsOn(target: string): FrozenSets {
    this.#lookForOverflows()
    const sets = [...this.areas].map(([name, { bytes, valid }]) => [name, { bytes: bytes.get(target), valid }] as const)
    return { target, sets: new Map(sets) }
  }

  /** What has fallen due inside the guest. */
  settle(memory: GuestMemory, { kind, set }: SetDeed): void {
    if (kind === 'release') this.#release(memory, set)
    else if (memory.heldFor === set) {
      this.#thaw(memory, set)
      this.#lose(memory, set, thawedByItself)
    }
  }

  async #verb<T>(verb: RequestorVerb, deed: (memory: GuestMemory) => T): Promise<T> {
    const guest = this.#guest
    return await guest.ask(`umbra-guest ${verb}`, {}, async (memory) => {
      const trouble = this.behaviour.troubles[verb]
      if (trouble === 'refused') throw guest.refused(verb, 'told to')
      if (trouble === 'hangs') await guest.giveUp(guest.behaviour.responseTimeoutMs)
      if (trouble === 'dies') throw this.#agentDies(verb)
      const answer = deed(memory)
      if (trouble === 'hangs after') await guest.giveUp(guest.behaviour.responseTimeoutMs)
      if (trouble === 'dies after') throw this.#agentDies(verb)
      return answer
    })
  }

  #agentDies(verb: RequestorVerb) {
    const { agentReturnsAfterMs } = this.behaviour
    this.#guest.agentRuns = false
    if (agentReturnsAfterMs !== undefined)
      this.#world.clock.timer(agentReturnsAfterMs, () => {
        this.#guest.agentRuns = true
      })
    return this.#guest.silent(`the agent ended during ${verb}`)
  }

  /** The set as the running guest knows it. */
  #kept(memory: GuestMemory, set: string) {
    const kept = memory.sets.find(({ name }) => name === set)
    if (kept === undefined) throw this.#lost(`there is no set ${set}`)
    return kept
  }

  #thaw(memory: GuestMemory, set: string): void {
    if (memory.heldFor !== set) return
    memory.heldFor = undefined
    this.#notLater(memory, { kind: 'thaw-writers', set })
    this.#guest.workload.unblock()
  }

  #release(memory: GuestMemory, set: string): void {
    this.#thaw(memory, set)
    this.#notLater(memory, { kind: 'release', set })
    memory.sets = memory.sets.filter(({ name }) => name !== set)
    this.areas.delete(set)
  }

  #later(deed: SetDeed, afterMs: number): void {
    this.#limits.set(`${deed.kind} ${deed.set}`, this.#guest.later(deed, afterMs))
  }

  #notLater(memory: GuestMemory, { kind, set }: SetDeed): void {
    memory.late = memory.late.filter((deed) => !('set' in deed) || deed.kind !== kind || deed.set !== set)
    this.#limits.get(`${kind} ${set}`)?.cancel()
    this.#limits.delete(`${kind} ${set}`)
  }

  #lose(memory: GuestMemory, set: string, reason: string): void {
    const kept = memory.sets.find(({ name }) => name === set)
    if (kept !== undefined) kept.lost ??= reason
  }

  #overflow(memory: GuestMemory, set: string): void {
    const areas = this.areas.get(set)
    if (areas !== undefined) areas.valid = false
    this.#lose(memory, set, 'a snapshot area overflowed')
  }

  #lookForOverflows(): void {
    const { memory } = this.#guest
    if (memory === undefined) return
    for (const { name } of memory.sets)
      if (this.#usage(name).some(({ usedBytes, totalBytes }) => usedBytes > totalBytes)) this.#overflow(memory, name)
  }

  #usage(set: string): ShadowStorage[] {
    const remembered = this.areas.get(set)?.bytes
    return this.#snapshotable().map(({ where, targets, roomBytes }) => {
      const used = targets.map((target) => {
        const before = remembered?.get(target)
        const image = this.#guest.workload.disks.find((disk) => disk.target === target)?.image
        return before === undefined || image === undefined ? 0 : changedBytes(before, this.#world.imageBytes(image))
      })
      return {
        where,
        usedBytes: used.reduce((sum, each) => sum + each, 0),
        totalBytes: Math.min(roomBytes, mostAreaBytes),
      }
    })
  }

  #volumes(): GuestVolume[] {
    return this.#guest.workload.disks.map(({ target }, index) => {
      const kind = this.behaviour.volumes[target]?.kind ?? 'lvm'
      return {
        mountPoint: index === 0 ? '/' : `/mnt/${target}`,
        type: kind === 'btrfs' ? 'btrfs' : 'ext4',
        kind,
        where: {
          lvm: `vg-${target}/data`,
          thin: `vg-${target}/thin`,
          btrfs: `${this.#fsid(target)}:/`,
          other: '/dev/sda1',
        }[kind],
        targets: [target],
        roomBytes: kind === 'other' ? 0 : plentyBytes,
        ...(kind === 'other' ? { obstacle: 'it lies on a partition' } : {}),
        ...this.behaviour.volumes[target],
      }
    })
  }

  #snapshotable(): GuestVolume[] {
    return this.#volumes().filter(({ obstacle }) => obstacle === undefined)
  }

  #fsid = (target: string): string => uuidOf(`file system of ${target} of ${this.#uuid}`)

  /** The copy of a btrfs file system that meets its original has another fsid until the host puts it back. */
  #changedFsid(serial: string, target: string, key: string): ChangedFsid[] {
    if (this.#volumes().every(({ kind, targets }) => kind !== 'btrfs' || !targets.includes(target))) return []
    const fsid = this.#fsid(target)
    this.#world.changedFsids.set(key, fsid)
    return [{ serial, fsid }]
  }

  #lost(reason: string) {
    return failure('GUEST_SET_LOST', { vm: this.#guest.name, reason })
  }

  get #guest(): SimGuest {
    return this.#world.guestOf(this.#uuid)
  }
}
