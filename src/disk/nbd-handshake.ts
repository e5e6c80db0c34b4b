/**
 * The negotiation of an NBD connection, without a socket: a generator that yields how many bytes it needs next.
 * Follows doc/proto.md of the NBD project: "Fixed newstyle negotiation", "Option types", "Metadata querying".
 * Structured replies and base:allocation are asked for and done without when the server has none.
 */
import { type Failure, invariant } from '../base/failure.ts'
import { failure } from '../errors.ts'
import {
  allocationContextName,
  defaultMaximumBlockBytes,
  exportFlag,
  infoType,
  maximumOptionReplyBytes,
  maximumStringBytes,
  optionReply,
  optionType,
  printable,
  protocolFailure,
  readSafeUint64,
} from './nbd-wire.ts'

export interface NbdExport {
  readonly sizeBytes: number
  readonly readOnly: boolean
  readonly canFlush: boolean
  readonly canWriteZeroes: boolean
  readonly canMultiConnect: boolean
  readonly maximumBlockBytes: number
  readonly structuredReplies: boolean
  /** The number under which base:allocation is reported; undefined when the server does not know it. */
  readonly allocationContext: number | undefined
  /** The number under which the context that the client named is reported; undefined when it named none. */
  readonly namedContext: number | undefined
}

/** Yields the number of bytes to be passed back; calls `send` with what the server shall get. */
export type Negotiation<Result> = Generator<number, Result, Buffer>

interface Peer {
  readonly address: string
  readonly exportName: string
  /** A metadata context besides base:allocation; the server must know it. */
  readonly context?: string | undefined
  readonly send: (bytes: Buffer) => void
}

interface OptionReply {
  readonly type: number
  readonly data: Buffer
}

interface OptionOutcome {
  readonly replies: readonly OptionReply[]
  /** Set when the server refused the option. */
  readonly refusal?: { readonly type: number; readonly message: string }
}

export const initialMagic = Buffer.from('NBDMAGIC')
export const optionMagic = Buffer.from('IHAVEOPT')
export const optionReplyMagicHigh = 0x0003e889
export const optionReplyMagicLow = 0x045565a9
const allocation = allocationContextName
export const fixedNewstyle = 1
export const noZeroes = 2
/** A server has a handful of contexts and infos to report; more is an attempt to keep us reading for ever. */
const maximumReplies = 64

/** Runs the whole negotiation up to the transmission phase. */
export function* negotiate(peer: Peer): Negotiation<NbdExport> {
  yield* greet(peer)
  const structuredReplies = (yield* askFor(peer, optionType.structuredReply, Buffer.alloc(0))).refusal === undefined
  const contexts = structuredReplies ? yield* chooseContexts(peer) : new Map<string, number>()
  const maximumBlockBytes = yield* learnMaximumBlock(peer)
  const target = yield* go(peer)
  const namedContext = peer.context === undefined ? undefined : contexts.get(peer.context)
  if (peer.context !== undefined && namedContext === undefined)
    throw refusedExport(peer, { type: optionReply.firstError, message: `it has no context ${peer.context}` })
  const allocationContext = contexts.get(allocation)
  return { ...target, maximumBlockBytes, structuredReplies, allocationContext, namedContext }
}

function* greet(peer: Peer): Negotiation<void> {
  const greeting = yield 18
  if (!greeting.subarray(0, 8).equals(initialMagic)) throw protocolFailure(peer.address, 'it is no NBD server')
  if (!greeting.subarray(8, 16).equals(optionMagic)) throw protocolFailure(peer.address, 'oldstyle negotiation')
  const flags = greeting.readUInt16BE(16)
  if ((flags & fixedNewstyle) === 0) throw protocolFailure(peer.address, 'not a fixed newstyle negotiation')
  const answer = Buffer.alloc(4)
  answer.writeUInt32BE(fixedNewstyle | (flags & noZeroes))
  peer.send(answer)
}

/** The numbers of the contexts that were asked for and that the server has. */
function* chooseContexts(peer: Peer): Negotiation<Map<string, number>> {
  const wanted = peer.context === undefined ? [allocation] : [allocation, peer.context]
  const query = Buffer.concat([sized(peer.exportName), uint32(wanted.length), ...wanted.map(sized)])
  const { replies } = yield* askFor(peer, optionType.setMetaContext, query)
  const contexts = new Map<string, number>()
  for (const { type, data } of replies) {
    if (type !== optionReply.metaContext || data.length < 4) throw protocolFailure(peer.address, 'bad meta context')
    const name = data.toString('utf8', 4)
    const number = data.readUInt32BE(0)
    if (!wanted.includes(name)) continue
    if (contexts.has(name) || [...contexts.values()].includes(number))
      throw protocolFailure(peer.address, 'a meta context twice')
    contexts.set(name, number)
  }
  return contexts
}

