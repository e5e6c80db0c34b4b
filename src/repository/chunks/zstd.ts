/**
 * zstd from buffer to buffer, in contexts that are kept. Node.js's zstdCompressSync makes a context, a stream and the memory
 * of the result anew with each call, a fifth of the time of a chunk; what its streams are made of takes both buffers.
 * That part of Node.js is internal: where it is not as expected, the public functions are used, which write the same bytes.
 */
import {
  constants,
  createZstdCompress,
  createZstdDecompress,
  type ZstdCompress,
  ZstdDecompress,
  zstdCompressSync,
  zstdDecompressSync,
} from 'node:zlib'
import { freeNow } from './free-memory.ts'

/** What a stream of node:zlib works with. */
interface Internals {
  readonly _handle?: {
    writeSync?(
      flush: number,
      source: Uint8Array,
      sourceAt: number,
      sourceBytes: number,
      target: Uint8Array,
      targetAt: number,
      targetBytes: number,
    ): void
    reset?(): void
    onerror?: () => void
  } | null
  /** After a write: how many bytes of the target and of the source are left. */
  readonly _writeState?: Uint32Array
}

/** What a call wrote; undefined when the target is too short, bytes of the source are left, or there was an error. */
type Context = (source: Uint8Array, target: Uint8Array) => number | undefined

/** Undefined where Node.js has other internals. */
function openContext(stream: (ZstdCompress | ZstdDecompress) & Internals): Context | undefined {
  const { _handle: handle, _writeState: left } = stream
  if (typeof handle?.writeSync !== 'function' || typeof handle.reset !== 'function') return undefined
  if (!(left instanceof Uint32Array)) return undefined
  const { writeSync, reset } = handle
  let failed = false
  handle.onerror = () => {
    failed = true
  }
  return (source, target) => {
    failed = false
    writeSync.call(handle, constants.ZSTD_e_end, source, 0, source.length, target, 0, target.length)
    const [targetLeft = 0, sourceLeft = 0] = left
    // What was cut off leaves it in the midst of a frame.
    if (stream instanceof ZstdDecompress) reset.call(handle)
    return failed || sourceLeft > 0 ? undefined : target.length - targetLeft
  }
}

/** What `compress` needs room for. */
export const frameBytesMax = (plainBytes: number) => plainBytes + Math.ceil(plainBytes / 128) + 512

const openCompressor = (level: number) =>
  openContext(createZstdCompress({ params: { [constants.ZSTD_c_compressionLevel]: level } }))
const openDecompressor = () => openContext(createZstdDecompress())

/** Whether this Node.js has what contexts are kept with. */
export const keepsContexts = () => openCompressor(1) !== undefined && openDecompressor() !== undefined

let compressor: { readonly level: number; readonly context: Context | undefined } | undefined
let decompressor: { readonly context: Context | undefined } | undefined

/** Compresses `source` into `target`, which has room for `frameBytesMax`; answers how many bytes it took. */
export function compress(source: Uint8Array, level: number, target: Uint8Array): number {
  if (compressor?.level !== level) compressor = { level, context: openCompressor(level) }
  return compressor.context?.(source, target) ?? compressAnew(source, level, target)
}

/** As `compress`, the public way. */
export function compressAnew(source: Uint8Array, level: number, target: Uint8Array): number {
  const packed = zstdCompressSync(source, {
    // One piece for all there can be: with Node's 16 KiB pieces this takes two to three times as long.
    chunkSize: target.length,
    pledgedSrcSize: source.length,
    params: { [constants.ZSTD_c_compressionLevel]: level },
  })
  const packedBytes = packed.length
  target.set(packed)
  freeNow(packed)
  return packedBytes
}

/** Whether `source` is a frame of exactly `target.length` bytes, which then stand in `target`; else that holds anything. */
export function decompress(source: Uint8Array, target: Uint8Array): boolean {
  decompressor ??= { context: openDecompressor() }
  return decompressor.context?.(source, target) === target.length || decompressAnew(source, target)
}

/** As `decompress`, the public way. */
export function decompressAnew(source: Uint8Array, target: Uint8Array): boolean {
  try {
    const plain = zstdDecompressSync(source, { chunkSize: target.length + 64, maxOutputLength: target.length })
    if (plain.length !== target.length) return false
    target.set(plain)
    freeNow(plain)
    return true
  } catch {
    return false // what the library says of it helps nobody
  }
}
