/**
 * Reads NBD replies as they arrive, in pieces of any size. It always says where the next bytes belong, so that the
 * socket can put a read's payload straight into the caller's buffer. Pure; believes nothing that a server says.
 * Follows doc/proto.md of the NBD project: "Simple reply message", "Structured reply chunk message".
 */
import {
  type CommandType,
  chunkDoneFlag,
  chunkType,
  commandType,
  decodeStatusExtents,
  describeServerError,
  maximumBlockStatusBytes,
  maximumStringBytes,
  protocolFailure,
  readSafeUint64,
  type StatusExtent,
  simpleReplyMagic,
  structuredReplyMagic,
} from './nbd-wire.ts'

/** A request that waits for its reply, and what of the reply has arrived. */
export class PendingReply {
  readonly command: CommandType
  readonly offset: number
  /** Where a read's payload goes; empty for other commands. */
  readonly target: Uint8Array
  /** What a block status request was answered, by the number of the context. */
  readonly extents = new Map<number, readonly StatusExtent[]>()
  /** The server's own words for why it did not do it. */
  error: string | undefined
  readonly #filled: { start: number; end: number }[] = []

  constructor(command: CommandType, offset: number, target: Uint8Array = nothing) {
    this.command = command
    this.offset = offset
    this.target = target
  }

  /** Claims the part of `target` for a chunk; undefined when it lies outside or has been sent before. */
  claim(offset: number, length: number): Uint8Array | undefined {
    const start = offset - this.offset
    const end = start + length
    if (offset < 0 || start < 0 || end > this.target.length || length === 0) return undefined
    const last = this.#filled.at(-1)
    if (last !== undefined && last.end === start) last.end = end
    else if (this.#filled.length < maximumFragments) this.#filled.push({ start, end })
    else return undefined
    return this.target.subarray(start, end)
  }

  /** True when every byte of `target` was sent exactly once. */
  isFilled(): boolean {
    let reached = 0
    for (const { start, end } of this.#filled.sort((a, b) => a.start - b.start)) {
      if (start !== reached) return false
      reached = end
    }
    return reached === this.target.length
  }
}

export interface ReplyReaderOptions {
  readonly address: string
  readonly structuredReplies: boolean
  /** Numbers of the contexts that were agreed: a block status has one chunk of each. */
  readonly contexts: readonly number[]
  /** The request behind a cookie, if there is one. */
  readonly find: (cookie: number) => PendingReply | undefined
  /** The reply to `cookie` is complete. */
  readonly finish: (cookie: number, reply: PendingReply) => void
}

const nothing = new Uint8Array(0)
const headerBytes = 16
/** Servers send a read's chunks in order; this many jumps back and forth are no honest server's. */
const maximumFragments = 4096
const maximumErrorBytes = 6 + maximumStringBytes + 8

export class ReplyReader {
  readonly #options: ReplyReaderOptions
  readonly #fixed = Buffer.alloc(32)
  #destination: Uint8Array = this.#fixed.subarray(0, headerBytes)
  #whenFull: () => void = this.#onHeader
  #cookie = 0
  #reply = new PendingReply(commandType.disconnect, 0)
  #isLastChunk = true

  constructor(options: ReplyReaderOptions) {
    this.#options = options
  }

  /** Where the next bytes of the server belong; never empty. */
  get destination(): Uint8Array {
    return this.#destination
  }

  /** `count` bytes have been put at the beginning of `destination`. */
  advance(count: number): void {
    if (count < this.#destination.length) this.#destination = this.#destination.subarray(count)
    else this.#whenFull()
  }

  /** Takes bytes that arrived elsewhere. */
  feed(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      const count = Math.min(this.#destination.length, bytes.length - at)
      this.#destination.set(bytes.subarray(at, at + count))
      at += count
      this.advance(count)
    }
  }

  #expect(destination: Uint8Array, whenFull: () => void): void {
    this.#destination = destination
    this.#whenFull = whenFull
    if (destination.length === 0) whenFull.call(this)
  }

  #onHeader(): void {
    const { find, structuredReplies } = this.#options
    const magic = this.#fixed.readUInt32BE(0)
    if (magic !== simpleReplyMagic && magic !== structuredReplyMagic) throw this.#broken('a reply without its magic')
    this.#cookie = readSafeUint64(this.#fixed, 8)
    const reply = find(this.#cookie)
    if (reply === undefined) throw this.#broken('a reply to a request not made')
    this.#reply = reply
    if (magic === simpleReplyMagic) {
      this.#onSimpleReply()
      return
    }
    if (!structuredReplies) throw this.#broken('a structured reply that was not agreed')
    this.#isLastChunk = (this.#fixed.readUInt16BE(4) & chunkDoneFlag) !== 0
    this.#expect(this.#fixed.subarray(headerBytes, headerBytes + this.#tailBytes()), this.#onChunk)
  }

