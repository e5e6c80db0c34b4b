/**
 * A sparse disk in memory that passes test/contract/block-device.contract.ts and can be told to fail.
 * The disk keeps its contents; `open` gives handles, whose disposal closes only the handle.
 */
import type { BlockSink, Extent, LendingSource } from '../../src/disk/block-device.ts'
import { mergeExtents } from '../../src/disk/extents.ts'
import { failure } from '../../src/errors.ts'

export type DiskOperation = 'read' | 'write' | 'flush' | 'extents'

/** Fails the `call`th call (from 1) of an operation, or every one that touches byte `offset`, or (neither) all. */
export interface DiskFault {
  readonly operation: DiskOperation
  readonly call?: number
  readonly offset?: number
  readonly reason?: string
}

export interface MemoryDiskHandle extends LendingSource, BlockSink {
  writeZeroes(offset: number, length: number): Promise<void>
}

const pageBytes = 64 * 1024

export class MemoryDisk {
  readonly sizeBytes: number
  readonly faults: DiskFault[] = []
  readonly calls: Record<DiskOperation, number> = { read: 0, write: 0, flush: 0, extents: 0 }
  /** Handles not yet disposed. */
  openHandles = 0
  readonly #pages = new Map<number, Uint8Array>()

  constructor(sizeBytes: number, faults: readonly DiskFault[] = []) {
    this.sizeBytes = sizeBytes
    this.faults.push(...faults)
  }

  static of(content: Uint8Array): MemoryDisk {
    const disk = new MemoryDisk(content.length)
    disk.put(0, content)
    return disk
  }

  open(): MemoryDiskHandle {
    return new Handle(this)
  }

  /** The whole content, past all faults. */
  content(): Uint8Array {
    const bytes = new Uint8Array(this.sizeBytes)
    this.get(0, bytes)
    return bytes
  }

  get(offset: number, target: Uint8Array): void {
    for (const { page, start, part } of pagesOf(offset, target)) {
      const bytes = this.#pages.get(page)
      if (bytes === undefined) part.fill(0)
      else part.set(bytes.subarray(start, start + part.length))
    }
  }

  /** Pages of zeros are not kept. */
  put(offset: number, data: Uint8Array): void {
    for (const { page, start, part } of pagesOf(offset, data)) {
      const bytes = this.#pages.get(page) ?? new Uint8Array(pageBytes)
      bytes.set(part, start)
      if (bytes.every((byte) => byte === 0)) this.#pages.delete(page)
      else this.#pages.set(page, bytes)
    }
  }

  extents(offset: number, length: number): Extent[] {
    const extents: Extent[] = []
    for (let at = offset; at < offset + length; ) {
      const page = Math.floor(at / pageBytes)
      const end = Math.min((page + 1) * pageBytes, offset + length)
      extents.push({ offset: at, length: end - at, data: this.#pages.has(page) })
      at = end
    }
    return mergeExtents(extents)
  }

  /** The reason why this call shall fail. */
  faultOf(operation: DiskOperation, offset: number, length: number): string | undefined {
    const call = ++this.calls[operation]
    const hit = this.faults.find((fault) => {
      if (fault.operation !== operation) return false
      if (fault.call !== undefined) return fault.call === call
      return fault.offset === undefined || (fault.offset >= offset && fault.offset < offset + length)
    })
    return hit && (hit.reason ?? 'injected fault')
  }
}

class Handle implements MemoryDiskHandle {
  readonly #disk: MemoryDisk
  #isClosed = false

  constructor(disk: MemoryDisk) {
    this.#disk = disk
    disk.openHandles++
  }

  get sizeBytes(): number {
    return this.#disk.sizeBytes
  }

  async read(offset: number, target: Uint8Array): Promise<void> {
    await this.#begin('read', offset, target.length)
    this.#disk.get(offset, target)
  }

  async withBytes(offset: number, length: number, use: (data: Uint8Array) => Promise<void>): Promise<void> {
    const data = new Uint8Array(length)
    await this.read(offset, data)
    await use(data)
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    await this.#begin('write', offset, data.length)
    this.#disk.put(offset, data)
  }

  async writeZeroes(offset: number, length: number): Promise<void> {
    await this.#begin('write', offset, length)
    this.#disk.put(offset, new Uint8Array(length))
  }

  async flush(): Promise<void> {
    await this.#begin('flush', 0, 0)
  }

  async *extents(offset: number, length: number): AsyncGenerator<Extent> {
    await this.#begin('extents', offset, length)
    yield* this.#disk.extents(offset, length)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#isClosed) this.#disk.openHandles--
    this.#isClosed = true
  }

  async #begin(operation: DiskOperation, offset: number, length: number): Promise<void> {
    const code = operation === 'read' || operation === 'extents' ? 'DISK_READ_FAILED' : 'DISK_WRITE_FAILED'
    const fail = (reason: string) => failure(code, { disk: 'memory', offset, reason })
    await new Promise((resolve) => setImmediate(resolve))
    if (this.#isClosed) throw fail('it is closed')
    const isInside = Number.isSafeInteger(offset) && offset >= 0 && length >= 0 && offset + length <= this.sizeBytes
    if (!isInside) throw fail(`the disk ends at ${this.sizeBytes}`)
    const fault = this.#disk.faultOf(operation, offset, length)
    if (fault !== undefined) throw fail(fault)
  }
}

function* pagesOf(offset: number, bytes: Uint8Array): Generator<{ page: number; start: number; part: Uint8Array }> {
  for (let at = 0; at < bytes.length; ) {
    const page = Math.floor((offset + at) / pageBytes)
    const start = (offset + at) % pageBytes
    const part = bytes.subarray(at, at + pageBytes - start)
    yield { page, start, part }
    at += part.length
  }
}
