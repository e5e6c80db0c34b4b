/**
 * The guest requestor for real: umbra-guest and umbra-revert, run in the guest by its agent (docs/guest-protocol.md). An
 * exit code becomes a failure here, lines become values in umbra-guest-output.ts, bytes travel in umbra-guest-transport.ts.
 */
import { failure } from '../errors.ts'
import type {
  ChangedFsid,
  GuestDescription,
  GuestRequestor,
  GuestVolume,
  ShadowStorage,
} from '../vm/guest-requestor.ts'
import type { GuestAgent, NamedDisk, PlacedFileSystem } from './guest-agent.ts'
import * as output from './umbra-guest-output.ts'
import {
  ExecTransport,
  type GuestAnswer,
  type GuestRequest,
  type GuestTransport,
  type GuestVerb,
  guestScripts,
  PackageTransport,
} from './umbra-guest-transport.ts'

export interface UmbraGuestLimits {
  readonly describeMs: number
  readonly prepareMs: number
  /** Above the limit that the freeze itself is given. */
  readonly freezeGraceMs: number
  readonly commitMs: number
  readonly releaseMs: number
  readonly revertMs: number
}

const usualLimits: UmbraGuestLimits = {
  describeMs: 20_000,
  prepareMs: 120_000,
  freezeGraceMs: 10_000,
  commitMs: 60_000,
  releaseMs: 120_000,
  revertMs: 600_000,
}

/** Exit codes of docs/guest-protocol.md. */
const exits = { done: 0, veto: 3, setLost: 5, noSuchSet: 6 }
const filesOfTheAgent = ['guest-file-open', 'guest-file-read', 'guest-file-write', 'guest-file-close']
const setPattern = /^[0-9a-f]{8}$/
const serialPattern = /^umbra[A-Za-z0-9_-]{0,15}$/
const mostSerials = 128

export class UmbraGuest implements GuestRequestor {
  readonly #agent: GuestAgent
  readonly #limits: UmbraGuestLimits
  readonly #exec: ExecTransport
  readonly #package: PackageTransport
  /** As the agent last allowed; inside the hold it is not asked again. */
  #transport: GuestTransport | undefined

  constructor(agent: GuestAgent, limits: Partial<UmbraGuestLimits> = {}, scripts = guestScripts) {
    this.#agent = agent
    this.#limits = { ...usualLimits, ...limits }
    this.#exec = new ExecTransport(agent, scripts)
    this.#package = new PackageTransport(agent)
  }

