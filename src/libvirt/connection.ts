/**
 * A connection to libvirt: calls, events, and the daemon's restarts (libvirt docs, "Libvirt RPC infrastructure").
 * A daemon reads at most five unanswered calls from one socket (max_client_requests), so that one slow call could
 * delay a thaw: calls are spread over several sockets ("lanes") of four calls each. Lanes are opened on demand and
 * again after the daemon has gone; a call that may have changed something is never sent twice.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { describeError } from '../base/failure.ts'
import { failure } from '../errors.ts'
import { type EventKind, type LibvirtEvents, readEvent, registration } from './events.ts'
import { isFailure } from './libvirt-errors.ts'
import { type LibvirtAddress, parseLibvirtUri, privateUri, systemUri } from './libvirt-uri.ts'
import { eventNumbers, type Procedure, procedures } from './protocol.ts'
import { RpcSocket, wasNeverSent } from './rpc-socket.ts'
import { type XdrReader, XdrWriter } from './rpc-wire.ts'

const callsPerLane = 4
const mostLanes = 8
const defaultDeadlineMs = 60_000
/** How long a daemon that has gone is waited for. */
const restartPatienceMs = 5_000
const authentication = { none: 0, polkit: 2 }

type Handler<Kind extends EventKind> = (event: LibvirtEvents[Kind]) => void

export async function connectLibvirt(uri: string): Promise<LibvirtConnection> {
  const connection = new LibvirtConnection(uri, parseLibvirtUri(uri))
  await connection.open()
  return connection
}

/** The system's libvirt if it answers, else Umbra's own private one. */
export async function defaultUri(): Promise<string> {
  const refusals: string[] = []
  for (const uri of [systemUri, privateUri]) {
    try {
      await using connection = await connectLibvirt(uri)
      return connection.uri
    } catch (error) {
      refusals.push(describeError(error))
    }
  }
  const reason = `${refusals.join('; ')}; start libvirtd, or a private one with scripts/private-libvirtd start`
  throw failure('HYPERVISOR_UNREACHABLE', { uri: systemUri, reason })
}

export class LibvirtConnection implements AsyncDisposable {
  readonly uri: string
  readonly #address: LibvirtAddress
  readonly #handlers = new Map<EventKind, Set<(event: never) => void>>()
  #lanes: RpcSocket[] = []
  #eventLane: RpcSocket | undefined
  #opening: Promise<RpcSocket> | undefined
  #everOpened = false
  #givenBack = false

  constructor(uri: string, address: LibvirtAddress) {
    this.uri = uri
    this.#address = address
  }

  async open(): Promise<void> {
    await this.#openLane()
    this.#everOpened = true
  }

