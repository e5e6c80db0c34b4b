/**
 * A small NBD server over a disk in memory, which can be told to misbehave: to be silent, hang up, refuse, or lie.
 * Follows the server's side of doc/proto.md of the NBD project.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { mergeExtents, type Range } from '../../src/disk/extents.ts'
import { commandType, optionType } from '../../src/disk/nbd-wire.ts'
import type { MemoryDisk } from './memory-disk.ts'

export interface ReceivedRequest {
  readonly command: number
  readonly cookie: Buffer
  readonly offset: number
  readonly length: number
}

/** What the server does with a request: answers it, says nothing, hangs up, sends an error number or raw bytes. */
export type Behaviour = 'answer' | 'silence' | 'hang-up' | { readonly error: number } | { readonly bytes: Buffer }

export interface NbdServerOptions {
  readonly structuredReplies?: boolean
  readonly canMultiConnect?: boolean
  readonly readOnly?: boolean
  readonly maximumBlockBytes?: number
  /** A context besides base:allocation: these ranges are marked in it. */
  readonly marked?: { readonly context: string; readonly ranges: readonly Range[] }
  readonly behave?: (request: ReceivedRequest) => Behaviour
  /** Sent instead of the whole negotiation. */
  readonly greeting?: Buffer
}

export interface NbdServer extends AsyncDisposable {
  readonly socketPath: string
  readonly requests: readonly ReceivedRequest[]
  readonly connections: number
}

/** Serves every export name; disposal closes all connections and removes the socket. */
export async function openNbdServer(disk: MemoryDisk, options: NbdServerOptions = {}): Promise<NbdServer> {
  const directory = await mkdtemp(join(tmpdir(), 'umbra-nbd-'))
  const socketPath = join(directory, 's')
  const requests: ReceivedRequest[] = []
  const sockets = new Set<net.Socket>()
  const server = net.createServer((socket) => {
    sockets.add(socket)
    socket.on('error', () => socket.destroy())
    serve(socket, disk, options, requests).catch(() => socket.destroy())
  })
  await new Promise<void>((resolve) => server.listen(socketPath, resolve))
  return {
    socketPath,
    requests,
    get connections() {
      return sockets.size
    },
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy()
      await new Promise((resolve) => server.close(resolve))
      await rm(directory, { recursive: true, force: true })
    },
  }
}

/** Reads exactly as many bytes as asked for; ends the server's work by throwing when the client is gone. */
function byteReader(socket: net.Socket): (length: number) => Promise<Buffer> {
  const chunks = socket[Symbol.asyncIterator]()
  let held = Buffer.alloc(0)
  return async (length) => {
    while (held.length < length) {
      const next = await chunks.next()
      if (next.done) throw new Error('the client is gone')
      held = Buffer.concat([held, next.value as Buffer])
    }
    const bytes = held.subarray(0, length)
    held = held.subarray(length)
    return bytes
  }
}

async function serve(socket: net.Socket, disk: MemoryDisk, options: NbdServerOptions, requests: ReceivedRequest[]) {
  const read = byteReader(socket)
  socket.write(options.greeting ?? Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), numbers([2, 1])]))
  await read(4)
  while ((await answerOption(socket, disk, options, read)) !== optionType.go);
  for (;;) {
    const header = await read(28)
    const offset = Number(header.readBigUInt64BE(16))
    const request = {
      command: header.readUInt16BE(6),
      cookie: Buffer.from(header.subarray(8, 16)),
      offset,
      length: header.readUInt32BE(24),
    }
    const payload = request.command === commandType.write ? await read(request.length) : Buffer.alloc(0)
    if (request.command === commandType.disconnect) break
    requests.push(request)
    const behaviour = options.behave?.(request) ?? 'answer'
    if (behaviour === 'hang-up') break
    if (behaviour === 'answer') socket.write(answer(disk, options, request, payload))
    else if (behaviour !== 'silence') {
      socket.write('bytes' in behaviour ? behaviour.bytes : refusal(options, request, behaviour.error))
    }
  }
  socket.end()
}

