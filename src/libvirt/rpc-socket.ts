/**
 * One socket to a libvirt daemon: calls with serials and deadlines, events, keepalive (libvirt docs, "Libvirt RPC
 * infrastructure"). Answers may come in any order. A call that ran into its deadline still occupies the daemon: it
 * counts as in flight until its late answer has come, which is then dropped.
 */
import { connect, type Socket } from 'node:net'
import { Failure } from '../base/failure.ts'
import { failure } from '../errors.ts'
import { failureOf, isFailure, readVirError } from './libvirt-errors.ts'
import { keepaliveProcedures, type Procedure, programs, protocolVersion } from './protocol.ts'
import { brokenProtocol, encodeMessage, MessageSplitter, messageTypes, type RpcMessage, XdrReader } from './rpc-wire.ts'

export interface CallOptions {
  readonly deadlineMs: number
  /** How the caller calls the VM, for failures. */
  readonly vm?: string | undefined
}

/** True for a call that the daemon can not have seen: to make it again is safe, whatever it does. */
export const wasNeverSent = (error: unknown): boolean => error instanceof Failure && error.context.neverSent === true

/** The data of a stream, and where it goes; without an end it is only waited for. */
interface Download {
  readonly parts: Buffer[]
  bytes: number
  readonly maxBytes: number
  readonly end?: { readonly resolve: (data: Buffer) => void; readonly reject: (error: unknown) => void }
}

/** VIR_NET_CONTINUE. */
const streamGoesOn = 2

interface PendingCall {
  readonly resolve: (answer: XdrReader) => void
  readonly reject: (error: unknown) => void
  readonly procedure: Procedure
  readonly vm: string | undefined
}

export class RpcSocket implements AsyncDisposable {
  readonly #socket: Socket
  readonly #uri: string
  readonly #onEvent: (procedure: number, payload: XdrReader) => void
  readonly #splitter = new MessageSplitter()
  readonly #pending = new Map<number, PendingCall>()
  readonly #abandoned = new Set<number>()
  /** Streams of bytes to us, by the serial of the call that opened them. */
  readonly #downloads = new Map<number, Download>()
  #lastSerial = 0
  #closedBecause: unknown

  private constructor(socket: Socket, uri: string, onEvent: (procedure: number, payload: XdrReader) => void) {
    this.#socket = socket
    this.#uri = uri
    this.#onEvent = onEvent
    socket.on('data', (chunk: Buffer) => this.#receive(chunk))
    socket.on('error', (error) => this.#close(this.#unreachable(error.message, error)))
    socket.on('close', () => this.#close(this.#unreachable('the connection was closed')))
  }

  /** Connects; rejects with what the operating system says. */
  static async connect(
    path: string,
    uri: string,
    onEvent: (procedure: number, payload: XdrReader) => void,
  ): Promise<RpcSocket> {
    const socket = connect(path)
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve)
      socket.once('error', reject)
    })
    socket.removeAllListeners('error')
    return new RpcSocket(socket, uri, onEvent)
  }

  get isOpen(): boolean {
    return this.#closedBecause === undefined
  }

  /** Calls that the daemon has not answered yet. */
  get inFlight(): number {
    return this.#pending.size + this.#abandoned.size
  }

