/**
 * One NBD connection over a unix socket: several requests in flight, payload straight to and from the callers' buffers.
 * What ends it (a lost socket, a broken protocol, no progress, the caller's signal, disposal) rejects all in flight.
 * Follows doc/proto.md of the NBD project: "Transmission phase", and Node's net.Socket `onread`.
 */
import net from 'node:net'
import { Failure } from '../base/failure.ts'
import { failure } from '../errors.ts'
import { type NbdExport, negotiate } from './nbd-handshake.ts'
import { PendingReply, ReplyReader } from './nbd-reply-reader.ts'
import { type CommandType, commandType, encodeRequest, protocolFailure } from './nbd-wire.ts'

export interface NbdConnectionOptions {
  readonly socketPath: string
  readonly exportName: string
  /** A metadata context besides base:allocation; the server must know it. */
  readonly context?: string | undefined
  /** How long nothing may move while requests are in flight. */
  readonly deadlineMs: number
  readonly signal?: AbortSignal | undefined
}

interface Flight {
  readonly reply: PendingReply
  readonly resolve: (reply: PendingReply) => void
  readonly reject: (reason: unknown) => void
}

const scratchBytes = 64 * 1024
const goodbyeMs = 1000

export class NbdConnection implements AsyncDisposable {
  readonly #options: NbdConnectionOptions
  readonly #socket: net.Socket
  readonly #flights = new Map<number, Flight>()
  readonly #scratch = Buffer.allocUnsafeSlow(scratchBytes)
  readonly #closed = Promise.withResolvers<void>()
  readonly #onAbort = () => this.#end(this.#options.signal?.reason)
  #lastCookie = 0
  #watchdog: NodeJS.Timeout | undefined
  #death: { readonly reason: unknown } | undefined
  /** Takes what arrives: first the negotiation, then the reader of replies. */
  #receive: (bytes: Uint8Array) => void = () => undefined
  #replies: ReplyReader | undefined

