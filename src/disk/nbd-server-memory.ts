/**
 * So many bytes at once, for all connections of a server together. Whoever wants some waits its turn, first come first
 * served, so that a large request is not passed by for ever.
 */
import { invariant } from '../base/failure.ts'

export interface MemoryBudget {
  /** Runs `work` while `bytes` are set apart for it; at most the whole budget. */
  hold<T>(bytes: number, work: () => Promise<T>): Promise<T>
}

export function openMemoryBudget(totalBytes: number): MemoryBudget {
  let freeBytes = totalBytes
  const waiting: { readonly bytes: number; readonly begin: () => void }[] = []
  const beginNext = () => {
    for (let next = waiting[0]; next !== undefined && next.bytes <= freeBytes; next = waiting[0]) {
      waiting.shift()
      freeBytes -= next.bytes
      next.begin()
    }
  }
  return {
    async hold(bytes, work) {
      invariant(bytes <= totalBytes, `${bytes} bytes are more than there ever are`)
      await new Promise<void>((begin) => {
        waiting.push({ bytes, begin })
        beginNext()
      })
      try {
        return await work()
      } finally {
        freeBytes += bytes
        beginNext()
      }
    },
  }
}