  call(procedure: Procedure, args: Buffer, options: CallOptions): Promise<XdrReader> {
    if (!this.isOpen) return Promise.reject(this.#closedBecause)
    const serial = this.#nextSerial()
    const { program, number } = procedure
    const call = { program, version: protocolVersion, procedure: number, serial, status: 0, payload: args }
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#pending.delete(serial)
        this.#abandoned.add(serial)
        const what = options.vm === undefined ? procedure.name : `${procedure.name} of ${options.vm}`
        reject(failure('DEADLINE_EXCEEDED', { what, limitMs: options.deadlineMs }))
      }, options.deadlineMs)
      this.#pending.set(serial, {
        procedure,
        vm: options.vm,
        resolve: (answer) => {
          clearTimeout(timer)
          resolve(answer)
        },
        reject: (error) => {
          clearTimeout(timer)
          reject(error)
        },
      })
      this.#socket.write(encodeMessage({ ...call, type: messageTypes.call }), (error) => {
        if (error !== null && error !== undefined) this.#notSent(serial, error)
      })
    })
  }

  /**
   * A call whose answer is followed by a stream of bytes to us; all of them, at most `maxBytes`. What comes after the
   * deadline is dropped.
   */
  async download(procedure: Procedure, args: Buffer, options: CallOptions & { maxBytes: number }): Promise<Buffer> {
    const { promise, resolve, reject } = Promise.withResolvers<Buffer>()
    promise.catch(() => undefined) // the call itself may fail first
    const answer = this.call(procedure, args, options)
    const serial = this.#lastSerial
    const download = { parts: [], bytes: 0, maxBytes: options.maxBytes }
    this.#downloads.set(serial, { ...download, end: { resolve, reject } })
    const timer = setTimeout(() => {
      reject(failure('DEADLINE_EXCEEDED', { what: procedure.name, limitMs: options.deadlineMs }))
      this.#endStream(serial, procedure, 1)
      this.#downloads.set(serial, download)
    }, options.deadlineMs)
    try {
      await answer
      return await promise
    } catch (error) {
      if (!isFailure(error, 'DEADLINE_EXCEEDED')) this.#downloads.delete(serial)
      throw error
    } finally {
      clearTimeout(timer)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#close(this.#unreachable('the connection was given back'))
    await Promise.resolve()
  }

  /** The daemon had closed the connection before it could have read the whole message. */
  #notSent(serial: number, error: Error): void {
    const call = this.#pending.get(serial)
    this.#pending.delete(serial)
    call?.reject(failure('HYPERVISOR_UNREACHABLE', { uri: this.#uri, reason: error.message, neverSent: true }, error))
  }

  #nextSerial(): number {
    this.#lastSerial = (this.#lastSerial + 1) % 0x1_0000_0000
    return this.#lastSerial
  }

  #unreachable(reason: string, cause?: unknown) {
    return failure('HYPERVISOR_UNREACHABLE', { uri: this.#uri, reason }, cause)
  }

  #close(because: unknown): void {
    if (!this.isOpen) return
    this.#closedBecause = because
    this.#socket.destroy()
    const pending = [...this.#pending.values()]
    this.#pending.clear()
    this.#abandoned.clear()
    for (const call of pending) call.reject(because)
    const downloads = [...this.#downloads.values()]
    this.#downloads.clear()
    for (const { end } of downloads) end?.reject(because)
  }

  #receive(chunk: Buffer): void {
    try {
      for (const message of this.#splitter.push(chunk)) this.#handle(message)
    } catch (error) {
      this.#close(error)
    }
  }

  #handle(message: RpcMessage): void {
    if (message.program === programs.keepalive) {
      if (message.procedure === keepaliveProcedures.ping) this.#answerPing(message)
    } else if (message.type === messageTypes.event) {
      this.#onEvent(message.procedure, new XdrReader(message.payload))
    } else if (message.type === messageTypes.stream) {
      this.#streamed(message)
    } else if (message.type === messageTypes.reply) {
      this.#settle(message)
    } else {
      throw brokenProtocol(`a message of type ${message.type}`)
    }
  }

  #answerPing(ping: RpcMessage): void {
    this.#socket.write(encodeMessage({ ...ping, procedure: keepaliveProcedures.pong, payload: Buffer.alloc(0) }))
  }

  /** Data come as parts that go on (status 2), the last one empty; then each side says that it has ended (0, 1). */
  #streamed({ serial, status, payload, procedure, program }: RpcMessage): void {
    const download = this.#downloads.get(serial)
    if (download === undefined) throw brokenProtocol(`a stream that was never asked for (${serial})`)
    const { parts, maxBytes, end } = download
    if (status !== streamGoesOn) {
      this.#downloads.delete(serial)
      if (status === 0) end?.resolve(Buffer.concat(parts))
      else end?.reject(failureOf(readVirError(new XdrReader(payload)), 'the stream', undefined))
      return
    }
    if (end === undefined) return
    if (payload.length === 0) {
      this.#endStream(serial, { program, number: procedure }, 0)
      end.resolve(Buffer.concat(parts))
      this.#downloads.set(serial, { parts: [], bytes: 0, maxBytes })
      return
    }
    download.bytes += payload.length
    if (download.bytes > maxBytes) throw brokenProtocol(`a stream of more than ${maxBytes} bytes`)
    parts.push(Buffer.from(payload)) // which may be a view of much more
  }

  #endStream(serial: number, { program, number }: Pick<Procedure, 'program' | 'number'>, status: 0 | 1): void {
    const message = { program, version: protocolVersion, procedure: number, serial, status, payload: Buffer.alloc(0) }
    this.#socket.write(encodeMessage({ ...message, type: messageTypes.stream }))
  }

  #settle(message: RpcMessage): void {
    if (this.#abandoned.delete(message.serial)) return
    const call = this.#pending.get(message.serial)
    if (call === undefined || message.procedure !== call.procedure.number) {
      throw brokenProtocol(`an answer to a call that was never made (${message.serial})`)
    }
    this.#pending.delete(message.serial)
    const answer = new XdrReader(message.payload)
    try {
      if (message.status === 0) call.resolve(answer)
      else call.reject(failureOf(readVirError(answer), call.procedure.name, call.vm))
    } catch (error) {
      call.reject(error)
      throw error
    }
  }
}
