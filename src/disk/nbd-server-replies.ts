/**
 * The server's messages of the transmission phase, from and to bytes. Pure. Follows doc/proto.md of the NBD project:
 * "Request message", "Simple reply message", "Structured reply chunk message".
 */
import {
  chunkDoneFlag,
  chunkType,
  readSafeUint64,
  requestMagic,
  type StatusExtent,
  simpleReplyMagic,
  structuredReplyMagic,
} from './nbd-wire.ts'

export interface ClientRequest {
  readonly flags: number
  readonly command: number
  /** Eight bytes that the reply carries back. */
  readonly cookie: Buffer
  /** -1 when it is beyond any disk. */
  readonly offset: number
  readonly length: number
}

/** A request's header; undefined when it is none. */
export function decodeRequest(bytes: Buffer): ClientRequest | undefined {
  if (bytes.readUInt32BE(0) !== requestMagic) return undefined
  return {
    flags: bytes.readUInt16BE(4),
    command: bytes.readUInt16BE(6),
    cookie: Buffer.from(bytes.subarray(8, 16)),
    offset: readSafeUint64(bytes, 16),
    length: bytes.readUInt32BE(24),
  }
}

/** What precedes the data of a read; `error` is 0 when there is none. */
export function simpleReply(cookie: Buffer, error: number): Buffer {
  const bytes = Buffer.alloc(16)
  bytes.writeUInt32BE(simpleReplyMagic, 0)
  bytes.writeUInt32BE(error, 4)
  cookie.copy(bytes, 8)
  return bytes
}

/** A chunk's header and the beginning of its payload; `restBytes` of payload follow it on the wire. */
function chunk(cookie: Buffer, type: number, isLast: boolean, payload: Buffer, restBytes = 0): Buffer {
  const bytes = Buffer.alloc(20 + payload.length)
  bytes.writeUInt32BE(structuredReplyMagic, 0)
  bytes.writeUInt16BE(isLast ? chunkDoneFlag : 0, 4)
  bytes.writeUInt16BE(type, 6)
  cookie.copy(bytes, 8)
  bytes.writeUInt32BE(payload.length + restBytes, 16)
  payload.copy(bytes, 20)
  return bytes
}

export function doneChunk(cookie: Buffer): Buffer {
  return chunk(cookie, chunkType.none, true, Buffer.alloc(0))
}

/** The `length` bytes at `offset` follow it. */
export function dataChunk(cookie: Buffer, offset: number, length: number, isLast: boolean): Buffer {
  return chunk(cookie, chunkType.offsetData, isLast, uint64(offset), length)
}

export function holeChunk(cookie: Buffer, offset: number, length: number, isLast: boolean): Buffer {
  const payload = Buffer.alloc(12)
  uint64(offset).copy(payload)
  payload.writeUInt32BE(length, 8)
  return chunk(cookie, chunkType.offsetHole, isLast, payload)
}

export function statusChunk(cookie: Buffer, context: number, extents: readonly StatusExtent[]): Buffer {
  const payload = Buffer.alloc(4 + 8 * extents.length)
  payload.writeUInt32BE(context, 0)
  for (const [i, { length, flags }] of extents.entries()) {
    payload.writeUInt32BE(length, 4 + 8 * i)
    payload.writeUInt32BE(flags, 8 + 8 * i)
  }
  return chunk(cookie, chunkType.blockStatus, true, payload)
}

export function errorChunk(cookie: Buffer, error: number): Buffer {
  const payload = Buffer.alloc(6) // the error, and an empty message
  payload.writeUInt32BE(error, 0)
  return chunk(cookie, chunkType.error, true, payload)
}

/** A safe integer as eight bytes. */
export function uint64(value: number): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeUInt32BE(Math.floor(value / 2 ** 32), 0)
  bytes.writeUInt32BE(value % 2 ** 32, 4)
  return bytes
}
