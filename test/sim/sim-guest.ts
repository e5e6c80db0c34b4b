/**
 * The guest agent of a simulated VM, well-behaved or not: set `behaviour` and it stays silent, answers late or
 * rubbish, refuses a freeze, freezes after it said that it had not, or thaws by itself.
 */
import { failure } from '../../src/errors.ts'
import type { GuestExecResult, GuestFileSystem, GuestIntegration, GuestOs } from '../../src/vm/hypervisor.ts'
import { readConfiguration } from './sim-configuration.ts'
import type { Deed, GuestMemory } from './sim-memory.ts'
import { nameOf } from './sim-vm.ts'
import { SimWorkload } from './sim-workload.ts'
import type { SimWorld } from './sim-world.ts'

export interface GuestBehaviour {
  /** `late`: the effect comes too, also after the caller gave up. `rubbish`: the effect comes, the answer is useless. */
  answers: 'at once' | 'never' | 'rubbish' | { readonly lateByMs: number }
  /**
   * `half`: the first half of the file systems is frozen, then it fails. `lostReplyFreezesAfterMs`: fails at once, and
   * freezes then. `hookHangsMs`: the agent is deaf for that long (perhaps Infinity), and freezes then.
   */
  freeze: 'works' | 'refused' | 'half' | { readonly lostReplyFreezesAfterMs: number } | { readonly hookHangsMs: number }
  thaw: 'works' | 'refused' | 'lost reply'
  /** A watchdog in the guest thaws that long after the freeze. */
  selfThawMs: number | undefined
  /** Whether the application has a freeze hook that completes its records. */
  quiesces: boolean
  responseTimeoutMs: number
  thawTimeoutMs: number
}

/** A program in the guest: gets its arguments, answers like `exec`. */
export type SimProgram = (args: readonly string[]) => GuestExecResult | Promise<GuestExecResult>

const outputLimit = 1024 * 1024

const ordinaryPrograms: [string, SimProgram][] = [
  ['/bin/true', () => ({ exitCode: 0, stdout: '', stderr: '' })],
  ['/bin/false', () => ({ exitCode: 1, stdout: '', stderr: '' })],
  ['/bin/echo', (args) => ({ exitCode: 0, stdout: `${args.join(' ')}\n`, stderr: '' })],
]

export class SimGuest implements GuestIntegration {
  readonly behaviour: GuestBehaviour = {
    answers: 'at once',
    freeze: 'works',
    thaw: 'works',
    selfThawMs: undefined,
    quiesces: true,
    responseTimeoutMs: 5_000,
    thawTimeoutMs: 60_000,
  }
  readonly programs = new Map(ordinaryPrograms)
  readonly workload: SimWorkload
  /** Whether the agent's process runs. */
  agentRuns = true
  ipAddresses: readonly string[] = []
  os: GuestOs = { id: 'debian', name: 'Debian GNU/Linux', version: '12' }
  readonly #world: SimWorld
  readonly #uuid: string

  constructor(world: SimWorld, uuid: string) {
    this.#world = world
    this.#uuid = uuid
    this.workload = new SimWorkload(world, uuid)
  }

  /** What is in the guest's memory; undefined when it has none because the VM is off, saved or gone. */
  get memory(): GuestMemory | undefined {
    return this.#world.vms.get(this.#uuid)?.live?.memory
  }

  get isFrozen(): boolean {
    this.settle()
    return (this.memory?.frozen.length ?? 0) > 0
  }

  /** One record to A and to B; the instant can fall between two `writeStep`. */
  writeRecord(): void {
    this.writeStep()
    this.writeStep()
  }

  writeStep(): void {
    this.settle()
    this.workload.step()
  }

  /** Bytes at a place of a disk, from inside; held back while frozen. */
  write(target: string, offset: number, data: Uint8Array | string): void {
    this.settle()
    this.workload.write(target, offset, typeof data === 'string' ? Buffer.from(data) : data)
  }

