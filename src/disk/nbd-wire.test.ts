/**
 * NBD's bytes under hostile hands: whatever a server sends, in whatever pieces, the client neither hangs nor grows, and
 * what it reports is NBD_PROTOCOL. And honest replies arrive whole, however they are cut.
 */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { chunk, numbers } from '../../test/sim/nbd-server.ts'
import { Failure } from '../base/failure.ts'
import { negotiate } from './nbd-handshake.ts'
import { PendingReply, ReplyReader } from './nbd-reply-reader.ts'
import {
  commandType,
  encodeRequest,
  maximumBlockStatusBytes,
  maximumOptionReplyBytes,
  printable,
  readSafeUint64,
} from './nbd-wire.ts'

const largestPiece = Math.max(maximumBlockStatusBytes, maximumOptionReplyBytes)
const cookieOf = (cookie: number) => numbers([8, cookie])

/** A reader with reads 1 and 2 (of 1000 bytes at 0 and at 1000), block status 3 and flush 4 in flight. */
function openReader(structuredReplies = true, contexts = [9]) {
  const pending = new Map([
    [1, new PendingReply(commandType.read, 0, new Uint8Array(1000))],
    [2, new PendingReply(commandType.read, 1000, new Uint8Array(1000))],
    [3, new PendingReply(commandType.blockStatus, 0)],
    [4, new PendingReply(commandType.flush, 0)],
  ])
  const finished = new Map<number, PendingReply>()
  const reader = new ReplyReader({
    address: 'test',
    structuredReplies,
    contexts,
    find: (cookie) => pending.get(cookie),
    finish(cookie, reply) {
      pending.delete(cookie)
      finished.set(cookie, reply)
    },
  })
  return { reader, finished }
}

/** Cuts bytes into pieces of the given sizes, over and over. */
function* cut(bytes: Buffer, sizes: readonly number[]): Generator<Buffer> {
  for (let at = 0, i = 0; at < bytes.length; i++) {
    const size = sizes[i % sizes.length] ?? 1
    yield bytes.subarray(at, at + size)
    at += size
  }
}

/** Runs hostile input; only a protocol failure may come of it. */
function assertOnlyProtocolFailures(run: () => void): void {
  try {
    run()
  } catch (error) {
    assert.ok(error instanceof Failure, String(error))
    assert.ok(['NBD_PROTOCOL', 'NBD_EXPORT_REFUSED'].includes(error.code), error.code)
  }
}

function feedHostile(bytes: Buffer, sizes: readonly number[], structuredReplies: boolean): void {
  const { reader } = openReader(structuredReplies)
  assertOnlyProtocolFailures(() => {
    for (const piece of cut(bytes, sizes)) {
      reader.feed(piece)
      assert.ok(reader.destination.length > 0 && reader.destination.length <= largestPiece)
    }
  })
}

const pieceSizes = fc.array(fc.integer({ min: 1, max: 2000 }), { minLength: 1, maxLength: 8 })
const cookie = fc.integer({ min: 0, max: 6 }).map(cookieOf)
const payload = fc.oneof(
  fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
  fc
    .tuple(fc.nat({ max: 2100 }), fc.nat({ max: 1100 }))
    .map(([at, length]) => Buffer.concat([numbers([8, at]), Buffer.alloc(length)])),
  fc.tuple(fc.nat({ max: 2100 }), fc.nat({ max: 1100 })).map(([at, length]) => numbers([8, at], [4, length])),
  fc.array(fc.nat({ max: 3 })).map((lengths) => numbers([4, 9], ...lengths.map((length) => [8, length] as const))),
)
const anyChunk = fc
  .tuple(fc.constantFrom(0, 1, 2, 3, 5, 6, 0x8000, 0x8001, 0x8002, 0xffff), cookie, payload, fc.nat({ max: 3 }))
  .map(([type, to, data, flags]) => chunk(type, to, data, flags))
const anySimpleReply = fc
  .tuple(fc.nat({ max: 40 }), cookie)
  .map(([error, to]) => Buffer.concat([numbers([4, 0x67446698], [4, error]), to]))
const anyStream = fc.array(fc.oneof(anyChunk, anySimpleReply), { maxLength: 20 }).map((parts) => Buffer.concat(parts))

