/**
 * The byte layouts: what is written is read, one flipped bit is noticed, and hostile bytes are refused, never believed.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import fc from 'fast-check'
import * as z from 'zod'
import {
  decodeIndex,
  decodePackEnd,
  encodeIndex,
  encodePackFooter,
  encodeTocEntry,
  encodings,
  FormatError,
  type PackListing,
  packHeaderBytes,
  readPackHeader,
  readRecordHeader,
  recordBytes,
  recordHeaderBytes,
  recordKinds,
  recordSealBytes,
  scanPack,
  type TocEntry,
  tocEntries,
  writePackHeader,
  writeRecordHeader,
} from './format.ts'
import { plainSeal } from './keys/seal.ts'
import { sealJson, unsealJson } from './keys/sealed-json.ts'

const packHeader = { repositoryId: '7e1b0c9e-1111-4222-8333-444455556666', chunkSizeBytes: 65536 }

const header = fc
  .record({
    id: fc.uint8Array({ minLength: 32, maxLength: 32 }).map((bytes) => Buffer.from(bytes)),
    kind: fc.constantFrom(...Object.values(recordKinds)),
    storedBytes: fc.integer({ min: 1, max: 2000 }),
    saved: fc.nat(5000),
    encrypted: fc.boolean(),
  })
  .map(({ saved, storedBytes, ...rest }) => ({
    ...rest,
    storedBytes: storedBytes + (rest.encrypted ? recordSealBytes : 0),
    plainBytes: storedBytes + saved,
    encoding: saved === 0 ? encodings.raw : encodings.zstd,
  }))

const plainOf = (entry: TocEntry) => ({ ...entry, id: entry.id.toString('hex') })

/** A pack of records with random payloads. */
function makePack(headers: readonly Omit<TocEntry, 'offset'>[]): {
  pack: Buffer
  entries: TocEntry[]
  listing: PackListing
} {
  const start = Buffer.alloc(packHeaderBytes)
  writePackHeader(start, packHeader)
  const parts: Buffer[] = [start]
  const entries: TocEntry[] = []
  let offset = packHeaderBytes
  for (const one of headers) {
    const record = Buffer.alloc(recordBytes(one.storedBytes))
    writeRecordHeader(record, 0, one)
    record.set(randomBytes(one.storedBytes), recordHeaderBytes)
    parts.push(record)
    entries.push({ ...one, offset })
    offset += record.length
  }
  const toc = Buffer.concat(entries.map(encodeTocEntry))
  const { footer, digest } = encodePackFooter(plainSeal, toc, offset)
  const pack = Buffer.concat([...parts, toc, footer])
  return { pack, entries, listing: { pointId: '20261122T010203Z-ab2c', digest, sizeBytes: pack.length, toc } }
}

test('a pack tells what it holds three ways: by its table of contents, by an index, by a walk', () => {
  fc.assert(
    fc.property(fc.array(header, { maxLength: 12 }), (headers) => {
      const { pack, entries, listing } = makePack(headers)
      assert.deepEqual(readPackHeader(pack), packHeader)
      const { toc, digest } = decodePackEnd(plainSeal, pack)
      assert.deepEqual([...tocEntries(toc)].map(plainOf), entries.map(plainOf))
      assert.deepEqual([...scanPack(pack)].map(plainOf), entries.map(plainOf))
      const index = Buffer.concat(encodeIndex(plainSeal, [listing, listing]).parts)
      const listings = [...decodeIndex(plainSeal, index)]
      assert.equal(listings.length, 2)
      assert.deepEqual([...tocEntries(listings[1]?.toc ?? Buffer.alloc(0))].map(plainOf), entries.map(plainOf))
      assert.deepEqual(listings[0]?.digest, digest)
      assert.equal(listings[0]?.pointId, listing.pointId)
    }),
    { numRuns: 50 },
  )
})

test('a record header with any bit flipped is refused', () => {
  fc.assert(
    fc.property(header, fc.nat(recordHeaderBytes * 8 - 1), (one, bit) => {
      const bytes = Buffer.alloc(recordHeaderBytes)
      writeRecordHeader(bytes, 0, one)
      bytes[bit >> 3] = (bytes[bit >> 3] ?? 0) ^ (1 << (bit & 7))
      assert.throws(() => readRecordHeader(bytes), FormatError)
    }),
  )
})