  async describe(): Promise<GuestDescription> {
    await this.#choose()
    const text = await this.#stdout({ verb: 'describe', args: [], limitMs: this.#limits.describeMs })
    const said = this.#understood('describe', text, output.readDescription)
    const [fileSystems, disks] = [await this.#agent.placedFileSystems(), await this.#agent.disks()]
    const stray = new Set<string>()
    const volumes = said.volumes.map((volume) => {
      const { targets, elsewhere } = placeOf(volume, said.physicalVolumes, fileSystems, disks)
      for (const device of elsewhere) stray.add(output.readable(device))
      return describeVolume(volume, targets)
    })
    const { writers, arrays } = said
    return { via: this.#transport?.via ?? 'exec', volumes, writers, arrays, strayDevices: [...stray].sort() }
  }

  async prepare(set: string, limitMs: number): Promise<void> {
    await this.#choose()
    await this.#stdout({ verb: 'prepare', args: [nameOf(set), seconds(limitMs)], limitMs: this.#limits.prepareMs })
  }

  async freezeWriters(set: string, limitMs: number): Promise<void> {
    const waitMs = limitMs + this.#limits.freezeGraceMs
    await this.#stdout({ verb: 'freeze', args: [nameOf(set), seconds(limitMs)], limitMs: waitMs })
  }

  async commit(set: string): Promise<void> {
    await this.#stdout({ verb: 'commit', args: [nameOf(set)], limitMs: this.#limits.commitMs })
  }

  async thawWriters(set: string): Promise<void> {
    await this.#stdout({ verb: 'thaw', args: [nameOf(set)], limitMs: this.#limits.commitMs })
  }

  async status(set: string): Promise<readonly ShadowStorage[]> {
    const text = await this.#stdout({ verb: 'status', args: [nameOf(set)], limitMs: this.#limits.describeMs })
    return this.#understood('status', text, output.readAreas)
  }

  async release(set: string): Promise<void> {
    await this.#choose()
    // What was given up earlier may still be at work, and must not make anything after this (law 8).
    await this.#transport?.settle(this.#limits.releaseMs)
    const answer = await this.#run({ verb: 'release', args: [nameOf(set)], limitMs: this.#limits.releaseMs })
    if (answer.exitCode !== exits.noSuchSet) this.#judge('release', answer)
  }

  async revert(set: string, serials: readonly string[]): Promise<readonly ChangedFsid[]> {
    const strange = serials.find((serial) => !serialPattern.test(serial))
    if (strange !== undefined || serials.length === 0 || serials.length > mostSerials) {
      throw this.#refused('revert', `not the serials of copies: ${strange ?? serials.length}`)
    }
    await this.#choose()
    const text = await this.#stdout({ verb: 'revert', args: [nameOf(set), ...serials], limitMs: this.#limits.revertMs })
    return this.#understood('revert', text, (lines) => output.readReverted(lines, serials))
  }

  async #choose(): Promise<void> {
    if (await this.#agent.allowed('guest-exec', 'guest-exec-status')) {
      this.#transport = this.#exec
      return
    }
    this.#transport = undefined
    const reason = 'the agent does not allow guest-exec'
    if (!(await this.#agent.allowed(...filesOfTheAgent))) {
      throw this.#refused('guest-exec', `${reason}, nor its file commands for the package umbra-guest`)
    }
    if (!(await this.#package.isInstalled())) {
      throw this.#refused('guest-exec', `${reason}, and the service of the package umbra-guest does not run`)
    }
    this.#transport = this.#package
  }

  async #run(request: GuestRequest): Promise<GuestAnswer> {
    if (this.#transport === undefined) await this.#choose()
    const transport = this.#transport
    if (transport === undefined) throw this.#refused(request.verb, 'there is no way into the guest')
    return await transport.run(request)
  }

  async #stdout(request: GuestRequest): Promise<string> {
    const answer = await this.#run(request)
    this.#judge(request.verb, answer)
    return answer.stdout
  }

  #judge(verb: GuestVerb, { exitCode, reason: told }: GuestAnswer): void {
    if (exitCode === exits.done) return
    const reason = output.readable(told) || `umbra-guest ${verb} ended with ${exitCode}`
    if (exitCode === exits.veto) throw failure('GUEST_WRITER_VETO', { vm: this.#agent.vm, reason })
    if (exitCode === exits.setLost || exitCode === exits.noSuchSet) {
      throw failure('GUEST_SET_LOST', { vm: this.#agent.vm, reason })
    }
    throw this.#refused(verb, reason)
  }

  #understood<Value>(verb: GuestVerb, text: string, read: (text: string) => Value): Value {
    try {
      return read(text)
    } catch (error) {
      if (!(error instanceof output.NotUnderstood)) throw error
      throw this.#refused(verb, `its answer is not understood: ${output.readable(error.message)}`)
    }
  }

  #refused(call: string, reason: string) {
    return failure('GUEST_REFUSED', { vm: this.#agent.vm, call: `umbra-guest ${call}`, reason })
  }
}

const seconds = (ms: number): string => String(Math.max(1, Math.ceil(ms / 1000)))

function nameOf(set: string): string {
  if (!setPattern.test(set)) throw new Error(`bug: ${set} is no name of a snapshot set`)
  return set
}

function describeVolume(volume: output.SaidVolume, targets: readonly string[]): GuestVolume {
  const { mountPoint, type, kind, where, roomBytes, obstacle } = volume
  return {
    mountPoint: output.readable(mountPoint),
    type,
    kind,
    where: output.readable(where),
    targets,
    roomBytes,
    ...(obstacle === '' ? {} : { obstacle }),
  }
}

/** Where a volume lies: its file system, and every disk of its volume group or file system besides. */
function placeOf(
  { mountPoint, kind, where }: output.SaidVolume,
  physicalVolumes: readonly output.PhysicalVolume[],
  fileSystems: readonly PlacedFileSystem[],
  disks: readonly NamedDisk[],
): { targets: readonly string[]; elsewhere: readonly string[] } {
  const mounted = fileSystems.filter((fileSystem) => fileSystem.mountPoint === mountPoint)
  const targets = new Set(mounted.flatMap((fileSystem) => fileSystem.targets))
  const elsewhere = new Set(mounted.flatMap((fileSystem) => fileSystem.elsewhere))
  const group = kind === 'other' ? undefined : where.split(kind === 'btrfs' ? ':' : '/', 1)[0]
  const parts = physicalVolumes.filter((part) => part.group === group).map(({ device }) => device)
  // A group always has its physical volumes; whatever else names none is looked up by its own device.
  if (parts.length === 0 && (targets.size === 0 || kind === 'lvm' || kind === 'thin')) parts.push(where)
  for (const device of parts) {
    const found = targetsBelow(device, disks)
    for (const target of found) targets.add(target)
    if (found.length === 0) elsewhere.add(device)
  }
  return { targets: [...targets].sort(), elsewhere: [...elsewhere] }
}

/** The VM's disks that a device of the guest is made of; none when a part of it is on no disk of the VM. */
function targetsBelow(name: string, disks: readonly NamedDisk[], depth = 8): readonly string[] {
  const disk = disks.find((one) => one.name === name)
  if (disk === undefined || depth === 0) return []
  if (disk.target !== undefined) return [disk.target]
  const below = disk.dependencies.map((part) => targetsBelow(part, disks, depth - 1))
  return below.some((targets) => targets.length === 0) ? [] : below.flat()
}
