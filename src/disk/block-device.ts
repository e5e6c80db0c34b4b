/**
 * What a disk is to the data path: bytes at offsets, and which of them hold data.
 * Offsets and lengths are bytes, as safe integers. See docs/protocol.md, "Transfer".
 */

/** A byte range of a disk. `data` false means that the range reads as zeros and need not be read. */
export interface Extent {
  readonly offset: number
  readonly length: number
  readonly data: boolean
}

/** A disk that can be read. Disposal closes the connection; reads under way reject. */
export interface BlockSource extends AsyncDisposable {
  readonly sizeBytes: number
  /** Fills `target` from `offset`; several calls may be in flight. Rejects with DISK_READ_FAILED and the offset. */
  read(offset: number, target: Uint8Array): Promise<void>
  /** As `read`, into several buffers one after the other, in one request. Where it is missing, `read` does for each. */
  readParts?(offset: number, targets: readonly Uint8Array[]): Promise<void>
  /** The ranges of [offset, offset+length), ascending, gapless, neighbours of one kind merged where cheap. */
  extents(offset: number, length: number): AsyncIterable<Extent>
}

/** A disk whose bytes lie in memory of its own when they are read. */
export interface LendingSource extends BlockSource {
  /** As `read`, without a copy where that is possible: the bytes are valid until `use` has resolved. */
  withBytes(offset: number, length: number, use: (data: Uint8Array) => Promise<void>): Promise<void>
  /** Whether these are the bytes of the whole chunk at `offset`, told by their hash and not by reading it where possible. */
  holds?(offset: number, data: Buffer): Promise<boolean>
}

/** A disk that can be written. Disposal closes without flushing: call `flush` before you call it complete. */
export interface BlockSink extends AsyncDisposable {
  readonly sizeBytes: number
  /** Writes `data` at `offset`; several calls may be in flight. Rejects with DISK_WRITE_FAILED and the offset. */
  write(offset: number, data: Uint8Array): Promise<void>
  /** As `write`, what stands in several buffers one after the other, in one request. Where it is missing, `write` does for each. */
  writeParts?(offset: number, parts: readonly Uint8Array[]): Promise<void>
  /** Everything written so far is on stable storage when it resolves. */
  flush(): Promise<void>
}

export const bytesOf = (parts: readonly Uint8Array[]): number => parts.reduce((sum, { length }) => sum + length, 0)

/** Calls `each` with every part and where it lies, if the first lies at `offset`; one after the other. */
export async function oneByOne(
  offset: number,
  parts: readonly Uint8Array[],
  each: (at: number, part: Uint8Array) => Promise<void>,
): Promise<void> {
  let at = offset
  for (const part of parts) {
    await each(at, part)
    at += part.length
  }
}