test('an index with any bit flipped, or cut anywhere, is refused before anything of it is used', () => {
  const { listing } = makePack([
    { id: randomBytes(32), kind: 1, encoding: 0, encrypted: false, storedBytes: 10, plainBytes: 10 },
    { id: randomBytes(32), kind: 2, encoding: 1, encrypted: false, storedBytes: 10, plainBytes: 20 },
  ])
  const index = Buffer.concat(encodeIndex(plainSeal, [listing]).parts)
  for (let bit = 0; bit < index.length * 8; bit += 1) {
    const spoiled = Buffer.from(index)
    spoiled[bit >> 3] = (spoiled[bit >> 3] ?? 0) ^ (1 << (bit & 7))
    assert.throws(() => decodeIndex(plainSeal, spoiled).next(), FormatError)
  }
  for (let length = 0; length < index.length; length += 1) {
    assert.throws(() => decodeIndex(plainSeal, index.subarray(0, length)).next(), FormatError)
  }
})

test('after damage within a pack the walk finds every other record again', () => {
  const one = {
    kind: recordKinds.chunk,
    encoding: encodings.raw,
    encrypted: false,
    storedBytes: 1000,
    plainBytes: 1000,
  }
  const { pack, entries } = makePack(Array.from({ length: 5 }, () => ({ ...one, id: randomBytes(32) })))
  const second = entries[1]?.offset ?? 0
  pack.fill(0x55, second + 3, second + 300)
  const found = [...scanPack(pack)].map(({ offset }) => offset)
  assert.deepEqual(
    found,
    entries.map(({ offset }) => offset).filter((offset) => offset !== second),
  )
})

test('bytes from anywhere are refused, and do nothing else', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
      const hostile = Buffer.from(bytes)
      const readers = [
        () => readRecordHeader(hostile),
        () => readPackHeader(hostile),
        () => decodePackEnd(plainSeal, hostile),
        () => [...decodeIndex(plainSeal, hostile)],
        () => unsealJson(plainSeal, 'recovery point', 'points/x.json', hostile, z.object({})),
      ]
      for (const read of readers) assert.throws(read, FormatError)
      for (const _ of scanPack(hostile)) assert.fail('a record in noise')
    }),
  )
})

test('a record that says it is larger than any may be is refused though its checksum is right', () => {
  const bytes = Buffer.alloc(recordHeaderBytes)
  const one = { id: randomBytes(32), kind: recordKinds.chunk, encoding: encodings.zstd, encrypted: false }
  writeRecordHeader(bytes, 0, { ...one, storedBytes: 10, plainBytes: 64 * 1024 * 1024 })
  assert.throws(() => readRecordHeader(bytes), /67108864 bytes/)
  writeRecordHeader(bytes, 0, { ...one, storedBytes: 20, plainBytes: 10 })
  assert.throws(() => readRecordHeader(bytes), FormatError)
  writeRecordHeader(bytes, 0, { ...one, encrypted: true, storedBytes: 10 + recordSealBytes + 1, plainBytes: 10 })
  assert.throws(() => readRecordHeader(bytes), FormatError)
  writeRecordHeader(bytes, 0, { ...one, encrypted: true, storedBytes: recordSealBytes, plainBytes: 10 })
  assert.throws(() => readRecordHeader(bytes), FormatError)
})

test('sealed JSON comes back, and not with one character changed', () => {
  const shape = z.object({ name: z.string() })
  const sealed = sealJson(plainSeal, 'thing', 'things/one', { name: 'a "name"\n' })
  assert.deepEqual(unsealJson(plainSeal, 'thing', 'things/one', sealed, shape), { name: 'a "name"\n' })
  assert.throws(() => unsealJson(plainSeal, 'other thing', 'things/one', sealed, shape), FormatError)
  for (let at = sealed.indexOf('\n') + 1; at < sealed.length; at += 1) {
    const spoiled = Buffer.from(sealed)
    spoiled[at] = (spoiled[at] ?? 0) ^ 1
    assert.throws(() => unsealJson(plainSeal, 'thing', 'things/one', spoiled, shape), FormatError)
  }
})
