/**
 * The server's side of the negotiation, without a socket: a generator that yields how many bytes it needs next. Follows
 * doc/proto.md of the NBD project: "Fixed newstyle negotiation", "Option types". A client that breaks the protocol, or
 * asks for more than any client needs, gets no answer but the end of the connection.
 */
import {
  fixedNewstyle,
  initialMagic,
  type Negotiation,
  noZeroes,
  optionMagic,
  optionReplyMagicHigh,
  optionReplyMagicLow,
  sized,
  uint16,
  uint32,
} from './nbd-handshake.ts'
import { uint64 } from './nbd-server-replies.ts'
import {
  allocationContextName,
  defaultMaximumBlockBytes,
  exportFlag,
  infoType,
  maximumStringBytes,
  optionReply,
  optionType,
} from './nbd-wire.ts'

export interface Offer {
  /** Names and sizes in bytes of what is served. */
  readonly sizes: ReadonlyMap<string, number>
  readonly send: (bytes: Buffer) => void
}

/** What was agreed upon when the transmission begins. */
export interface Agreement {
  readonly name: string
  readonly structuredReplies: boolean
  readonly reportsAllocation: boolean
}

/** The number under which base:allocation is reported. */
export const allocationContextId = 1

/** A client sends a handful of options; more keeps us busy for nothing. */
const maximumOptions = 256
/** Room for a name and any number of sane queries. */
const maximumOptionBytes = 16 * 1024
const preferredBlockBytes = 4096
const exportNamePaddingBytes = 124
const exportFlags =
  exportFlag.hasFlags |
  exportFlag.readOnly |
  exportFlag.sendFlush |
  exportFlag.sendDontFragment |
  exportFlag.canMultiConnect

/** What the client has chosen so far. */
interface Choice {
  structuredReplies: boolean
  /** The export for which base:allocation was asked for last. */
  allocationOf: string | undefined
}

interface Query {
  readonly name: string
  readonly contexts: readonly string[]
}

/** Runs the negotiation; undefined when the connection is to end without a transmission. */
export function* offerDisks(offer: Offer): Negotiation<Agreement | undefined> {
  offer.send(Buffer.concat([initialMagic, optionMagic, uint16(fixedNewstyle | noZeroes)]))
  const clientFlags = (yield 4).readUInt32BE(0)
  if ((clientFlags & fixedNewstyle) === 0 || (clientFlags & ~(fixedNewstyle | noZeroes)) !== 0) return undefined
  const choice: Choice = { structuredReplies: false, allocationOf: undefined }
  for (let count = 0; count < maximumOptions; count++) {
    const header = yield 16
    if (!header.subarray(0, 8).equals(optionMagic)) return undefined
    const option = header.readUInt32BE(8)
    const length = header.readUInt32BE(12)
    if (length > maximumOptionBytes) return undefined
    const data = length === 0 ? Buffer.alloc(0) : yield length
    if (option === optionType.exportName) return begin(offer, choice, data, (clientFlags & noZeroes) !== 0)
    const name = answer(offer, choice, option, data)
    if (option === optionType.abort) return undefined
    if (name !== undefined) return agreed(choice, name)
  }
  return undefined
}

/** Answers one option; the name of the export when the transmission begins with it. */
function answer(offer: Offer, choice: Choice, option: number, data: Buffer): string | undefined {
  const reply = (type: number, payload: Buffer = Buffer.alloc(0)) => offer.send(optionReplyBytes(option, type, payload))
  switch (option) {
    case optionType.abort:
      reply(optionReply.acknowledge)
      return undefined
    case optionType.structuredReply:
      if (data.length > 0) reply(optionReply.invalid)
      else {
        choice.structuredReplies = true
        reply(optionReply.acknowledge)
      }
      return undefined
    case optionType.list:
      if (data.length > 0) reply(optionReply.invalid)
      else {
        for (const name of offer.sizes.keys()) reply(optionReply.server, sized(name))
        reply(optionReply.acknowledge)
      }
      return undefined
    case optionType.info:
    case optionType.go:
      return inform(offer, option, data, reply)
    case optionType.listMetaContext:
    case optionType.setMetaContext:
      answerContexts(offer, choice, option, data, reply)
      return undefined
    default:
      reply(optionReply.unsupported)
      return undefined
  }
}

