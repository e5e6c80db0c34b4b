/**
 * Buffers all threads see, aligned to memory pages, so that what stands in them can be written past the kernel's cache.
 * Shared memory of WebAssembly is the only one Node.js aligns.
 */
import { pageBytes } from '../../base/direct-file.ts'

const wasmPageBytes = 65536
/** A memory of WebAssembly reserves address space: small buffers share one. */
const memoryBytes = 4 * 1024 * 1024

/** What is used of it: TypeScript knows it only together with all of a browser. */
declare const WebAssembly: {
  Memory: new (pages: { initial: number; maximum: number; shared: true }) => { readonly buffer: SharedArrayBuffer }
}

/** A buffer all threads see. */
export type SharedBuffer = Buffer<SharedArrayBuffer>

/** A pool of buffers of one size, in which byte `pageAt` begins a memory page. It grows as needed and never shrinks. */
export class AlignedBuffers {
  readonly #bufferBytes: number
  readonly #leadBytes: number
  readonly #strideBytes: number
  readonly #free: SharedBuffer[] = []

  constructor(bufferBytes: number, pageAt: number) {
    this.#bufferBytes = bufferBytes
    this.#leadBytes = (pageBytes - (pageAt % pageBytes)) % pageBytes
    this.#strideBytes = Math.ceil((this.#leadBytes + bufferBytes) / pageBytes) * pageBytes
  }

  take(): SharedBuffer {
    return this.#free.pop() ?? this.#grow()
  }

  give(buffer: SharedBuffer): void {
    this.#free.push(buffer)
  }

  #grow(): SharedBuffer {
    const count = Math.max(1, Math.floor(memoryBytes / this.#strideBytes))
    const pages = Math.ceil((count * this.#strideBytes) / wasmPageBytes)
    const { buffer } = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true })
    const carved = Array.from({ length: count }, (_, index) =>
      Buffer.from(buffer, index * this.#strideBytes + this.#leadBytes, this.#bufferBytes),
    )
    const [first, ...others] = carved as [SharedBuffer, ...SharedBuffer[]]
    this.#free.push(...others)
    return first
  }
}
