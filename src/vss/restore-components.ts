/**
 * RestoreComponents: the requester's side of one restore. There is no abort: everything is verified before preRestore
 * (law 9), and what the writer sets aside there comes back when postRestore does not succeed.
 * Source: "Overview of Restore Initialization" to "Overview of Restore Clean Up and Termination".
 */
import { settleAll } from '../base/async.ts'
import type { Cleanup } from '../base/cleanup.ts'
import { describeError } from '../base/failure.ts'
import { failure } from '../errors.ts'
import { type BackedUpComponent, type ComponentRef, fullPath, sameComponent } from './components.ts'
import { type SessionCall, type SessionState, transition } from './session.ts'
import type { EmitEvent, FileRestoreStatus, Veto, WriterEvent } from './vocabulary.ts'
import { describeVetoes } from './windows.ts'
import type { RestoreSession, Writer } from './writer.ts'

export interface RestoreService {
  readonly writers: readonly Writer[]
  readonly undo: Cleanup
  readonly emit: EmitEvent
}

export class RestoreComponents implements AsyncDisposable {
  readonly #service: RestoreService
  readonly #stored: readonly BackedUpComponent[]
  #state: SessionState = 'new'
  #selected: BackedUpComponent[] = []
  #status = new Map<string, FileRestoreStatus>()

  private constructor(service: RestoreService, stored: readonly BackedUpComponent[]) {
    this.#service = service
    this.#stored = stored
  }

  /** `stored`: the components of the backup components document of the recovery point. */
  static initializeForRestore(service: RestoreService, stored: readonly BackedUpComponent[]): RestoreComponents {
    const components = new RestoreComponents(service, stored)
    components.#call('initializeForRestore')
    return components
  }

  get selected(): readonly BackedUpComponent[] {
    return this.#selected
  }

  setSelectedForRestore(ref: ComponentRef): void {
    this.#call('setSelectedForRestore')
    const found = this.#stored.find(({ component }) => sameComponent(component, ref))
    if (found === undefined)
      throw failure('VSS_BAD_STATE', { call: `setSelectedForRestore ${fullPath(ref)}`, state: 'not in the document' })
    if (!this.#selected.includes(found)) this.#selected.push(found)
  }

  /** PreRestore: from here on the writer's former data are set aside. */
  async preRestore(): Promise<void> {
    this.#call('preRestore')
    await this.#tell('PreRestore', (writer, session) => writer.onPreRestore(session))
  }

  setFileRestoreStatus(ref: ComponentRef, status: FileRestoreStatus): void {
    this.#call('setFileRestoreStatus')
    this.#status.set(ref.writerId + fullPath(ref), status)
  }

  /** PostRestore: sent whatever the statuses are; any but `all` ends in the writer's veto. */
  async postRestore(): Promise<void> {
    this.#call('postRestore')
    await this.#tell('PostRestore', (writer, session) => {
      const restored = this.#of(writer).map(({ component, metadata }) => {
        return {
          component,
          metadata,
          status: this.#status.get(component.writerId + fullPath(component)) ?? ('undefined' as const),
        }
      })
      return writer.onPostRestore(session, restored)
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#call('release')
  }

  #of(writer: Writer): BackedUpComponent[] {
    return this.#selected.filter(({ component }) => component.writerId === writer.id)
  }

  async #tell(
    event: WriterEvent,
    deliver: (writer: Writer, session: RestoreSession) => Promise<readonly Veto[]>,
  ): Promise<void> {
    const { writers, undo, emit } = this.#service
    const concerned = writers.filter((writer) => this.#of(writer).length > 0)
    const answers = await settleAll(concerned, (writer) => {
      emit({ event, writer: writer.name })
      return deliver(writer, { components: this.#of(writer).map(({ component }) => component), undo, emit })
    })
    const reasons = answers.flatMap(({ item, outcome }) =>
      outcome.ok ? describeVetoes(outcome.value) : [`${item.name}: ${describeError(outcome.error)}`],
    )
    const causes = answers.flatMap(({ outcome }) => (outcome.ok ? [] : [outcome.error]))
    if (reasons.length > 0) throw failure('VSS_WRITER_VETO', { event, done: 'restored', reasons }, causes[0])
  }

  #call(call: SessionCall): void {
    this.#state = transition(this.#state, call)
  }
}
