/**
 * Carries out the plan of a boot check on a hypervisor: one isolated network, then one VM after the other, each of which
 * stays up until the end, because the next may need it. Every record of what is made stands in the journal before the
 * deed, so that a crash leaves nothing. Every wait is bounded: what does not come up is a verdict, never a hang.
 */
import { chmod, chown, mkdir, rm, writeFile } from 'node:fs/promises'
import { basename, dirname } from 'node:path'
import { withDeadline } from '../base/async.ts'
import type { JsonObject, UndoStep } from '../base/cleanup.ts'
import type { Clock } from '../base/clock.ts'
import { describeError, Failure } from '../base/failure.ts'
import type { BootChecker, CheckPlace, CheckRequest, CheckSession, CheckVerdict } from '../vss/boot-check.ts'
import type { StoredComponent } from '../vss/restore-plan.ts'
import { type CheckedVm, checkName, type NewIdentities, planVmCheck, type VmCheckPlan } from './check-plan.ts'
import { pngOf } from './console-image.ts'
import type { ConfigurationEditor, Hypervisor } from './hypervisor.ts'
import { type ProbeResult, runProbe } from './probes.ts'
import { readStoredVm } from './restore-planner.ts'

export interface BootCheckTools {
  readonly hypervisor: Hypervisor
  readonly editor: ConfigurationEditor
  readonly clock: Clock
  readonly identities: NewIdentities
  /** Makes an empty overlay above a disk that is served. */
  readonly createOverlay: (
    path: string,
    served: { readonly socketPath: string; readonly exportName: string; readonly sizeBytes: number },
  ) => Promise<void>
  /** Of this writer's components only. */
  readonly writerId: string
}

const screenMaxBytes = 1024 * 1024
const agentPauseMs = 500
/** A VM without an agent can only be looked at; this long after its start. */
const lookMs = 20_000
const sectorBytes = 512

/** What came of the wait for a guest. */
class NotUp extends Error {}

export class BootCheck implements BootChecker<VmCheckPlan> {
  readonly #tools: BootCheckTools

  constructor(tools: BootCheckTools) {
    this.#tools = tools
  }

