/**
 * The NBD protocol's numbers, and its fixed messages to and from bytes. Pure; the only file that meets bigint.
 * Follows the NBD project's doc/proto.md: "Transmission phase", "Values". The client's negotiation is in nbd-handshake.ts,
 * its incremental reading of replies in nbd-reply-reader.ts; the server's side of both is in nbd-server-*.ts.
 */
import { failure } from '../errors.ts'

export const commandType = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  writeZeroes: 6,
  blockStatus: 7,
} as const
export type CommandType = (typeof commandType)[keyof typeof commandType]

export const exportFlag = {
  hasFlags: 1 << 0,
  readOnly: 1 << 1,
  sendFlush: 1 << 2,
  sendWriteZeroes: 1 << 6,
  sendDontFragment: 1 << 7,
  canMultiConnect: 1 << 8,
} as const

/** Flags of a request. */
export const commandFlag = { dontFragment: 1 << 2, requireOne: 1 << 3 } as const

export const optionType = {
  exportName: 1,
  abort: 2,
  list: 3,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
} as const
export const optionReply = {
  acknowledge: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  firstError: 0x80000000,
  unsupported: 0x80000001,
  invalid: 0x80000003,
  unknown: 0x80000006,
} as const
export const infoType = { export: 0, name: 1, blockSize: 3 } as const
export const chunkType = {
  none: 0,
  offsetData: 1,
  offsetHole: 2,
  blockStatus: 5,
  firstError: 0x8000,
  error: 0x8001,
} as const
export const errorNumber = { notPermitted: 1, inputOutput: 5, invalid: 22, shuttingDown: 108 } as const

export const simpleReplyMagic = 0x67446698
export const structuredReplyMagic = 0x668e33ef
export const chunkDoneFlag = 1
export const requestMagic = 0x25609513
export const requestBytes = 28

/** In base:allocation: the range reads as zeros. (A hole that is not also zero may read as anything.) */
export const statusZeroFlag = 1 << 1
/** In base:allocation: nothing is kept for the range. */
export const statusHoleFlag = 1 << 0
export const allocationContextName = 'base:allocation'

/** The longest string that the protocol allows. */
export const maximumStringBytes = 4096
/** Beyond any option reply of a sane server. */
export const maximumOptionReplyBytes = 64 * 1024
/** QEMU answers one block status request with 131072 extents at most. */
export const maximumBlockStatusBytes = 4 + 8 * 131072
/** The size that every server accepts when none was agreed. */
export const defaultMaximumBlockBytes = 32 * 1024 * 1024

export interface Request {
  readonly command: CommandType
  readonly cookie: number
  readonly offset: number
  readonly length: number
}

/** What a server broke, as a failure; `address` says which server. */
export function protocolFailure(address: string, reason: string) {
  return failure('NBD_PROTOCOL', { address, reason })
}

/** The header of a request; the payload of a write follows it on the wire. */
export function encodeRequest({ command, cookie, offset, length }: Request): Buffer {
  const bytes = Buffer.allocUnsafe(requestBytes)
  bytes.writeUInt32BE(requestMagic, 0)
  bytes.writeUInt16BE(0, 4)
  bytes.writeUInt16BE(command, 6)
  bytes.writeBigUInt64BE(BigInt(cookie), 8)
  bytes.writeBigUInt64BE(BigInt(offset), 16)
  bytes.writeUInt32BE(length, 24)
  return bytes
}

/** An unsigned 64-bit number, or -1 when it is no safe integer: -1 is never a valid cookie, offset or size. */
export function readSafeUint64(bytes: Buffer, at: number): number {
  const value = bytes.readBigUInt64BE(at)
  return value > BigInt(Number.MAX_SAFE_INTEGER) ? -1 : Number(value)
}

export interface StatusExtent {
  readonly length: number
  readonly flags: number
}

/** The descriptors of a block status chunk; undefined when one of them is empty, which would never advance. */
export function decodeStatusExtents(bytes: Buffer): StatusExtent[] | undefined {
  const extents: StatusExtent[] = []
  for (let at = 0; at + 8 <= bytes.length; at += 8) {
    const length = bytes.readUInt32BE(at)
    if (length === 0) return undefined
    extents.push({ length, flags: bytes.readUInt32BE(at + 4) })
  }
  return extents
}

const errorNames: Readonly<Record<number, string>> = {
  1: 'operation not permitted (EPERM)',
  5: 'input/output error (EIO)',
  12: 'server out of memory (ENOMEM)',
  22: 'invalid request (EINVAL)',
  28: 'no space left (ENOSPC)',
  75: 'value too large (EOVERFLOW)',
  95: 'operation not supported (ENOTSUP)',
  108: 'server is shutting down (ESHUTDOWN)',
}

/** One phrase for an error of the server, with its own words when it sent some. */
export function describeServerError(number: number, message = ''): string {
  const name = errorNames[number] ?? `error ${number}`
  return message === '' ? name : `${name}: ${printable(message)}`
}

/** Text of a peer made fit for a message: one line, no control characters, bounded. */
export function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}]+/gu, ' ').slice(0, 300)
}