/**
 * Asks with OPT_INFO how large a request may be. OPT_GO does not ask again, because a client that asks there promises
 * to align its requests; one that does not leaves the alignment to the server, which QEMU and nbdkit then do.
 */
function* learnMaximumBlock(peer: Peer): Negotiation<number> {
  const query = Buffer.concat([sized(peer.exportName), uint16(1), uint16(infoType.blockSize)])
  const { replies } = yield* askFor(peer, optionType.info, query)
  for (const { type, data } of replies) {
    if (type !== optionReply.info || data.length < 2) throw protocolFailure(peer.address, 'bad information')
    if (data.readUInt16BE(0) !== infoType.blockSize) continue
    if (data.length !== 14) throw protocolFailure(peer.address, 'bad block size information')
    const maximum = data.readUInt32BE(10)
    if (maximum < 512) throw protocolFailure(peer.address, `a maximum block size of ${maximum} bytes`)
    return Math.min(maximum - (maximum % 512), defaultMaximumBlockBytes)
  }
  return defaultMaximumBlockBytes
}

function* go(peer: Peer) {
  const { replies, refusal } = yield* askFor(peer, optionType.go, Buffer.concat([sized(peer.exportName), uint16(0)]))
  if (refusal !== undefined) throw refusedExport(peer, refusal)
  for (const { type, data } of replies) {
    if (type !== optionReply.info || data.length < 2) throw protocolFailure(peer.address, 'bad information')
    if (data.readUInt16BE(0) !== infoType.export) continue
    if (data.length !== 12) throw protocolFailure(peer.address, 'bad export information')
    const sizeBytes = readSafeUint64(data, 2)
    if (sizeBytes < 0) throw protocolFailure(peer.address, 'a disk larger than 2^53 bytes')
    const flags = data.readUInt16BE(10)
    if ((flags & exportFlag.hasFlags) === 0) throw protocolFailure(peer.address, 'an export without flags')
    return {
      sizeBytes,
      readOnly: (flags & exportFlag.readOnly) !== 0,
      canFlush: (flags & exportFlag.sendFlush) !== 0,
      canWriteZeroes: (flags & exportFlag.sendWriteZeroes) !== 0,
      canMultiConnect: (flags & exportFlag.canMultiConnect) !== 0,
    }
  }
  throw protocolFailure(peer.address, 'an export without a size')
}

/** Sends one option and gathers its replies up to the acknowledgement or the refusal. */
function* askFor(peer: Peer, option: number, data: Buffer): Negotiation<OptionOutcome> {
  peer.send(Buffer.concat([optionMagic, uint32(option), uint32(data.length), data]))
  const replies: OptionReply[] = []
  while (replies.length < maximumReplies) {
    const header = yield 20
    const magicMatches =
      header.readUInt32BE(0) === optionReplyMagicHigh && header.readUInt32BE(4) === optionReplyMagicLow
    if (!magicMatches) throw protocolFailure(peer.address, 'an option reply without its magic')
    if (header.readUInt32BE(8) !== option) throw protocolFailure(peer.address, 'a reply to an option not asked for')
    const type = header.readUInt32BE(12)
    const length = header.readUInt32BE(16)
    if (length > maximumOptionReplyBytes) throw protocolFailure(peer.address, `an option reply of ${length} bytes`)
    const payload = length === 0 ? Buffer.alloc(0) : yield length
    if (type >= optionReply.firstError) return { replies: [], refusal: { type, message: payload.toString('utf8') } }
    if (type === optionReply.acknowledge) return { replies }
    replies.push({ type, data: payload })
  }
  throw protocolFailure(peer.address, `more than ${maximumReplies} replies to one option`)
}

const refusals: Readonly<Record<number, string>> = {
  2147483650: 'forbidden by policy',
  2147483653: 'it requires TLS',
  2147483654: 'no such export',
  2147483655: 'it is shutting down',
  2147483656: 'it requires block sizes to be negotiated',
}

function refusedExport(peer: Peer, refusal: { type: number; message: string }): Failure {
  const why = refusals[refusal.type] ?? `error 0x${refusal.type.toString(16)}`
  const reason = refusal.message === '' ? why : `${why}: ${printable(refusal.message)}`
  return failure('NBD_EXPORT_REFUSED', { address: peer.address, exportName: peer.exportName, reason })
}

export function uint16(value: number): Buffer {
  const bytes = Buffer.alloc(2)
  bytes.writeUInt16BE(value)
  return bytes
}

export function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}

export function sized(text: string): Buffer {
  const bytes = Buffer.from(text)
  invariant(bytes.length <= maximumStringBytes, 'an NBD name is at most 4096 bytes long')
  return Buffer.concat([uint32(bytes.length), bytes])
}
