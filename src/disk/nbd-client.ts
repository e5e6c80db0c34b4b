/**
 * A disk behind an NBD server as BlockSource and BlockSink. Large calls are cut into pieces that the server takes, a
 * bounded number of which are in flight; a call that fails settles only when none of its pieces touches the buffer.
 * Follows doc/proto.md of the NBD project: "Request types", "Multiple connections".
 */
import { Failure } from '../base/failure.ts'
import { type ErrorCode, failure } from '../errors.ts'
import type { BlockSink, BlockSource, Extent } from './block-device.ts'
import { mergeExtentStream, type Range } from './extents.ts'
import { isConnectionLoss, NbdConnection, type NbdConnectionOptions } from './nbd-connection.ts'
import type { NbdExport } from './nbd-handshake.ts'
import type { PendingReply } from './nbd-reply-reader.ts'
import { type CommandType, commandType, statusZeroFlag } from './nbd-wire.ts'

export interface NbdClientOptions {
  readonly socketPath: string
  readonly exportName: string
  /** A metadata context besides base:allocation, for `marked`; connecting fails when the server does not know it. */
  readonly context?: string
  /** More than one is used only when the server says that all see the same disk. */
  readonly connections?: number
  /** How long nothing may move while requests are in flight; also the limit for connecting. */
  readonly deadlineMs?: number
  /** Ends the connection; whatever is in flight then rejects with its reason. */
  readonly signal?: AbortSignal | undefined
}

export interface NbdDevice extends BlockSource, BlockSink {
  readonly readOnly: boolean
  /** Makes a range read as zeros, without sending them where the server knows how. */
  writeZeroes(offset: number, length: number): Promise<void>
  /** The ranges of [offset, offset+length) with a set bit in the context that was named, ascending. */
  marked(offset: number, length: number): AsyncIterable<Range>
}

export const defaultNbdDeadlineMs = 60_000

/** Measured with QEMU 7.2: smaller pieces cost more CPU time per byte, larger ones gain nothing. */
const pieceBytes = 1024 * 1024
/** QEMU works on 16 requests of a client at a time and leaves more in the socket. */
const inFlightPerConnection = 16
const blockStatusStepBytes = 1024 * 1024 * 1024
/** Small enough that a server which writes real zeros shows progress within the deadline. */
const zeroesStepBytes = 64 * 1024 * 1024

/** Connects and negotiates; disposal closes the connections without flushing. */
export async function connectNbd(options: NbdClientOptions): Promise<NbdDevice> {
  const { connections = 1, deadlineMs = defaultNbdDeadlineMs, exportName, context, signal, socketPath } = options
  const connectionOptions: NbdConnectionOptions = { socketPath, exportName, context, deadlineMs, signal }
  const { connection, target } = await NbdConnection.open(connectionOptions)
  await using unfinished = new AsyncDisposableStack()
  unfinished.use(connection)
  const all = [connection]
  while (target.canMultiConnect && all.length < connections) {
    const next = await NbdConnection.open(connectionOptions)
    all.push(unfinished.use(next.connection))
  }
  return new NbdDisk(exportName, target, all, unfinished.move())
}

interface Piece {
  readonly command: CommandType
  readonly offset: number
  readonly length: number
  readonly bytes?: Uint8Array
}

class NbdDisk implements NbdDevice {
  readonly #name: string
  readonly #target: NbdExport
  readonly #connections: readonly NbdConnection[]
  readonly #cleanup: AsyncDisposableStack
  readonly #waiting: (() => void)[] = []
  readonly #pieceBytes: number
  #busy = 0

  constructor(name: string, target: NbdExport, connections: readonly NbdConnection[], cleanup: AsyncDisposableStack) {
    this.#name = name
    this.#target = target
    this.#connections = connections
    this.#cleanup = cleanup
    this.#pieceBytes = Math.min(pieceBytes, target.maximumBlockBytes)
  }

  get sizeBytes(): number {
    return this.#target.sizeBytes
  }

  get readOnly(): boolean {
    return this.#target.readOnly
  }

  async read(offset: number, target: Uint8Array): Promise<void> {
    this.#checkRange('DISK_READ_FAILED', offset, target.length)
    await this.#runAll('DISK_READ_FAILED', this.#payloadPieces(commandType.read, offset, target))
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    this.#checkRange('DISK_WRITE_FAILED', offset, data.length)
    this.#checkWritable(offset)
    await this.#runAll('DISK_WRITE_FAILED', this.#payloadPieces(commandType.write, offset, data))
  }

  async writeZeroes(offset: number, length: number): Promise<void> {
    this.#checkRange('DISK_WRITE_FAILED', offset, length)
    this.#checkWritable(offset)
    const pieces = this.#target.canWriteZeroes ? zeroesPieces(offset, length) : this.#zeroPayloads(offset, length)
    await this.#runAll('DISK_WRITE_FAILED', pieces)
  }