const honestReplies = Buffer.concat([
  chunk(1, cookieOf(1), Buffer.concat([numbers([8, 600]), Buffer.alloc(400, 6)]), 0),
  chunk(1, cookieOf(2), Buffer.concat([numbers([8, 1000]), Buffer.alloc(1000, 2)])),
  chunk(5, cookieOf(3), numbers([4, 9], [4, 4096], [4, 0], [4, 512], [4, 3])),
  chunk(2, cookieOf(1), numbers([8, 0], [4, 599]), 0),
  chunk(1, cookieOf(1), Buffer.concat([numbers([8, 599]), Buffer.alloc(1, 5)]), 0),
  numbers([4, 0x67446698], [4, 0], [8, 4]),
  chunk(0, cookieOf(1), Buffer.alloc(0)),
])

describe('the reader of NBD replies', () => {
  const status = (context: number, flags: number) =>
    chunk(5, cookieOf(3), numbers([4, context], [4, 4096], [4, 0]), flags)

  it('takes one block status of each context that was agreed', () => {
    const { reader, finished } = openReader(true, [9, 4])
    reader.feed(status(4, 0))
    assert.equal(finished.has(3), false)
    reader.feed(status(9, 1))
    assert.deepEqual([...(finished.get(3)?.extents.keys() ?? [])].sort(), [4, 9])
  })

  for (const [what, bytes] of [
    ['a context twice', Buffer.concat([status(9, 0), status(9, 1)])],
    ['one context of two', status(9, 1)],
    ['a context that nobody asked for', status(5, 1)],
  ] as const) {
    it(`refuses a block status with ${what}`, () => {
      const { reader } = openReader(true, [9, 4])
      assert.throws(() => reader.feed(bytes), { code: 'NBD_PROTOCOL' })
    })
  }

  it('puts every byte where it belongs, however the stream is cut', () => {
    fc.assert(
      fc.property(pieceSizes, (sizes) => {
        const { reader, finished } = openReader()
        for (const piece of cut(honestReplies, sizes)) reader.feed(piece)
        const first = Buffer.concat([Buffer.alloc(599), Buffer.alloc(1, 5), Buffer.alloc(400, 6)])
        assert.deepEqual(Buffer.from(finished.get(1)?.target ?? []), first)
        assert.deepEqual(Buffer.from(finished.get(2)?.target ?? []), Buffer.alloc(1000, 2))
        const extents = [
          { length: 4096, flags: 0 },
          { length: 512, flags: 3 },
        ]
        assert.deepEqual(finished.get(3)?.extents.get(9), extents)
        assert.deepEqual([...finished.keys()].sort(), [1, 2, 3, 4])
      }),
    )
  })

  it('reports nothing but a broken protocol on arbitrary bytes', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 3000 }), pieceSizes, fc.boolean(), (bytes, sizes, structured) => {
        feedHostile(Buffer.from(bytes), sizes, structured)
      }),
      { numRuns: 300 },
    )
  })

  it('reports nothing but a broken protocol on well-formed chunks that make no sense', () => {
    fc.assert(
      fc.property(anyStream, pieceSizes, fc.boolean(), (bytes, sizes, structured) => {
        feedHostile(bytes, sizes, structured)
      }),
      { numRuns: 2000 },
    )
  })

  it('survives any one byte of an honest stream being another', () => {
    fc.assert(
      fc.property(fc.nat({ max: honestReplies.length - 1 }), fc.nat({ max: 255 }), pieceSizes, (at, byte, sizes) => {
        const bytes = Buffer.from(honestReplies)
        bytes[at] = byte
        feedHostile(bytes, sizes, true)
      }),
      { numRuns: 1000 },
    )
  })

  it('never calls a read done that has a part missing or sent twice', () => {
    const part = (start: number, length: number, flags: number) =>
      chunk(1, cookieOf(1), Buffer.concat([numbers([8, start]), Buffer.alloc(length)]), flags)
    const broken = { code: 'NBD_PROTOCOL' }
    assert.throws(() => openReader().reader.feed(part(0, 999, 1)), broken)
    assert.throws(() => openReader().reader.feed(Buffer.concat([part(0, 500, 0), part(0, 500, 1)])), broken)
    assert.throws(() => openReader().reader.feed(Buffer.concat([part(500, 500, 0), part(400, 500, 1)])), broken)
  })
})