  async call(
    procedure: Procedure,
    args: XdrWriter = new XdrWriter(),
    options: { readonly deadlineMs?: number; readonly vm?: string | undefined } = {},
  ): Promise<XdrReader> {
    const bytes = args.bytes()
    const callOptions = { deadlineMs: options.deadlineMs ?? defaultDeadlineMs, vm: options.vm }
    try {
      return await (await this.#send(procedure, bytes, callOptions)).answer
    } catch (error) {
      const safeAgain = procedure.repeatable || wasNeverSent(error)
      if (!isFailure(error, 'HYPERVISOR_UNREACHABLE') || !safeAgain || this.#givenBack) throw error
      // On a new lane: the others may be just as dead and not know it yet.
      const lane = await this.#openLane()
      return await lane.call(procedure, bytes, callOptions)
    }
  }

  /** A call that answers with bytes as a stream, at most `maxBytes`; it changes nothing. */
  async download(
    procedure: Procedure,
    args: XdrWriter,
    options: { readonly deadlineMs: number; readonly maxBytes: number; readonly vm?: string | undefined },
  ): Promise<Buffer> {
    const lane = this.#lanes.find(({ isOpen }) => isOpen) ?? (await this.#openLane())
    return await lane.download(procedure, args.bytes(), { ...options, vm: options.vm })
  }

  /** Calls the handler for each event from now on, until the function in the answer is called. Events are hints: a
   * daemon that restarts loses some, so whoever waits for one also looks by itself from time to time. */
  async on<Kind extends EventKind>(kind: Kind, handler: Handler<Kind>): Promise<() => void> {
    const known = this.#handlers.get(kind)
    const handlers: Set<(event: never) => void> = known ?? new Set()
    handlers.add(handler)
    this.#handlers.set(kind, handlers)
    if (this.#eventLane?.isOpen !== true) await this.#openLane()
    else if (known === undefined) await this.#register(this.#eventLane, kind)
    return () => handlers.delete(handler)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#givenBack = true
    await this.#opening?.catch(() => undefined)
    await Promise.all(this.#lanes.map((lane) => lane[Symbol.asyncDispose]()))
  }

  /** Sends on a lane with room. The answer is wrapped, so that choosing a lane and sending stay one step. */
  async #send(procedure: Procedure, args: Buffer, options: { deadlineMs: number; vm: string | undefined }) {
    for (;;) {
      this.#lanes = this.#lanes.filter((lane) => lane.isOpen)
      const emptiest = this.#lanes.toSorted((a, b) => a.inFlight - b.inFlight)[0]
      if (emptiest !== undefined && (emptiest.inFlight < callsPerLane || this.#lanes.length >= mostLanes)) {
        return { answer: emptiest.call(procedure, args, options) }
      }
      await this.#openLane()
    }
  }

  #openLane(): Promise<RpcSocket> {
    if (this.#givenBack) {
      return Promise.reject(
        failure('HYPERVISOR_UNREACHABLE', { uri: this.uri, reason: 'the connection was given back' }),
      )
    }
    this.#opening ??= this.#openLaneNow().finally(() => {
      this.#opening = undefined
    })
    return this.#opening
  }

  async #openLaneNow(): Promise<RpcSocket> {
    const lane = await this.#connectPatiently()
    try {
      await authenticate(lane, this.uri)
      const args = new XdrWriter().optionalString(this.#address.driverUri).u32(0)
      await lane.call(procedures.connectOpen, args.bytes(), { deadlineMs: defaultDeadlineMs })
      if (this.#eventLane?.isOpen !== true) {
        this.#eventLane = lane
        for (const kind of this.#handlers.keys()) await this.#register(lane, kind)
      }
    } catch (error) {
      await lane[Symbol.asyncDispose]()
      throw error
    }
    this.#lanes.push(lane)
    return lane
  }

  /** A daemon that was there once may be restarting; one that never answered is not waited for. */
  async #connectPatiently(): Promise<RpcSocket> {
    const giveUpAt = performance.now() + (this.#everOpened ? restartPatienceMs : 0)
    for (;;) {
      const refusals: unknown[] = []
      for (const path of this.#address.sockets) {
        try {
          return await RpcSocket.connect(path, this.uri, (procedure, payload) => this.#dispatch(procedure, payload))
        } catch (error) {
          refusals.push(error)
        }
      }
      if (performance.now() >= giveUpAt || this.#givenBack) {
        const reason = refusals.map(describeError).join('; ')
        throw failure('HYPERVISOR_UNREACHABLE', { uri: this.uri, reason }, refusals[0])
      }
      await sleep(100)
    }
  }

  async #register(lane: RpcSocket, kind: EventKind): Promise<void> {
    await lane.call(procedures.eventRegister, registration(kind).bytes(), { deadlineMs: defaultDeadlineMs })
  }

  #dispatch(procedure: number, payload: XdrReader): void {
    for (const [kind, handlers] of this.#handlers) {
      if (eventNumbers[kind].procedure !== procedure) continue
      const event = readEvent(kind, payload)
      for (const handler of handlers) handler(event as never)
    }
  }
}

async function authenticate(lane: RpcSocket, uri: string): Promise<void> {
  const answer = await lane.call(procedures.authList, Buffer.alloc(0), { deadlineMs: defaultDeadlineMs })
  const offered = answer.list(4, (reader) => reader.u32())
  if (offered.length === 0 || offered.includes(authentication.none)) return
  if (offered.includes(authentication.polkit)) {
    await lane.call(procedures.authPolkit, Buffer.alloc(0), { deadlineMs: defaultDeadlineMs })
    return
  }
  throw failure('HYPERVISOR_UNREACHABLE', { uri, reason: 'it asks for a password (SASL)' })
}
