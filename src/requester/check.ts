/**
 * A boot check from the side of the backup application: serves the disks of a recovery point out of the repository from
 * this very process, has them started and asked (BootChecker), and keeps the verdicts on the point. Nothing is restored,
 * nothing that runs is touched, and no lock of a VM is taken: a check may go on beside a backup of the same VM.
 */
import { randomBytes } from 'node:crypto'
import { chown } from 'node:fs/promises'
import { join } from 'node:path'
import type { Clock } from '../base/clock.ts'
import { describeError } from '../base/failure.ts'
import { makeDirectory } from '../base/make-directory.ts'
import { serveDisks } from '../disk/nbd-server.ts'
import { failure } from '../errors.ts'
import type { RecoveryPoint, Repository } from '../repository/repository.ts'
import type { BootChecker, CheckPlan, CheckRequest, CheckVerdict } from '../vss/boot-check.ts'
import type { SessionEvent } from '../vss/vocabulary.ts'
import { keepingResult, RequesterSession, type SessionOptions } from './session.ts'
import { findStored, readStored } from './stored-components.ts'

export interface CheckEnvironment<Plan extends CheckPlan> {
  readonly repository: Repository
  readonly checker: BootChecker<Plan>
  /** Where a check has its directory while it runs; short, because the path of a socket is. */
  readonly directory: string
  /** As whom the VMs run, who have to connect to the server of their disks; undefined when that is who we are. */
  readonly vmOwner?: { readonly uid: number; readonly gid: number }
  readonly clock: Clock
  readonly session: SessionOptions
  readonly onEvent?: (event: SessionEvent) => void
}

export interface CheckedComponent {
  readonly name: string
  readonly uuid: string
  readonly passed: boolean
  readonly reason: string
  readonly evidence: CheckVerdict['evidence']
  /** Of the check that was kept on the point. */
  readonly check: string
  readonly hasScreen: boolean
}

export interface CheckResult {
  readonly recoveryPoint: string
  readonly passed: boolean
  readonly vms: readonly CheckedComponent[]
  readonly durationMs: number
  /** What is left to clean up; empty unless the exit code is 3. */
  readonly cleanup: readonly string[]
}

/** What a check of these components of the point would do. Touches nothing. */
export async function planCheck<Plan extends CheckPlan>(
  point: RecoveryPoint,
  names: readonly string[],
  request: CheckRequest,
  { checker, directory: parent }: Pick<CheckEnvironment<Plan>, 'checker' | 'directory'>,
): Promise<{ plan: Plan; directory: string; socketPath: string }> {
  const token = randomBytes(4).toString('hex')
  const directory = join(parent, token)
  const socketPath = join(directory, 'disks')
  const stored = []
  for (const one of await findStored(point, names)) stored.push(await readStored(point, one))
  return { plan: checker.planCheck(stored, request, { token, directory, socketPath }), directory, socketPath }
}

/** VSS_WRITER_VETO when it is not possible; what does not come up is a verdict, not an error. */
export async function check<Plan extends CheckPlan>(
  point: RecoveryPoint,
  names: readonly string[],
  request: CheckRequest,
  environment: CheckEnvironment<Plan>,
): Promise<CheckResult> {
  const { clock, repository } = environment
  const beganMs = clock.monotonicMs()
  const planned = await planCheck(point, names, request, environment)
  const { obstacles } = planned.plan
  if (obstacles.length > 0)
    throw failure('VSS_WRITER_VETO', { event: 'check', done: 'checked', reasons: [...obstacles] })
  return keepingResult<Omit<CheckResult, 'cleanup'>>(async (made) => {
    await using session = await RequesterSession.open(environment.session)
    if (environment.onEvent !== undefined) session.events.listen(environment.onEvent)
    const { verdicts, failures } = await runServed(point, planned, environment, session)
    const vms: CheckedComponent[] = []
    for (const verdict of verdicts) vms.push(await keep(point.id, withFailures(verdict, failures), repository))
    const passed = vms.every((vm) => vm.passed)
    made.result = { recoveryPoint: point.id, passed, vms, durationMs: Math.round(clock.monotonicMs() - beganMs) }
  })
}

interface ReadFailure {
  readonly component: string
  readonly text: string
}

/** Failed reads that are told; a guest may try again for ever. */
const mostFailures = 16

async function runServed<Plan extends CheckPlan>(
  point: RecoveryPoint,
  { plan, directory, socketPath }: { plan: Plan; directory: string; socketPath: string },
  { checker, vmOwner, directory: parent }: CheckEnvironment<Plan>,
  session: RequesterSession,
): Promise<{ verdicts: readonly CheckVerdict[]; failures: readonly ReadFailure[] }> {
  const { undo, events, signal } = session
  await session.guarded()
  await undo.defer({ undo: 'remove-check-directory', path: directory })
  // QEMU, which may run as another user, goes through these to its overlays and to the socket.
  for (const one of [parent, directory]) await makeDirectory(one, 0o711)
  await using opened = new AsyncDisposableStack()
  const disks = []
  for (const { name, component, stream } of plan.exports) {
    disks.push({ name, source: opened.use(await point.openStream(`${component.name}/${stream}`)) })
  }
  const failures: ReadFailure[] = []
  opened.use(
    await serveDisks(disks, {
      socketPath,
      onFailure: ({ name: served, offset, error }) => {
        const of = plan.exports.find(({ name }) => name === served)
        if (of === undefined || failures.length >= mostFailures) return
        const text = `${of.stream} at offset ${offset}: ${describeError(error)}`
        failures.push({ component: of.component.name, text: text.slice(0, 1000) })
      },
    }),
  )
  if (vmOwner !== undefined && process.getuid?.() === 0) await chown(socketPath, vmOwner.uid, vmOwner.gid)
  return { verdicts: await checker.runCheck(plan, { undo, emit: events.emit, signal }), failures }
}

/** A disk that could not be read is no passed check, whatever the guest makes of it. */
function withFailures(verdict: CheckVerdict, failures: readonly ReadFailure[]): CheckVerdict {
  const own = failures.filter(({ component }) => component === verdict.component.name).map(({ text }) => text)
  if (own.length === 0) return verdict
  const said = verdict.passed ? 'it came up' : verdict.reason
  const reason = `${said}; the recovery point could not be read: ${own[0]}`
  return { ...verdict, passed: false, reason, evidence: { ...verdict.evidence, unreadable: own } }
}

const mostReasonCharacters = 2000

async function keep(pointId: string, verdict: CheckVerdict, repository: Repository): Promise<CheckedComponent> {
  const { component, caption, passed, evidence, screen } = verdict
  const reason = verdict.reason.slice(0, mostReasonCharacters)
  const vm = { name: caption, uuid: component.name }
  const id = await repository.addCheck(pointId, {
    vm,
    passed,
    reason,
    evidence,
    ...(screen === undefined ? {} : { screen }),
  })
  return { ...vm, passed, reason, evidence, check: id, hasScreen: screen !== undefined }
}