async function answerOption(
  socket: net.Socket,
  disk: MemoryDisk,
  options: NbdServerOptions,
  read: (length: number) => Promise<Buffer>,
): Promise<number> {
  const { structuredReplies = true, canMultiConnect = false, readOnly = false, maximumBlockBytes } = options
  const header = await read(16)
  const option = header.readUInt32BE(8)
  await read(header.readUInt32BE(12))
  const reply = (type: number, data: Buffer = Buffer.alloc(0)) =>
    socket.write(
      Buffer.concat([Buffer.from('0003e889045565a9', 'hex'), numbers([4, option], [4, type], [4, data.length]), data]),
    )
  const blockSize = maximumBlockBytes === undefined ? [] : [numbers([2, 3], [4, 1], [4, 4096], [4, maximumBlockBytes])]
  if (option === optionType.structuredReply && !structuredReplies) reply(0x80000001)
  else {
    const flags = 1 | (readOnly ? 2 : 0) | 4 | (1 << 6) | (canMultiConnect ? 1 << 8 : 0)
    if (option === optionType.setMetaContext) {
      const names = ['base:allocation', ...(options.marked === undefined ? [] : [options.marked.context])]
      for (const [i, name] of names.entries()) reply(4, Buffer.concat([numbers([4, 9 + i]), Buffer.from(name)]))
    }
    if (option === optionType.info) for (const data of blockSize) reply(3, data)
    if (option === optionType.go) reply(3, numbers([2, 0], [8, disk.sizeBytes], [2, flags]))
    reply(1)
  }
  return option
}

function answer(disk: MemoryDisk, options: NbdServerOptions, request: ReceivedRequest, payload: Buffer): Buffer {
  const { structuredReplies = true } = options
  const { command, cookie, offset, length } = request
  if (command === commandType.write) disk.put(offset, payload)
  if (command === commandType.writeZeroes) disk.put(offset, new Uint8Array(length))
  const data = Buffer.alloc(command === commandType.read ? length : 0)
  disk.get(offset, data)
  if (!structuredReplies) return Buffer.concat([numbers([4, 0x67446698], [4, 0]), cookie, data])
  if (command === commandType.read) return chunk(1, cookie, Buffer.concat([numbers([8, offset]), data]))
  if (command !== commandType.blockStatus) return chunk(0, cookie, Buffer.alloc(0))
  const extents = disk.extents(offset, length).map((extent) => numbers([4, extent.length], [4, extent.data ? 0 : 3]))
  if (options.marked === undefined) return chunk(5, cookie, Buffer.concat([numbers([4, 9]), ...extents]))
  const marks = marksOf(options.marked.ranges, request).map(({ length, data }) =>
    numbers([4, length], [4, Number(data)]),
  )
  return Buffer.concat([
    chunk(5, cookie, Buffer.concat([numbers([4, 9]), ...extents]), 0),
    chunk(5, cookie, Buffer.concat([numbers([4, 10]), ...marks])),
  ])
}

/** The first part of what was asked only: a server need not tell all at once. */
function marksOf(ranges: readonly Range[], { offset, length }: ReceivedRequest) {
  const sector = 512
  const parts = Array.from({ length: Math.ceil(Math.min(length, 100 * sector) / sector) }, (_, i) => {
    const at = offset + i * sector
    const data = ranges.some((range) => at < range.offset + range.length && at + sector > range.offset)
    return { offset: at, length: Math.min(sector, offset + length - at), data }
  })
  return mergeExtents(parts)
}

function refusal({ structuredReplies = true }: NbdServerOptions, { cookie }: ReceivedRequest, error: number): Buffer {
  if (!structuredReplies) return Buffer.concat([numbers([4, 0x67446698], [4, error]), cookie])
  const message = Buffer.from('no luck\ntoday')
  return chunk(0x8001, cookie, Buffer.concat([numbers([4, error], [2, message.length]), message]))
}

/** A structured reply chunk, by default the last one of its reply. */
export function chunk(type: number, cookie: Buffer, payload: Buffer, flags = 1): Buffer {
  return Buffer.concat([numbers([4, 0x668e33ef], [2, flags], [2, type]), cookie, numbers([4, payload.length]), payload])
}

/** Big-endian numbers, each with its width in bytes. */
export function numbers(...parts: readonly (readonly [width: 2 | 4 | 8, value: number])[]): Buffer {
  return Buffer.concat(
    parts.map(([width, value]) => {
      const bytes = Buffer.alloc(8)
      bytes.writeBigUInt64BE(BigInt(value))
      return bytes.subarray(8 - width)
    }),
  )
}
