/**
 * A backend that moves no more bytes per second than it may: what is put, what is got, or both. Bytes count as they are
 * kept (compressed), and the objects that hold no data count too.
 */
import type { RateLimit } from '../../base/rate-limit.ts'
import type { Backend } from './backend.ts'

export interface BackendLimits {
  readonly put?: RateLimit | undefined
  readonly get?: RateLimit | undefined
  /** Ends the waiting for a limit, which then rejects. What is asked for afterwards is not limited: cleanup must not wait. */
  readonly signal?: AbortSignal
}

/** Disposal disposes `backend`. Without any limit it is `backend` itself. */
export function limitedBackend(backend: Backend, { put, get, signal }: BackendLimits): Backend {
  if (put === undefined && get === undefined) return backend
  const wait = async (limit: RateLimit | undefined, bytes: number): Promise<void> => {
    if (signal?.aborted !== true) await limit?.take(bytes, signal)
  }
  return {
    location: backend.location,
    async put(key, parts) {
      await wait(
        put,
        parts.reduce((sum, part) => sum + part.length, 0),
      )
      return backend.put(key, parts)
    },
    async get(key, maxBytes) {
      const object = await backend.get(key, maxBytes)
      await wait(get, object.length) // its length is known only now
      return object
    },
    async read(key, offset, target) {
      await wait(get, target.length)
      return backend.read(key, offset, target)
    },
    ...(backend.forget && { forget: (key: string) => backend.forget?.(key) ?? Promise.resolve() }),
    list: (prefix) => backend.list(prefix),
    delete: (key) => backend.delete(key),
    sweep: () => backend.sweep(),
    [Symbol.asyncDispose]: () => backend[Symbol.asyncDispose](),
  }
}