  private constructor(options: NbdConnectionOptions) {
    this.#options = options
    this.#socket = net.connect({
      path: options.socketPath,
      onread: { buffer: () => this.#destination(), callback: (count, bytes) => this.#onBytes(count, bytes) },
    })
    this.#socket.on('error', (error) => this.#end(this.#lost(error.message, error)))
    this.#socket.on('end', () => this.#end(this.#lost('closed by the server')))
    this.#socket.on('close', () => {
      this.#end(this.#lost('closed'))
      this.#closed.resolve()
    })
    options.signal?.addEventListener('abort', this.#onAbort, { once: true })
  }

  /** Connects and negotiates; disposal says goodbye to the server and closes the socket. */
  static async open(options: NbdConnectionOptions): Promise<{ connection: NbdConnection; target: NbdExport }> {
    options.signal?.throwIfAborted()
    const connection = new NbdConnection(options)
    try {
      return { connection, target: await connection.#negotiate() }
    } catch (error) {
      connection.#end(error)
      throw error
    }
  }

  get inFlight(): number {
    return this.#flights.size
  }

  /**
   * Resolves with the server's reply, which may be a refusal (`error`). `bytes` is the target of a read, which must
   * not be transferred elsewhere meanwhile, or the payload of a write, which must not change meanwhile.
   */
  request(command: CommandType, offset: number, length: number, bytes?: Uint8Array): Promise<PendingReply> {
    if (this.#death !== undefined) return Promise.reject(this.#death.reason)
    const cookie = ++this.#lastCookie
    const reply = new PendingReply(command, offset, command === commandType.read ? bytes : undefined)
    const { promise, resolve, reject } = Promise.withResolvers<PendingReply>()
    this.#flights.set(cookie, { reply, resolve, reject })
    if (this.#flights.size === 1) this.#startWatchdog(`request to ${this.#options.socketPath}`)
    const header = encodeRequest({ command, cookie, offset, length })
    if (command === commandType.write && bytes !== undefined) {
      this.#socket.cork()
      this.#socket.write(header)
      this.#socket.write(bytes, () => this.#watchdog?.refresh())
      this.#socket.uncork()
    } else {
      this.#socket.write(header)
    }
    return promise
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#death === undefined && this.#replies !== undefined && this.#flights.size === 0) {
      this.#death = { reason: this.#lost('closed by us') }
      this.#socket.end(encodeRequest({ command: commandType.disconnect, cookie: 0, offset: 0, length: 0 }))
      const impatience = setTimeout(() => this.#socket.destroy(), goodbyeMs)
      await this.#closed.promise
      clearTimeout(impatience)
    }
    this.#end(this.#lost('closed by us'))
    await this.#closed.promise
  }

  /** Runs the negotiation over the socket, under the deadline as a whole. */
  async #negotiate(): Promise<NbdExport> {
    const { promise, resolve, reject } = Promise.withResolvers<NbdExport>()
    this.#flights.set(0, { reply: new PendingReply(commandType.disconnect, 0), resolve: () => undefined, reject })
    this.#startWatchdog(`connecting to ${this.#options.socketPath}`)
    const { exportName, context } = this.#options
    const send = (bytes: Buffer) => void this.#socket.write(bytes)
    const steps = negotiate({ address: this.#address, exportName, context, send })
    let arrived = Buffer.alloc(0)
    let step = steps.next()
    this.#receive = (bytes) => {
      arrived = Buffer.concat([arrived, bytes])
      while (!step.done && arrived.length >= step.value) {
        const part = arrived.subarray(0, step.value)
        arrived = arrived.subarray(step.value)
        step = steps.next(part)
      }
      if (!step.done) return
      if (arrived.length > 0) throw protocolFailure(this.#address, 'it speaks before it is asked')
      this.#beginTransmission(step.value)
      resolve(step.value)
    }
    return await promise
  }

  #beginTransmission({ structuredReplies, allocationContext, namedContext }: NbdExport): void {
    this.#flights.clear()
    this.#stopWatchdogWhenIdle()
    const replies = new ReplyReader({
      address: this.#address,
      structuredReplies,
      contexts: [allocationContext, namedContext].filter((number) => number !== undefined),
      find: (cookie) => this.#flights.get(cookie)?.reply,
      finish: (cookie, reply) => this.#finish(cookie, reply),
    })
    this.#replies = replies
    this.#receive = (bytes) => replies.feed(bytes)
  }

  #finish(cookie: number, reply: PendingReply): void {
    const flight = this.#flights.get(cookie)
    this.#flights.delete(cookie)
    this.#stopWatchdogWhenIdle()
    flight?.resolve(reply)
  }

  /** Node reads from the socket into this next. */
  #destination(): Uint8Array {
    return this.#replies === undefined || this.#death !== undefined ? this.#scratch : this.#replies.destination
  }

  #onBytes(count: number, bytes: Uint8Array): boolean {
    if (this.#death !== undefined) return true
    this.#watchdog?.refresh()
    try {
      if (bytes === this.#replies?.destination) this.#replies.advance(count)
      else this.#receive(bytes.subarray(0, count))
    } catch (error) {
      this.#end(error)
    }
    return true
  }

  #startWatchdog(what: string): void {
    const { deadlineMs } = this.#options
    this.#watchdog = setTimeout(() => {
      this.#end(failure('DEADLINE_EXCEEDED', { what, limitMs: deadlineMs }))
    }, deadlineMs)
  }

  #stopWatchdogWhenIdle(): void {
    if (this.#flights.size > 0) return
    clearTimeout(this.#watchdog)
    this.#watchdog = undefined
  }

  /** The end, once: nothing is written to a caller's buffer after its request was rejected. */
  #end(reason: unknown): void {
    this.#options.signal?.removeEventListener('abort', this.#onAbort)
    this.#socket.destroy()
    this.#death ??= { reason }
    const flights = [...this.#flights.values()]
    this.#flights.clear()
    this.#stopWatchdogWhenIdle()
    for (const { reject } of flights) reject(this.#death.reason)
  }

  get #address(): string {
    return this.#options.socketPath
  }

  #lost(reason: string, cause?: unknown): Failure {
    const code = this.#replies === undefined ? 'NBD_CONNECT_FAILED' : 'NBD_CONNECTION_LOST'
    return failure(code, { address: this.#address, reason }, cause)
  }
}

/** True when the server or the way to it went away, as opposed to a deadline, a cancellation or a broken protocol. */
export function isConnectionLoss(error: unknown): boolean {
  return error instanceof Failure && error.code === 'NBD_CONNECTION_LOST'
}