  /** How much of a chunk is read before its contents: its length, and what every chunk of that type begins with. */
  #tailBytes(): number {
    const type = this.#fixed.readUInt16BE(6)
    if (type === chunkType.offsetData) return 4 + 8
    if (type === chunkType.offsetHole) return 4 + 12
    if (type === chunkType.blockStatus) return 4 + 4
    return type >= chunkType.firstError ? 4 + 6 : 4
  }

  #onSimpleReply(): void {
    const error = this.#fixed.readUInt32BE(4)
    this.#isLastChunk = true
    const { command, offset, target } = this.#reply
    const hasPayload = error === 0 && command === commandType.read
    if (hasPayload && this.#options.structuredReplies) throw this.#broken('a simple reply to a read')
    if (error !== 0) this.#reply.error = describeServerError(error)
    if (hasPayload) this.#expect(this.#reply.claim(offset, target.length) ?? nothing, this.#onChunkEnd)
    else this.#onChunkEnd()
  }

  #onChunk(): void {
    const type = this.#fixed.readUInt16BE(6)
    const length = this.#fixed.readUInt32BE(headerBytes)
    if (type === chunkType.none) this.#onNoneChunk(length)
    else if (type === chunkType.offsetData) this.#onDataChunk(length)
    else if (type === chunkType.offsetHole) this.#onHoleChunk(length)
    else if (type === chunkType.blockStatus) this.#onBlockStatusChunk(length)
    else if (type >= chunkType.firstError) this.#onErrorChunk(length)
    else throw this.#broken(`a chunk of unknown type ${type}`)
  }

  #onNoneChunk(length: number): void {
    if (length !== 0 || !this.#isLastChunk) throw this.#broken('an empty chunk that is not empty or not the last')
    this.#onChunkEnd()
  }

  #onDataChunk(length: number): void {
    const part = this.#reply.claim(readSafeUint64(this.#fixed, 20), length - 8)
    if (length <= 8 || part === undefined) throw this.#broken('data that was not asked for')
    this.#expect(part, this.#onChunkEnd)
  }

  #onHoleChunk(length: number): void {
    const part = this.#reply.claim(readSafeUint64(this.#fixed, 20), this.#fixed.readUInt32BE(28))
    if (length !== 12 || part === undefined) throw this.#broken('a hole that was not asked for')
    part.fill(0)
    this.#onChunkEnd()
  }

  #onBlockStatusChunk(length: number): void {
    const context = this.#fixed.readUInt32BE(20)
    const wanted = this.#reply.command === commandType.blockStatus && !this.#reply.extents.has(context)
    if (!wanted || !this.#options.contexts.includes(context)) throw this.#broken('a block status not asked for')
    const isValid = length >= 12 && length <= maximumBlockStatusBytes && (length - 4) % 8 === 0
    if (!isValid) throw this.#broken(`a block status of ${length} bytes`)
    const payload = Buffer.allocUnsafe(length - 4)
    this.#expect(payload, () => {
      const extents = decodeStatusExtents(payload)
      if (extents === undefined) throw this.#broken('an empty extent')
      this.#reply.extents.set(context, extents)
      this.#onChunkEnd()
    })
  }

  #onErrorChunk(length: number): void {
    const error = this.#fixed.readUInt32BE(20)
    const messageBytes = this.#fixed.readUInt16BE(24)
    if (length < 6 + messageBytes || length > maximumErrorBytes) throw this.#broken(`an error of ${length} bytes`)
    if (error === 0) throw this.#broken('an error without a number')
    const payload = Buffer.allocUnsafe(length - 6)
    this.#expect(payload, () => {
      this.#reply.error ??= describeServerError(error, payload.toString('utf8', 0, messageBytes))
      this.#onChunkEnd()
    })
  }

  #onChunkEnd(): void {
    if (this.#isLastChunk) this.#onReplyEnd()
    this.#expect(this.#fixed.subarray(0, headerBytes), this.#onHeader)
  }

  #onReplyEnd(): void {
    const reply = this.#reply
    if (reply.error === undefined) {
      if (!reply.isFilled()) throw this.#broken('a read with parts missing or sent twice')
      const isStatus = reply.command === commandType.blockStatus
      if (isStatus && reply.extents.size < this.#options.contexts.length)
        throw this.#broken('a block status without extents')
    }
    this.#options.finish(this.#cookie, reply)
  }

  #broken(reason: string) {
    return protocolFailure(this.#options.address, reason)
  }
}