describe('the negotiation', () => {
  /** Feeds the negotiation from `bytes`; undefined when they do not suffice. */
  function negotiateFrom(bytes: Buffer, context?: string) {
    const steps = negotiate({ address: 'test', exportName: 'disk', context, send: () => undefined })
    let at = 0
    let step = steps.next()
    while (!step.done) {
      assert.ok(step.value > 0 && step.value <= largestPiece)
      if (at + step.value > bytes.length) return undefined
      const part = bytes.subarray(at, at + step.value)
      at += part.length
      step = steps.next(part)
    }
    return step.value
  }

  const reply = (option: number, type: number, data: Buffer = Buffer.alloc(0)) =>
    Buffer.concat([Buffer.from('0003e889045565a9', 'hex'), numbers([4, option], [4, type], [4, data.length]), data])
  const untilContexts = Buffer.concat([
    Buffer.from('NBDMAGICIHAVEOPT'),
    numbers([2, 3]),
    reply(8, 1),
    reply(10, 4, Buffer.concat([numbers([4, 7]), Buffer.from('base:allocation')])),
  ])
  const untilGo = Buffer.concat([
    untilContexts,
    reply(10, 1),
    reply(6, 3, numbers([2, 3], [4, 1], [4, 4096], [4, 65_537])),
    reply(6, 1),
  ])
  const honest = Buffer.concat([untilGo, reply(7, 3, numbers([2, 0], [8, 1_000_000], [2, 0x0105])), reply(7, 1)])

  it('learns what the server offers', () => {
    assert.deepEqual(negotiateFrom(honest), {
      sizeBytes: 1_000_000,
      readOnly: false,
      canFlush: true,
      canWriteZeroes: false,
      canMultiConnect: true,
      maximumBlockBytes: 65_536,
      structuredReplies: true,
      allocationContext: 7,
      namedContext: undefined,
    })
  })

  it('learns the number of the context that was named, and refuses an export that has none', () => {
    const both = Buffer.concat([
      honest.subarray(0, untilContexts.length),
      reply(10, 4, Buffer.concat([numbers([4, 8]), Buffer.from('qemu:dirty-bitmap:b')])),
      honest.subarray(untilContexts.length),
    ])
    assert.equal(negotiateFrom(both, 'qemu:dirty-bitmap:b')?.namedContext, 8)
    assert.equal(negotiateFrom(both, 'qemu:dirty-bitmap:b')?.allocationContext, 7)
    assert.throws(() => negotiateFrom(honest, 'qemu:dirty-bitmap:b'), { code: 'NBD_EXPORT_REFUSED' })
  })

  it('believes no server that gives two contexts one number', () => {
    const same = reply(10, 4, Buffer.concat([numbers([4, 7]), Buffer.from('qemu:dirty-bitmap:b')]))
    const bytes = [honest.subarray(0, untilContexts.length), same, honest.subarray(untilContexts.length)]
    assert.throws(() => negotiateFrom(Buffer.concat(bytes), 'qemu:dirty-bitmap:b'), { code: 'NBD_PROTOCOL' })
  })

  it('says which export is refused and why', () => {
    const refusing = Buffer.concat([untilGo, reply(7, 0x80000006, Buffer.from('none\n'))])
    assert.throws(() => negotiateFrom(refusing), /refused disk: no such export: none/)
  })

  it('reports nothing but a broken protocol on altered or arbitrary bytes', () => {
    const altered = fc.tuple(fc.nat({ max: honest.length - 1 }), fc.nat({ max: 255 })).map(([at, byte]) => {
      const bytes = Buffer.from(honest)
      bytes[at] = byte
      return bytes
    })
    const arbitrary = fc.uint8Array({ maxLength: 500 }).map((bytes) => Buffer.concat([honest.subarray(0, 18), bytes]))
    fc.assert(
      fc.property(fc.oneof(altered, arbitrary), (bytes) => assertOnlyProtocolFailures(() => negotiateFrom(bytes))),
      { numRuns: 2000 },
    )
  })

  it('ends although the server never stops replying', () => {
    const endless = Buffer.concat([
      honest.subarray(0, 18),
      ...Array.from({ length: 100 }, () => reply(8, 3, Buffer.alloc(8))),
    ])
    assert.throws(() => negotiateFrom(endless), { code: 'NBD_PROTOCOL' })
  })
})

describe('NBD numbers', () => {
  it('makes a request of 28 bytes', () => {
    const request = encodeRequest({ command: commandType.read, cookie: 5, offset: 2 ** 40, length: 512 })
    assert.equal(request.toString('hex'), '25609513000000000000000000000005000001000000000000000200')
  })

  it('takes no number for an offset that JavaScript cannot hold', () => {
    assert.equal(readSafeUint64(Buffer.from('001fffffffffffff', 'hex'), 0), Number.MAX_SAFE_INTEGER)
    assert.equal(readSafeUint64(Buffer.from('0020000000000000', 'hex'), 0), -1)
  })

  it('lets no control character of a server into a message', () => {
    assert.equal(printable('a\u001b[31m\nb'), 'a [31m b')
  })
})
