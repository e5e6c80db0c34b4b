/**
 * Disks that are read or written no faster than a limit. Holes cost nothing: they are neither read nor written.
 */
import type { RateLimit } from '../base/rate-limit.ts'
import { type BlockSink, type BlockSource, bytesOf } from './block-device.ts'

/** `source`, each read of it waiting for the limit; the signal ends the waiting. Disposal disposes `source`. */
export function limited(source: BlockSource, limit: RateLimit, signal?: AbortSignal): BlockSource {
  return {
    sizeBytes: source.sizeBytes,
    async read(offset, target) {
      await limit.take(target.length, signal)
      await source.read(offset, target)
    },
    ...(source.readParts && {
      async readParts(offset: number, targets: readonly Uint8Array[]) {
        await limit.take(bytesOf(targets), signal)
        await source.readParts?.(offset, targets)
      },
    }),
    extents: (offset, length) => source.extents(offset, length),
    [Symbol.asyncDispose]: () => source[Symbol.asyncDispose](),
  }
}

/** `sink`, each write to it waiting for the limit; the signal ends the waiting. Disposal disposes `sink`. */
export function limitedSink(sink: BlockSink, limit: RateLimit, signal?: AbortSignal): BlockSink {
  return {
    sizeBytes: sink.sizeBytes,
    async write(offset, data) {
      await limit.take(data.length, signal)
      await sink.write(offset, data)
    },
    ...(sink.writeParts && {
      async writeParts(offset: number, parts: readonly Uint8Array[]) {
        await limit.take(bytesOf(parts), signal)
        await sink.writeParts?.(offset, parts)
      },
    }),
    flush: () => sink.flush(),
    [Symbol.asyncDispose]: () => sink[Symbol.asyncDispose](),
  }
}