type Reply = (type: number, payload?: Buffer) => void

/** OPT_INFO and OPT_GO. */
function inform({ sizes }: Offer, option: number, data: Buffer, reply: Reply): string | undefined {
  const asked = readInfoRequest(data)
  const size = asked && sizes.get(asked.name)
  if (asked === undefined || size === undefined) {
    reply(asked === undefined ? optionReply.invalid : optionReply.unknown)
    return undefined
  }
  reply(optionReply.info, Buffer.concat([uint16(infoType.export), uint64(size), uint16(exportFlags)]))
  if (asked.infos.includes(infoType.name))
    reply(optionReply.info, Buffer.concat([uint16(infoType.name), Buffer.from(asked.name)]))
  if (asked.infos.includes(infoType.blockSize)) {
    const blockSizes = [uint32(1), uint32(preferredBlockBytes), uint32(defaultMaximumBlockBytes)]
    reply(optionReply.info, Buffer.concat([uint16(infoType.blockSize), ...blockSizes]))
  }
  reply(optionReply.acknowledge)
  return option === optionType.go ? asked.name : undefined
}

function answerContexts({ sizes }: Offer, choice: Choice, option: number, data: Buffer, reply: Reply): void {
  const isList = option === optionType.listMetaContext
  const query = readContextQuery(data)
  if (!isList) choice.allocationOf = undefined // whatever was chosen before is not any more
  if (query === undefined || !choice.structuredReplies || !sizes.has(query.name)) {
    const isInvalid = query === undefined || !choice.structuredReplies
    reply(isInvalid ? optionReply.invalid : optionReply.unknown)
    return
  }
  const listsAll = isList && (query.contexts.length === 0 || query.contexts.includes('base:'))
  if (listsAll || query.contexts.includes(allocationContextName)) {
    if (!isList) choice.allocationOf = query.name
    reply(optionReply.metaContext, Buffer.concat([uint32(allocationContextId), Buffer.from(allocationContextName)]))
  }
  reply(optionReply.acknowledge)
}

/** OPT_EXPORT_NAME, which has no way to refuse but the end of the connection. */
function begin(offer: Offer, choice: Choice, data: Buffer, withoutZeroes: boolean): Agreement | undefined {
  const name = data.toString('utf8')
  const size = offer.sizes.get(name)
  if (size === undefined) return undefined
  const padding = Buffer.alloc(withoutZeroes ? 0 : exportNamePaddingBytes)
  offer.send(Buffer.concat([uint64(size), uint16(exportFlags), padding]))
  return agreed(choice, name)
}

function agreed({ structuredReplies, allocationOf }: Choice, name: string): Agreement {
  return { name, structuredReplies, reportsAllocation: allocationOf === name }
}

function readInfoRequest(data: Buffer): { name: string; infos: number[] } | undefined {
  const name = readSized(data, 0)
  if (name === undefined || data.length < name.end + 2) return undefined
  const count = data.readUInt16BE(name.end)
  if (data.length !== name.end + 2 + 2 * count) return undefined
  return { name: name.text, infos: Array.from({ length: count }, (_, i) => data.readUInt16BE(name.end + 2 + 2 * i)) }
}

function readContextQuery(data: Buffer): Query | undefined {
  const name = readSized(data, 0)
  if (name === undefined || data.length < name.end + 4) return undefined
  const contexts: string[] = []
  let at = name.end + 4
  for (let left = data.readUInt32BE(name.end); left > 0; left--) {
    const context = readSized(data, at)
    if (context === undefined) return undefined
    contexts.push(context.text)
    at = context.end
  }
  return at === data.length ? { name: name.text, contexts } : undefined
}

function readSized(data: Buffer, at: number): { text: string; end: number } | undefined {
  if (data.length < at + 4) return undefined
  const length = data.readUInt32BE(at)
  const end = at + 4 + length
  if (length > maximumStringBytes || end > data.length) return undefined
  return { text: data.toString('utf8', at + 4, end), end }
}

function optionReplyBytes(option: number, type: number, payload: Buffer): Buffer {
  const magic = [uint32(optionReplyMagicHigh), uint32(optionReplyMagicLow)]
  return Buffer.concat([...magic, uint32(option), uint32(type), uint32(payload.length), payload])
}