  /** Does what has fallen due inside the guest, if its vCPUs run. */
  settle(): void {
    const live = this.#world.vms.get(this.#uuid)?.live
    if (live?.power !== 'running') return
    const { memory } = live
    const nowMs = this.#world.clock.monotonicMs()
    const due = memory.late.filter(({ dueMs }) => dueMs <= nowMs).sort((one, other) => one.dueMs - other.dueMs)
    memory.late = memory.late.filter((each) => !due.includes(each))
    for (const deed of due) {
      if ('set' in deed) this.#world.requestorOf(this.#uuid).settle(memory, deed)
      else if (deed.kind === 'freeze') this.#freezeNow(memory)
      else this.#thawNow(memory)
    }
  }

  ping(): Promise<void> {
    return this.ask('ping', { whileFrozen: true }, () => undefined)
  }

  async freeze(): Promise<number> {
    const { freeze } = this.behaviour
    return this.ask('freeze', { effect: 'freeze' }, async (memory) => {
      if (freeze === 'works') return this.#freezeNow(memory)
      if (freeze === 'refused') throw this.refused('freeze', 'a hook ended with status 1')
      if (freeze === 'half') {
        const targets = this.#frozenBy()
        this.#freezeNow(memory, targets.slice(0, Math.ceil(targets.length / 2)))
        throw this.refused('freeze', `failed to freeze ${targets.at(-1)}`)
      }
      if ('lostReplyFreezesAfterMs' in freeze) {
        this.later({ kind: 'freeze' }, freeze.lostReplyFreezesAfterMs)
        throw this.silent('the answer was lost')
      }
      memory.agentBusyUntilMs = this.#world.clock.monotonicMs() + freeze.hookHangsMs
      this.later({ kind: 'freeze' }, freeze.hookHangsMs)
      await this.#idleAgent(memory, this.behaviour.responseTimeoutMs)
      return memory.frozen.length
    })
  }

  async thaw(): Promise<number> {
    const { thawTimeoutMs, thaw } = this.behaviour
    await this.#freezesLanded(thawTimeoutMs)
    return this.ask('thaw', { whileFrozen: true, effect: 'thaw', limitMs: thawTimeoutMs }, (memory) => {
      if (thaw === 'refused') throw this.refused('thaw', 'FITHAW failed')
      const thawed = this.#thawNow(memory)
      if (thaw === 'lost reply') throw this.silent('the answer was lost')
      return thawed
    })
  }

  freezeStatus(): Promise<'frozen' | 'thawed'> {
    return this.ask('freeze status', { whileFrozen: true }, ({ frozen }) => (frozen.length > 0 ? 'frozen' : 'thawed'))
  }

  fileSystems(): Promise<readonly GuestFileSystem[]> {
    return this.ask('file systems', {}, () =>
      this.workload.disks.map(({ target }, index) => ({
        mountPoint: index === 0 ? '/' : `/mnt/${target}`,
        type: 'ext4',
        targets: [target],
      })),
    )
  }

  osInfo(): Promise<GuestOs> {
    return this.ask('OS information', {}, () => this.os)
  }

