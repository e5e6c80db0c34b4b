/**
 * Blobs: strings of bytes kept as chunks, which are documents and the roots of stream maps.
 */
import type { ChunkStore } from './chunks/chunk-store.ts'
import { check } from './format.ts'
import type { Blob } from './recovery-point.ts'

/** The bytes of a blob, each chunk verified; FormatError. */
export async function readBlob(store: ChunkStore, blob: Blob, maxBytes: number): Promise<Buffer> {
  check(blob.sizeBytes <= maxBytes, `${blob.sizeBytes} bytes are too many`)
  const bytes = Buffer.alloc(blob.sizeBytes)
  let filled = 0
  for (const id of blob.chunks) {
    filled += await store.withChunk(Buffer.from(id, 'hex'), (piece) => {
      check(filled + piece.length <= blob.sizeBytes, 'it is longer than it says')
      bytes.set(piece, filled)
      return piece.length
    })
  }
  check(filled === blob.sizeBytes, 'it is shorter than it says')
  return bytes
}
