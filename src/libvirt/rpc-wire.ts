/**
 * The wire of libvirt's RPC: XDR items (RFC 4506) and framed messages (libvirt docs, "Libvirt RPC infrastructure").
 * A message is a 32-bit length that counts itself, six 32-bit header words and a payload. Pure and bounded: what the
 * other side sends can never make us allocate more than it has really sent, nor more than `maxMessageBytes`.
 */
import { failure } from '../errors.ts'

export const maxMessageBytes = 32 * 1024 * 1024 + 4
/** libvirt's own limit of one string (REMOTE_STRING_MAX). */
export const maxStringBytes = 4 * 1024 * 1024
const headerBytes = 28

export const messageTypes = { call: 0, reply: 1, event: 2, stream: 3 } as const

export interface RpcMessage {
  readonly program: number
  readonly version: number
  readonly procedure: number
  readonly type: number
  readonly serial: number
  /** 0 ok, 1 error, 2 continue (streams only). */
  readonly status: number
  readonly payload: Buffer
}

/** The other side broke the protocol. */
export const brokenProtocol = (reason: string) => failure('HYPERVISOR_PROTOCOL', { reason })

const padding = (lengthBytes: number): number => (4 - (lengthBytes % 4)) % 4

/** Collects the arguments of a call. */
export class XdrWriter {
  readonly #parts: Buffer[] = []

  u32(value: number): this {
    const part = Buffer.alloc(4)
    part.writeUInt32BE(value)
    this.#parts.push(part)
    return this
  }

  i32(value: number): this {
    const part = Buffer.alloc(4)
    part.writeInt32BE(value)
    this.#parts.push(part)
    return this
  }

  u64(value: bigint): this {
    const part = Buffer.alloc(8)
    part.writeBigUInt64BE(value)
    this.#parts.push(part)
    return this
  }

  /** Bytes of a length that both sides know. */
  fixed(bytes: Buffer): this {
    this.#parts.push(bytes, Buffer.alloc(padding(bytes.length)))
    return this
  }

  string(text: string): this {
    const bytes = Buffer.from(text, 'utf8')
    return this.u32(bytes.length).fixed(bytes)
  }

  optionalString(text: string | undefined): this {
    return text === undefined ? this.u32(0) : this.u32(1).string(text)
  }

  bytes(): Buffer {
    return Buffer.concat(this.#parts)
  }
}

/** Reads the answer of a call; every read is checked against what is really there. */
export class XdrReader {
  readonly #bytes: Buffer
  #offset = 0

  constructor(bytes: Buffer) {
    this.#bytes = bytes
  }

  #take(lengthBytes: number, what: string): Buffer {
    if (lengthBytes > this.#bytes.length - this.#offset) throw brokenProtocol(`${what} reaches beyond the message`)
    const taken = this.#bytes.subarray(this.#offset, this.#offset + lengthBytes)
    this.#offset += lengthBytes
    return taken
  }

  u32(): number {
    return this.#take(4, 'a number').readUInt32BE()
  }

  i32(): number {
    return this.#take(4, 'a number').readInt32BE()
  }

  u64(): bigint {
    return this.#take(8, 'a number').readBigUInt64BE()
  }

  /** An unsigned 64-bit number that must fit a JavaScript number exactly. */
  size(): number {
    const value = this.u64()
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw brokenProtocol(`the size ${value} is beyond all measure`)
    return Number(value)
  }

  fixed(lengthBytes: number): Buffer {
    const bytes = this.#take(lengthBytes, 'opaque data')
    this.#take(padding(lengthBytes), 'padding')
    return bytes
  }

  string(): string {
    const lengthBytes = this.u32()
    if (lengthBytes > maxStringBytes) throw brokenProtocol(`a string of ${lengthBytes} bytes`)
    return this.fixed(lengthBytes).toString('utf8')
  }

  optionalString(): string | undefined {
    return this.u32() === 0 ? undefined : this.string()
  }

  /** A list; each item is at least `leastItemBytes` long, so a lying count fails before anything is allocated. */
  list<Item>(leastItemBytes: number, readItem: (reader: XdrReader) => Item): Item[] {
    const count = this.u32()
    if (count * leastItemBytes > this.#bytes.length - this.#offset) throw brokenProtocol(`a list of ${count} items`)
    return Array.from({ length: count }, () => readItem(this))
  }
}

export function encodeMessage(message: RpcMessage): Buffer {
  const header = Buffer.alloc(headerBytes)
  const lengthBytes = headerBytes + message.payload.length
  const words = [lengthBytes, message.program, message.version, message.procedure, message.type, message.serial]
  for (const [index, word] of [...words, message.status].entries()) header.writeUInt32BE(word >>> 0, index * 4)
  return Buffer.concat([header, message.payload])
}

/** Cuts the byte stream of a socket into messages. */
export class MessageSplitter {
  #chunks: Buffer[] = []
  #storedBytes = 0
  /** Length of the message under way; 0 while not yet known. */
  #expectedBytes = 0

  /** Takes what has arrived; answers with the messages that became complete. */
  push(chunk: Buffer): RpcMessage[] {
    this.#chunks.push(chunk)
    this.#storedBytes += chunk.length
    const complete: RpcMessage[] = []
    while (this.#messageIsComplete()) {
      const all = this.#chunks.length === 1 ? (this.#chunks[0] ?? Buffer.alloc(0)) : Buffer.concat(this.#chunks)
      complete.push(decodeMessage(all.subarray(0, this.#expectedBytes)))
      const rest = all.subarray(this.#expectedBytes)
      this.#chunks = rest.length === 0 ? [] : [rest]
      this.#storedBytes = rest.length
      this.#expectedBytes = 0
    }
    return complete
  }

  #messageIsComplete(): boolean {
    if (this.#expectedBytes === 0) {
      if (this.#storedBytes < 4) return false
      if ((this.#chunks[0]?.length ?? 0) < 4) this.#chunks = [Buffer.concat(this.#chunks)]
      const lengthBytes = this.#chunks[0]?.readUInt32BE() ?? 0
      if (lengthBytes < headerBytes || lengthBytes > maxMessageBytes) {
        throw brokenProtocol(`a message of ${lengthBytes} bytes`)
      }
      this.#expectedBytes = lengthBytes
    }
    return this.#storedBytes >= this.#expectedBytes
  }
}

function decodeMessage(bytes: Buffer): RpcMessage {
  return {
    program: bytes.readUInt32BE(4),
    version: bytes.readUInt32BE(8),
    procedure: bytes.readUInt32BE(12),
    type: bytes.readUInt32BE(16),
    serial: bytes.readUInt32BE(20),
    status: bytes.readUInt32BE(24),
    payload: bytes.subarray(headerBytes),
  }
}