  exec(path: string, args: readonly string[], options: { timeoutMs?: number } = {}): Promise<GuestExecResult> {
    return this.ask(`exec ${path}`, {}, async () => {
      const program = this.programs.get(path)
      if (program === undefined) throw this.refused(`exec ${path}`, 'No such file or directory')
      const limitMs = options.timeoutMs ?? 60_000
      const expired = Promise.withResolvers<never>()
      const timer = this.#world.clock.timer(limitMs, () =>
        expired.reject(this.silent(`${path} did not end within ${limitMs} ms`)),
      )
      try {
        const { exitCode, stdout, stderr } = await Promise.race([program(args), expired.promise])
        return { exitCode, stdout: stdout.slice(0, outputLimit), stderr: stderr.slice(0, outputLimit) }
      } finally {
        timer.cancel()
      }
    })
  }

  addresses(): Promise<readonly string[]> {
    return this.ask('addresses', {}, () => this.ipAddresses)
  }

  syncClock(): Promise<void> {
    return this.ask('clock', {}, (memory) => {
      memory.clockLagMs = 0
    })
  }

  /** One exchange with the agent, bounded in time, with all that can go wrong on the way. */
  async ask<T>(
    call: string,
    how: { whileFrozen?: boolean; effect?: 'freeze' | 'thaw'; limitMs?: number },
    answer: (memory: GuestMemory) => T | Promise<T>,
  ): Promise<T> {
    const { answers, responseTimeoutMs } = this.behaviour
    const limitMs = how.limitMs ?? responseTimeoutMs
    await this.#world.called()
    await this.#idleAgent(this.#reachable(), limitMs)
    if (answers === 'never') await this.giveUp(limitMs)
    if (typeof answers === 'object') {
      if (answers.lateByMs > limitMs) {
        if (how.effect !== undefined) this.later({ kind: how.effect }, answers.lateByMs)
        await this.giveUp(limitMs)
      }
      await this.#world.clock.sleep(answers.lateByMs)
    }
    const memory = this.#reachable()
    if (memory.frozen.length > 0 && how.whileFrozen !== true)
      throw this.refused(call, 'disabled: the agent is in frozen state')
    const result = await answer(memory)
    if (answers === 'rubbish') throw this.refused(call, 'the answer is not JSON')
    return result
  }

  #reachable(): GuestMemory {
    this.settle()
    const vm = this.#world.vms.get(this.#uuid)
    if (vm?.live === undefined) throw this.silent('the VM is not running')
    if (vm.live.power === 'paused') throw this.silent('the VM is paused')
    if (!readConfiguration(vm.live.configuration).hasAgent) throw this.silent('no agent is configured')
    if (!this.agentRuns) throw this.silent('the agent is not connected')
    return vm.live.memory
  }

  /** Waits until the agent has finished the hook it is in. */
  async #idleAgent(memory: GuestMemory, limitMs: number): Promise<void> {
    await this.#until(() => memory.agentBusyUntilMs, limitMs)
    this.settle()
  }

  /** Waits for freezes still on their way, which the agent does before it looks at a thaw. */
  async #freezesLanded(limitMs: number): Promise<void> {
    const freezes = () => (this.memory?.late ?? []).filter(({ kind }) => kind === 'freeze')
    await this.#until(() => Math.max(0, ...freezes().map(({ dueMs }) => dueMs)), limitMs)
  }

  /** A real timer may fire a little before its time has come by the other clock: hence the loop. */
  async #until(dueMs: () => number, limitMs: number): Promise<void> {
    for (;;) {
      const waitMs = dueMs() - this.#world.clock.monotonicMs()
      if (waitMs > limitMs) await this.giveUp(limitMs)
      if (waitMs <= 0) return
      await this.#world.clock.sleep(Math.ceil(waitMs))
    }
  }

  async giveUp(limitMs: number): Promise<never> {
    await this.#world.clock.sleep(limitMs)
    throw this.silent(`no answer within ${limitMs} ms`)
  }

  /** Something the guest does by itself, if it runs then; cancelling only lets nobody wait for it. */
  later(deed: Deed, afterMs: number): { cancel(): void } {
    const { clock } = this.#world
    this.memory?.late.push({ ...deed, dueMs: clock.monotonicMs() + afterMs })
    return Number.isFinite(afterMs) ? clock.timer(afterMs, () => this.settle()) : { cancel: () => undefined }
  }

  #frozenBy(): string[] {
    return this.workload.disks.map(({ target }) => target)
  }

  #freezeNow(memory: GuestMemory, targets = this.#frozenBy()): number {
    if (memory.frozen.length > 0) return memory.frozen.length
    if (this.behaviour.quiesces) this.workload.quiesce()
    memory.frozen = [...targets]
    if (this.behaviour.selfThawMs !== undefined) this.later({ kind: 'thaw' }, this.behaviour.selfThawMs)
    return targets.length
  }

  #thawNow(memory: GuestMemory): number {
    const thawed = memory.frozen.length
    memory.frozen = []
    memory.late = memory.late.filter(({ kind }) => kind !== 'thaw')
    this.workload.unblock()
    return thawed
  }

  get name(): string {
    const vm = this.#world.vms.get(this.#uuid)
    return vm === undefined ? this.#uuid : nameOf(vm)
  }

  silent(reason: string) {
    return failure('GUEST_NOT_RESPONDING', { vm: this.name, reason })
  }

  refused(call: string, reason: string) {
    return failure('GUEST_REFUSED', { vm: this.name, call, reason })
  }
}