  planCheck(stored: readonly StoredComponent[], request: CheckRequest, place: CheckPlace): VmCheckPlan {
    const vms = stored
      .filter(({ component }) => component.writerId === this.#tools.writerId)
      .map((one) => ({
        component: one.component,
        vm: readStoredVm(one),
        configuration: new TextDecoder().decode(one.documents['configuration.xml']),
        documents: one.documents,
      }))
    return planVmCheck(vms, request, place, this.#tools.identities)
  }

  async runCheck(plan: VmCheckPlan, session: CheckSession): Promise<readonly CheckVerdict[]> {
    const { undo, emit, signal } = session
    const steps: UndoStep[] = []
    const verdicts: CheckVerdict[] = []
    try {
      const subnet = await this.#makeNetwork(plan, session, steps)
      for (const vm of plan.vms) {
        signal.throwIfAborted()
        const verdict = await new OneCheck(this.#tools, plan, vm, subnet, session, steps).run()
        emit({ event: verdict.passed ? 'CheckPassed' : 'CheckFailed', vm: vm.caption, detail: verdict.reason })
        verdicts.push(verdict)
      }
      return verdicts
    } finally {
      // Off before their disks go. What can not be removed now stays with the session, which tries again and tells.
      for (const step of steps.reverse()) await undo.run(step).catch(() => undefined)
    }
  }

  /** The subnet that the network has; or, where it could be given none, why. */
  async #makeNetwork(
    { network, subnet }: VmCheckPlan,
    { undo, emit }: CheckSession,
    steps: UndoStep[],
  ): Promise<string | { missing: string }> {
    const { hypervisor } = this.#tools
    steps.push(await undo.defer({ undo: 'remove-check-network', network }))
    emit({ event: 'Network', detail: `${network}, isolated` })
    if (subnet === undefined) {
      await hypervisor.createIsolatedNetwork(network)
      return { missing: 'the isolated network has no addresses' }
    }
    try {
      await hypervisor.createIsolatedNetwork(network, subnet)
      return subnet
    } catch (error) {
      if (error instanceof Failure && error.code !== 'HYPERVISOR_REFUSED') throw error
      await hypervisor.removeIsolatedNetwork(network)
      await hypervisor.createIsolatedNetwork(network)
      return { missing: `the isolated network can not be given addresses here: ${describeError(error)}` }
    }
  }
}

/** One VM: made, started, asked. */
class OneCheck {
  readonly #tools: BootCheckTools
  readonly #plan: VmCheckPlan
  readonly #vm: CheckedVm
  readonly #subnet: string | { missing: string }
  readonly #session: CheckSession
  readonly #steps: UndoStep[]
  #beganMs = 0

  constructor(
    tools: BootCheckTools,
    plan: VmCheckPlan,
    vm: CheckedVm,
    subnet: string | { missing: string },
    session: CheckSession,
    steps: UndoStep[],
  ) {
    this.#tools = tools
    this.#plan = plan
    this.#vm = vm
    this.#subnet = subnet
    this.#session = session
    this.#steps = steps
  }

  async run(): Promise<CheckVerdict> {
    const { component, caption, warnings } = this.#vm
    await this.#makeFiles()
    this.#beganMs = this.#tools.clock.monotonicMs()
    const evidence: Record<string, JsonObject[string]> = warnings.length === 0 ? {} : { warnings }
    let trouble: string | undefined
    try {
      await this.#start()
      await this.#awaitAgent()
      evidence.answeredMs = Math.round(this.#sinceMs())
      Object.assign(evidence, await this.#factsOfGuest())
      const probes = await this.#runProbes()
      evidence.probes = probes
      trouble = troubleOf(probes)
    } catch (error) {
      this.#session.signal.throwIfAborted()
      if (!isVerdict(error)) throw error
      trouble = describeError(error)
    }
    const screen = await this.#lookAtScreen()
    if (screen === undefined) evidence.screen = 'none that could be taken'
    const reason = trouble ?? `its agent answered after ${Math.round(Number(evidence.answeredMs) / 1000)} s`
    const verdict = { component, caption, passed: trouble === undefined, reason, evidence }
    return screen === undefined ? verdict : { ...verdict, screen }
  }

  #sinceMs(): number {
    return this.#tools.clock.monotonicMs() - this.#beganMs
  }

  #leftMs(): number {
    return Math.max(0, this.#plan.timeoutMs - this.#sinceMs())
  }

  async #makeFiles(): Promise<void> {
    const { uuid, name, tpmDirectory, files, overlays } = this.#vm
    const directories = tpmDirectory === undefined ? [] : [tpmDirectory]
    this.#steps.push(await this.#session.undo.defer({ undo: 'remove-check-vm', vm: uuid, name, directories }))
    for (const { path, content, owner } of files) {
      await mkdir(dirname(path), { recursive: true, mode: 0o711 })
      await writeFile(path, content, { flag: 'wx', mode: 0o600 })
      await chmod(path, owner.mode & 0o777)
      if (process.getuid?.() !== 0) continue
      await chown(path, owner.uid, owner.gid)
      if (tpmDirectory !== undefined && path.startsWith(tpmDirectory)) {
        for (let at = dirname(path); at.startsWith(tpmDirectory); at = dirname(at))
          await chown(at, owner.uid, owner.gid)
      }
    }
    const { socketPath } = this.#plan
    for (const { path, exportName, sizeBytes } of overlays) {
      const whole = Math.ceil(sizeBytes / sectorBytes) * sectorBytes
      await this.#tools.createOverlay(path, { socketPath, exportName, sizeBytes: whole })
    }
  }

  async #start(): Promise<void> {
    const { hypervisor, editor, clock } = this.#tools
    const { configuration, edit, uuid, caption, name } = this.#vm
    this.#session.emit({ event: 'Start', vm: caption, detail: `as ${name}` })
    const refused = (error: unknown) => {
      const away = error instanceof Failure && error.code === 'HYPERVISOR_UNREACHABLE'
      return away ? error : new NotUp(`it can not be started here: ${describeError(error)}`)
    }
    const limit = { clock, limitMs: Math.max(1000, this.#leftMs()), what: `the start of ${name}` }
    const starting = (async () => {
      await hypervisor.define(editor.edit(configuration, edit))
      await hypervisor.start(uuid)
    })()
    await withDeadline(starting, limit).catch((error: unknown) => {
      throw refused(error)
    })
  }

  async #awaitAgent(): Promise<void> {
    const { hypervisor, clock } = this.#tools
    const { uuid } = this.#vm
    const without = (await hypervisor.vm(uuid)).agent === 'none'
    const limitMs = without ? Math.min(lookMs, this.#plan.timeoutMs) : this.#plan.timeoutMs
    for (let last = ''; ; ) {
      const seconds = Math.round(this.#sinceMs() / 1000)
      const power = await hypervisor.power(uuid)
      if (power === 'off' || power === 'gone') throw new NotUp(`it turned itself off after ${seconds} s`)
      if (power === 'paused')
        throw new NotUp(`it stopped after ${seconds} s: a disk that could not be read, or a crash`)
      if (this.#sinceMs() >= limitMs) {
        if (without) throw new NotUp('it has no guest agent: it runs, but whether it came up nobody can tell')
        throw new NotUp(`agent silent after ${seconds} s${last === '' ? '' : ` (${last})`}`)
      }
      try {
        if (!without) return await withDeadline(hypervisor.guest(uuid).ping(), this.#limit('the guest agent'))
      } catch (error) {
        if (isAway(error)) throw error
        last = reasonOf(error)
      }
      await clock.sleep(Math.max(1, Math.min(agentPauseMs, limitMs - this.#sinceMs())), this.#session.signal)
    }
  }

  #limit(what: string) {
    return { clock: this.#tools.clock, limitMs: Math.max(1, this.#leftMs()), what }
  }

  /** Nice to have; none of it decides. */
  async #factsOfGuest(): Promise<JsonObject> {
    const guest = this.#tools.hypervisor.guest(this.#vm.uuid)
    const asked = await withDeadline(guest.osInfo(), this.#limit('the name of its system')).catch(() => undefined)
    return asked === undefined ? {} : { os: short(asked.name) }
  }

  async #runProbes(): Promise<ProbeResult[]> {
    const { hypervisor, clock } = this.#tools
    const { signal, emit } = this.#session
    const guest = hypervisor.guest(this.#vm.uuid)
    const results: ProbeResult[] = []
    for (const probe of this.#plan.probes) {
      const probed = { guest, clock, leftMs: () => this.#leftMs(), subnet: this.#subnet, signal }
      const limit = this.#limit('the probe')
      const result = await withDeadline(runProbe(probe, probed), limit).catch((error: unknown) => {
        signal.throwIfAborted()
        return { probe: probe.kind, passed: false, detail: describeError(error) }
      })
      const { passed, detail } = result
      emit({ event: 'Probe', vm: this.#vm.caption, detail: `${result.probe}: ${passed ? '' : 'NO: '}${short(detail)}` })
      results.push({ ...result, probe: short(result.probe), detail: short(detail) })
    }
    return results
  }

  async #lookAtScreen(): Promise<Uint8Array | undefined> {
    try {
      const picture = await this.#tools.hypervisor.screenshot(this.#vm.uuid)
      return picture === undefined ? undefined : await pngOf(picture, screenMaxBytes)
    } catch {
      return undefined // a verdict does not depend on its picture
    }
  }
}

const isAway = (error: unknown): boolean => error instanceof Failure && error.code === 'HYPERVISOR_UNREACHABLE'

/** Whether it says something about the guest, and not about this host. */
const isVerdict = (error: unknown): boolean => error instanceof NotUp || (error instanceof Failure && !isAway(error))

const short = (text: string): string => text.slice(0, 500)

/** The innermost reason: that the agent does not answer is said already. */
const reasonOf = (error: unknown): string =>
  short(
    error instanceof Failure && typeof error.context.reason === 'string' ? error.context.reason : describeError(error),
  )

function troubleOf(probes: readonly ProbeResult[]): string | undefined {
  const failed = probes.filter(({ passed }) => !passed)
  if (failed.length === 0) return undefined
  return failed.map(({ probe, detail }) => `probe ${probe}: ${detail}`).join('; ')
}

/** The undo step `remove-check-vm`: idempotent; touches no VM but one that has the name of a check. */
export async function removeCheckVm(
  hypervisor: Hypervisor,
  { vm, name, directories }: { vm: string; name: string; directories: readonly string[] },
): Promise<void> {
  if ((await hypervisor.power(vm)) !== 'gone') {
    const { name: found } = await hypervisor.vm(vm)
    if (found !== name || !checkName.test(found)) throw new Error(`${vm} is called ${found}, which no check made`)
    await hypervisor.turnOff(vm)
    await hypervisor.undefine(vm, { discardSaved: true, discardFirmware: true })
  }
  for (const directory of directories.filter((one) => basename(one) === vm)) {
    await rm(directory, { recursive: true, force: true })
  }
}
