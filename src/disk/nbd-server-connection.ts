/**
 * One client of the NBD server. What it sends is taken as hostile: it is read no faster than it is answered, so a client
 * has a bounded number of requests under way and never more than a little of what it sent in memory; whoever breaks the
 * protocol, does not finish the negotiation in time, or leaves its replies unread, is disconnected.
 * Follows doc/proto.md of the NBD project: "Transmission phase", "Request types", "Error values".
 */
import type { Socket } from 'node:net'
import { openSlots } from '../base/slots.ts'
import { type Agreement, allocationContextId, offerDisks } from './nbd-server-handshake.ts'
import type { MemoryBudget } from './nbd-server-memory.ts'
import {
  type ClientRequest,
  dataChunk,
  decodeRequest,
  doneChunk,
  errorChunk,
  holeChunk,
  simpleReply,
  statusChunk,
} from './nbd-server-replies.ts'
import type { ServedSource } from './nbd-server-source.ts'
import {
  commandFlag,
  commandType,
  defaultMaximumBlockBytes,
  errorNumber,
  requestBytes,
  statusHoleFlag,
  statusZeroFlag,
} from './nbd-wire.ts'

export interface ConnectionContext {
  readonly disks: ReadonlyMap<string, ServedSource>
  readonly memory: MemoryBudget
}

/** As many as QEMU and the kernel's client send at once. */
const inFlightMost = 16
/** What is read and sent at a time, where the protocol allows to answer in pieces. */
const pieceBytes = 1024 * 1024
const statusExtentsMost = 4096
/** In the worst case every other 4 KiB of a read is a hole. */
const readExtentsMost = defaultMaximumBlockBytes / 4096
const handshakeMs = 30_000
const unreadMs = 60_000
const knownFlags = commandFlag.dontFragment | commandFlag.requireOne

/** Serves the client until it leaves, breaks the protocol, or `signal` aborts; the socket is closed then. */
export async function serveClient(socket: Socket, context: ConnectionContext, signal: AbortSignal): Promise<void> {
  const gone = new AbortController()
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()))
  const end = () => {
    gone.abort()
    socket.destroy()
  }
  socket.on('error', end)
  socket.on('close', end)
  socket.setTimeout(unreadMs)
  socket.on('timeout', () => socket.writableLength > 0 && end())
  signal.addEventListener('abort', end, { once: true })
  if (signal.aborted) end()
  try {
    await new NbdServerConnection(socket, context, gone.signal).run()
  } catch (error) {
    if (!gone.signal.aborted) throw error
  } finally {
    signal.removeEventListener('abort', end)
    socket.destroySoon()
    await closed
  }
}

class NbdServerConnection {
  readonly #socket: Socket
  readonly #context: ConnectionContext
  readonly #gone: AbortSignal
  readonly #receive: (length: number) => Promise<Buffer | undefined>
  readonly #slots = openSlots(inFlightMost)
  readonly #underWay = new Set<Promise<void>>()

  constructor(socket: Socket, context: ConnectionContext, gone: AbortSignal) {
    this.#socket = socket
    this.#context = context
    this.#gone = gone
    this.#receive = receiver(socket)
  }

