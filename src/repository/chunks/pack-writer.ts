/**
 * PackWriter: puts the records of one draft into packs. Records go into a buffer of one pack; full packs are put to the
 * backend while the next one fills. Six packs in memory, never more. See docs/repository-format.md, "Packs".
 */

import {
  encodePackFooter,
  encodeTocEntry,
  objectKeys,
  type PackHeader,
  type PackListing,
  packFooterBytes,
  packHeaderBytes,
  packSizeBytes,
  type RecordHeader,
  recordBytes,
  recordHeaderBytes,
  tocEntryBytes,
  writePackHeader,
  writeRecordHeader,
} from '../format.ts'
import type { Seal } from '../keys/seal.ts'
import type { Backend } from '../storage/backend.ts'
import { AlignedBuffers, type SharedBuffer } from './aligned-buffers.ts'
import { asBuffer } from './blake3.ts'

/** Packs on their way to the backend while one fills: storage that answers late is not waited for. */
const packsInFlight = 5

/** The process's; aligned, so that packs can be written past the kernel's cache. */
const packBuffers = new AlignedBuffers(packSizeBytes, 0)

interface OpenPack {
  readonly buffer: SharedBuffer
  readonly toc: Buffer[]
  usedBytes: number
}

export class PackWriter {
  readonly #backend: Backend
  readonly #seal: Seal
  readonly #pointId: string
  readonly #header: PackHeader
  readonly #listings: PackListing[] = []
  #open: OpenPack | undefined
  #appending: Promise<void> = Promise.resolve()
  readonly #puts = new Set<Promise<void>>()

  constructor(backend: Backend, seal: Seal, pointId: string, header: PackHeader) {
    this.#backend = backend
    this.#seal = seal
    this.#pointId = pointId
    this.#header = header
  }

  /** Resolves when the record is in a pack (not yet on stable storage) and `payload` may be used again. */
  append(header: RecordHeader, payload: Uint8Array): Promise<void> {
    const appended = this.#appending.then(() => this.#append(header, payload))
    this.#appending = appended.catch(() => undefined) // whoever called append is told
    return appended
  }

  /** Puts what is left; every record is on stable storage when it resolves. Answers all packs; nothing may be appended after. */
  async finish(): Promise<PackListing[]> {
    await this.#appending
    if (this.#open !== undefined) this.#put(this.#open)
    this.#open = undefined
    await this.settle()
    return this.#listings
  }

  /** Waits until no put is under way. Rejects with the first that failed. */
  async settle(): Promise<void> {
    const outcomes = await Promise.allSettled(this.#puts)
    for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason
  }

  async #append(header: RecordHeader, payload: Uint8Array): Promise<void> {
    const pack = await this.#packWithRoom(recordBytes(header.storedBytes))
    const offset = pack.usedBytes
    writeRecordHeader(pack.buffer, offset, header)
    // Not set, which is slow for what lies unaligned in shared memory, as encrypted records do.
    asBuffer(payload).copy(pack.buffer, offset + recordHeaderBytes, 0, payload.length)
    pack.usedBytes = offset + recordBytes(header.storedBytes)
    pack.buffer.fill(0, offset + recordHeaderBytes + header.storedBytes, pack.usedBytes)
    pack.toc.push(encodeTocEntry({ ...header, offset }))
  }

  async #packWithRoom(neededBytes: number): Promise<OpenPack> {
    if (this.#open !== undefined) {
      const endBytes = (this.#open.toc.length + 1) * tocEntryBytes + packFooterBytes
      if (this.#open.usedBytes + neededBytes + endBytes <= packSizeBytes) return this.#open
      this.#put(this.#open)
      this.#open = undefined
    }
    while (this.#puts.size >= packsInFlight) await Promise.race(this.#puts)
    const buffer = packBuffers.take()
    writePackHeader(buffer, this.#header)
    this.#open = { buffer, toc: [], usedBytes: packHeaderBytes }
    return this.#open
  }

  #put(pack: OpenPack): void {
    const toc = Buffer.concat(pack.toc)
    const { footer, digest } = encodePackFooter(this.#seal, toc, pack.usedBytes)
    const parts = [pack.buffer.subarray(0, pack.usedBytes), toc, footer]
    const put = this.#backend.put(objectKeys.pack(this.#pointId, digest), parts).then(() => {
      const sizeBytes = pack.usedBytes + toc.length + footer.length
      this.#listings.push({ pointId: this.#pointId, digest, sizeBytes, toc })
      packBuffers.give(pack.buffer)
      this.#puts.delete(put)
    })
    put.catch(() => undefined) // a put that failed stays in the set and is thrown to whoever waits next
    this.#puts.add(put)
  }
}
