/**
 * Disks that are read or written no faster than a limit. Holes cost nothing: they are neither read nor written.
 */
import type { RateLimit } from '../base/rate-limit.ts'
import type { BlockSink, BlockSource } from './block-device.ts'

/** `source`, each read of it waiting for the limit; the signal ends the waiting. Disposal disposes `source`. */
export function limited(source: BlockSource, limit: RateLimit, signal?: AbortSignal): BlockSource {
  return {
    sizeBytes: source.sizeBytes,
    async read(offset, target) {
      await limit.take(target.length, signal)
      await source.read(offset, target)
    },
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
    flush: () => sink.flush(),
    [Symbol.asyncDispose]: () => sink[Symbol.asyncDispose](),
  }
}