  async flush(): Promise<void> {
    this.#checkWritable(0)
    if (!this.#target.canFlush) throw this.#failed('DISK_WRITE_FAILED', 0, 'the server cannot flush')
    await this.#run('DISK_WRITE_FAILED', { command: commandType.flush, offset: 0, length: 0 })
  }

  async *extents(offset: number, length: number): AsyncGenerator<Extent> {
    this.#checkRange('DISK_READ_FAILED', offset, length)
    if (length === 0) return
    const context = this.#target.allocationContext
    if (context === undefined) yield { offset, length, data: true }
    else yield* mergeExtentStream(this.#askExtents(context, offset, length, (flags) => (flags & statusZeroFlag) === 0))
  }

  async *marked(offset: number, length: number): AsyncGenerator<Range> {
    this.#checkRange('DISK_READ_FAILED', offset, length)
    const context = this.#target.namedContext
    if (context === undefined) throw this.#failed('DISK_READ_FAILED', offset, 'no context was named for it')
    const marks = this.#askExtents(context, offset, length, (flags) => flags !== 0)
    for await (const { data, ...range } of mergeExtentStream(marks)) if (data) yield range
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#cleanup.disposeAsync()
  }

  /** As `data` comes what `holds` says of a context's flags. */
  async *#askExtents(
    context: number,
    offset: number,
    length: number,
    holds: (flags: number) => boolean,
  ): AsyncGenerator<Extent> {
    const end = offset + length
    for (let at = offset; at < end; ) {
      const step = Math.min(end - at, blockStatusStepBytes)
      const reply = await this.#run('DISK_READ_FAILED', { command: commandType.blockStatus, offset: at, length: step })
      const stepEnd = at + step
      for (const extent of reply.extents.get(context) ?? []) {
        const part = Math.min(extent.length, stepEnd - at)
        if (part === 0) break
        yield { offset: at, length: part, data: holds(extent.flags) }
        at += part
      }
    }
  }

  *#payloadPieces(command: CommandType, offset: number, bytes: Uint8Array): Generator<Piece> {
    for (let at = 0; at < bytes.length; at += this.#pieceBytes) {
      const piece = bytes.subarray(at, at + this.#pieceBytes)
      yield { command, offset: offset + at, length: piece.length, bytes: piece }
    }
  }

  *#zeroPayloads(offset: number, length: number): Generator<Piece> {
    const zeros = new Uint8Array(Math.min(length, this.#pieceBytes))
    for (let at = 0; at < length; at += zeros.length) {
      const bytes = zeros.subarray(0, length - at)
      yield { command: commandType.write, offset: offset + at, length: bytes.length, bytes }
    }
  }

  /** Waits for all pieces even when one fails, because the buffer stays in use until then; issues none after that. */
  async #runAll(code: ErrorCode, pieces: Iterable<Piece>): Promise<void> {
    const underWay: Promise<unknown>[] = []
    let first: { readonly error: unknown } | undefined
    for (const piece of pieces) {
      if (this.#isFull) await this.#slot()
      if (first !== undefined) {
        this.#waiting.shift()?.()
        break
      }
      const done = this.#run(code, piece).catch((error: unknown) => {
        first ??= { error }
      })
      underWay.push(done)
    }
    await Promise.all(underWay)
    if (first !== undefined) throw first.error
  }

  async #run(code: ErrorCode, { command, offset, length, bytes }: Piece): Promise<PendingReply> {
    while (this.#isFull) await this.#slot()
    this.#busy++
    try {
      const reply = await this.#idlest().request(command, offset, length, bytes)
      if (reply.error !== undefined) throw this.#failed(code, offset, reply.error)
      return reply
    } catch (error) {
      throw isConnectionLoss(error) && error instanceof Failure
        ? this.#failed(code, offset, error.message, error)
        : error
    } finally {
      this.#busy--
      this.#waiting.shift()?.()
    }
  }

  get #isFull(): boolean {
    return this.#busy >= inFlightPerConnection * this.#connections.length
  }

  async #slot(): Promise<void> {
    await new Promise<void>((resolve) => this.#waiting.push(resolve))
  }

  #idlest(): NbdConnection {
    return this.#connections.reduce((best, next) => (next.inFlight < best.inFlight ? next : best))
  }

  #checkRange(code: ErrorCode, offset: number, length: number): void {
    const isInside = Number.isSafeInteger(offset) && offset >= 0 && length >= 0 && offset + length <= this.sizeBytes
    if (!isInside) throw this.#failed(code, offset, `the disk ends at ${this.sizeBytes}`)
  }

  #checkWritable(offset: number): void {
    if (this.readOnly) throw this.#failed('DISK_WRITE_FAILED', offset, 'it is open for reading only')
  }

  #failed(code: ErrorCode, offset: number, reason: string, cause?: unknown): Failure {
    return failure(code, { disk: this.#name, offset, reason }, cause)
  }
}

function* zeroesPieces(offset: number, length: number): Generator<Piece> {
  for (let at = 0; at < length; at += zeroesStepBytes) {
    yield { command: commandType.writeZeroes, offset: offset + at, length: Math.min(zeroesStepBytes, length - at) }
  }
}
