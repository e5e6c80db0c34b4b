import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { Failure } from '../base/failure.ts'
import { encodeMessage, MessageSplitter, maxMessageBytes, messageTypes, XdrReader, XdrWriter } from './rpc-wire.ts'

const message = (payload: Buffer, serial = 1) => ({
  program: 0x20008086,
  version: 1,
  procedure: 14,
  type: messageTypes.reply,
  serial,
  status: 0,
  payload,
})

const isProtocolFailure = (error: unknown) => error instanceof Failure && error.code === 'HYPERVISOR_PROTOCOL'

describe('XDR', () => {
  it('reads back what it wrote', () => {
    const texts = fc.array(fc.string({ unit: 'binary', maxLength: 20 }), { maxLength: 5 })
    fc.assert(
      fc.property(texts, fc.integer(), fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), (strings, number, large) => {
        const writer = new XdrWriter().i32(number | 0).u64(large)
        for (const text of strings) writer.string(text)
        const reader = new XdrReader(writer.optionalString(undefined).optionalString('x').bytes())
        assert.equal(reader.i32(), number | 0)
        assert.equal(reader.u64(), large)
        for (const text of strings) assert.equal(reader.string(), Buffer.from(text, 'utf8').toString('utf8'))
        assert.equal(reader.optionalString(), undefined)
        assert.equal(reader.optionalString(), 'x')
      }),
    )
  })

  it('pads strings to four bytes', () => {
    assert.equal(new XdrWriter().string('abcde').bytes().toString('hex'), '000000056162636465000000')
  })

  it('refuses to read beyond the end, whatever lengths are claimed', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
        for (const read of [
          (reader: XdrReader) => reader.string(),
          (reader: XdrReader) => reader.optionalString(),
          (reader: XdrReader) => reader.list(24, (item) => item.string()),
          (reader: XdrReader) => reader.size(),
        ]) {
          try {
            read(new XdrReader(Buffer.from(bytes)))
          } catch (error) {
            assert.ok(isProtocolFailure(error), String(error))
          }
        }
      }),
    )
  })

  it('refuses a list that claims more items than there are bytes, before anything is allocated', () => {
    const lie = new XdrWriter().u32(0xffffffff).u32(1).bytes()
    assert.throws(() => new XdrReader(lie).list(4, (reader) => reader.u32()), isProtocolFailure)
  })

  it('refuses a size that no JavaScript number can hold', () => {
    assert.throws(() => new XdrReader(new XdrWriter().u64(2n ** 63n).bytes()).size(), isProtocolFailure)
  })
})

describe('the message splitter', () => {
  it('finds the same messages however the stream is cut', () => {
    const payloads = fc.array(fc.uint8Array({ maxLength: 40 }), { minLength: 1, maxLength: 6 })
    fc.assert(
      fc.property(payloads, fc.array(fc.integer({ min: 1, max: 30 }), { minLength: 1 }), (parts, cuts) => {
        const stream = Buffer.concat(parts.map((part, index) => encodeMessage(message(Buffer.from(part), index))))
        const splitter = new MessageSplitter()
        const found = []
        for (let offset = 0, turn = 0; offset < stream.length; turn += 1) {
          const end = offset + (cuts[turn % cuts.length] ?? 1)
          found.push(...splitter.push(stream.subarray(offset, end)))
          offset = end
        }
        assert.deepEqual(
          found.map(({ serial, payload }) => [serial, payload.toString('hex')]),
          parts.map((part, index) => [index, Buffer.from(part).toString('hex')]),
        )
      }),
    )
  })

  it('refuses messages that are too short or too long as soon as their length is there', () => {
    for (const lengthBytes of [0, 27, maxMessageBytes + 1, 0xffffffff]) {
      const bytes = Buffer.alloc(4)
      bytes.writeUInt32BE(lengthBytes)
      assert.throws(() => new MessageSplitter().push(bytes), isProtocolFailure)
    }
  })
})