  async run(): Promise<void> {
    const agreement = await this.#negotiate()
    const disk = agreement && this.#context.disks.get(agreement.name)
    if (agreement === undefined || disk === undefined) return
    try {
      await this.#transmit(agreement, disk)
    } finally {
      await Promise.all(this.#underWay)
    }
  }

  async #negotiate(): Promise<Agreement | undefined> {
    const impatience = setTimeout(() => this.#socket.destroy(), handshakeMs)
    try {
      const sizes = new Map([...this.#context.disks].map(([name, { sizeBytes }]) => [name, sizeBytes]))
      let replies: Buffer[] = []
      const steps = offerDisks({ sizes, send: (bytes) => replies.push(bytes) })
      let step = steps.next()
      for (;;) {
        if (replies.length > 0) await this.#send(Buffer.concat(replies))
        replies = []
        if (step.done === true) return step.value
        const bytes = await this.#receive(step.value)
        if (bytes === undefined) return undefined
        step = steps.next(bytes)
      }
    } finally {
      clearTimeout(impatience)
    }
  }

  /** Takes requests until the client says goodbye or something that is none. */
  async #transmit(agreement: Agreement, disk: ServedSource): Promise<void> {
    for (;;) {
      await this.#slots.take()
      const header = await this.#receive(requestBytes)
      const request = header && decodeRequest(header)
      if (request === undefined || request.command === commandType.disconnect) return
      if (request.command === commandType.write && !(await this.#skipPayload(request.length))) return
      const work = this.#answer(request, agreement, disk)
        .catch((error: unknown) => {
          if (!this.#gone.aborted) this.#socket.destroy(error instanceof Error ? error : undefined)
        })
        .finally(() => {
          this.#underWay.delete(work)
          this.#slots.give()
        })
      this.#underWay.add(work)
    }
  }

  /** Passes over what a write brings along; false when that is more than any client may send, or does not come. */
  async #skipPayload(length: number): Promise<boolean> {
    if (length > defaultMaximumBlockBytes) return false
    for (let left = length; left > 0; ) {
      const bytes = await this.#receive(Math.min(left, 64 * 1024))
      if (bytes === undefined) return false
      left -= bytes.length
    }
    return true
  }

  async #answer(request: ClientRequest, agreement: Agreement, disk: ServedSource): Promise<void> {
    const { command, cookie, flags, offset, length } = request
    const refuse = (error: number) =>
      this.#send(agreement.structuredReplies ? errorChunk(cookie, error) : simpleReply(cookie, error))
    const isInside = offset >= 0 && offset + length <= disk.sizeBytes
    if ((flags & ~knownFlags) !== 0) return refuse(errorNumber.invalid)
    switch (command) {
      case commandType.read:
        if (!isInside || length > defaultMaximumBlockBytes) return refuse(errorNumber.invalid)
        if (length === 0) return this.#succeed(request, agreement)
        if (agreement.structuredReplies && (flags & commandFlag.dontFragment) === 0)
          return this.#readInPieces(request, disk, refuse)
        return this.#readWhole(request, agreement, disk, refuse)
      case commandType.blockStatus:
        if (!isInside || length === 0 || !agreement.reportsAllocation) return refuse(errorNumber.invalid)
        return this.#tellStatus(request, disk, refuse)
      case commandType.flush:
        return this.#succeed(request, agreement)
      case commandType.write:
      case commandType.writeZeroes:
      case commandType.trim:
        return refuse(errorNumber.notPermitted)
      default:
        return refuse(errorNumber.invalid)
    }
  }

  #succeed({ cookie }: ClientRequest, { structuredReplies }: Agreement): Promise<void> {
    return this.#send(structuredReplies ? doneChunk(cookie) : simpleReply(cookie, 0))
  }

  /** One header and all of the data: nothing is sent before all of it was read. */
  async #readWhole(
    { cookie, offset, length }: ClientRequest,
    { structuredReplies }: Agreement,
    disk: ServedSource,
    refuse: (error: number) => Promise<void>,
  ): Promise<void> {
    await this.#context.memory.hold(length, async () => {
      this.#gone.throwIfAborted()
      const data = Buffer.allocUnsafeSlow(length)
      if (!(await disk.read(offset, data, this.#gone))) return refuse(errorNumber.inputOutput)
      const header = structuredReplies ? dataChunk(cookie, offset, length, true) : simpleReply(cookie, 0)
      await this.#send(header, data)
    })
  }

  /** Holes as what they are, data piece by piece. An error chunk after some of it says that the whole has failed. */
  async #readInPieces(
    { cookie, offset, length }: ClientRequest,
    disk: ServedSource,
    refuse: (error: number) => Promise<void>,
  ): Promise<void> {
    const end = offset + length
    const known = await disk.extents(offset, length, readExtentsMost, this.#gone)
    if (known === undefined) return refuse(errorNumber.inputOutput)
    const reached = known.reduce((sum, extent) => sum + extent.length, offset)
    // What is beyond the extents that were asked for is read as data.
    const extents = reached < end ? [...known, { offset: reached, length: end - reached, data: true }] : known
    for (const extent of extents) {
      const extentEnd = extent.offset + extent.length
      if (!extent.data) {
        await this.#send(holeChunk(cookie, extent.offset, extent.length, extentEnd === end))
        continue
      }
      for (let at = extent.offset; at < extentEnd; at += pieceBytes) {
        const piece = Math.min(pieceBytes, extentEnd - at)
        const isRead = await this.#context.memory.hold(piece, async () => {
          this.#gone.throwIfAborted()
          const data = Buffer.allocUnsafeSlow(piece)
          if (!(await disk.read(at, data, this.#gone))) return false
          await this.#send(dataChunk(cookie, at, piece, at + piece === end), data)
          return true
        })
        if (!isRead) return refuse(errorNumber.inputOutput)
      }
    }
  }

  async #tellStatus(
    { cookie, flags, offset, length }: ClientRequest,
    disk: ServedSource,
    refuse: (error: number) => Promise<void>,
  ): Promise<void> {
    const most = (flags & commandFlag.requireOne) === 0 ? statusExtentsMost : 1
    const extents = await disk.extents(offset, length, most, this.#gone)
    if (extents === undefined) return refuse(errorNumber.inputOutput)
    const told = extents.map((extent) => {
      return { length: extent.length, flags: extent.data ? 0 : statusHoleFlag | statusZeroFlag }
    })
    await this.#send(statusChunk(cookie, allocationContextId, told))
  }

  /** Resolves when the kernel has taken it all: until then the memory is held, and the client waits for itself. */
  #send(header: Buffer, data?: Buffer): Promise<void> {
    return new Promise((resolve, reject) => {
      const settle = (error?: Error | null) => (error ? reject(error) : resolve())
      if (data === undefined) this.#socket.write(header, settle)
      else {
        this.#socket.cork()
        this.#socket.write(header)
        this.#socket.write(data, settle)
        this.#socket.uncork()
      }
    })
  }
}

/** Receives exactly as many bytes as asked for, and reads no further ahead than the socket does; undefined at the end. */
function receiver(socket: Socket): (length: number) => Promise<Buffer | undefined> {
  const arriving = socket[Symbol.asyncIterator]()
  let held = Buffer.alloc(0)
  return async (length) => {
    const parts = [held]
    let heldBytes = held.length
    while (heldBytes < length) {
      const next = await arriving.next()
      if (next.done === true) return undefined
      parts.push(next.value)
      heldBytes += next.value.length
    }
    const all = parts.length === 1 ? held : Buffer.concat(parts)
    held = all.subarray(length)
    return all.subarray(0, length)
  }
}
