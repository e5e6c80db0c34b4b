/**
 * Slots: at most so many pieces of work at once. Whoever takes one waits its turn and gives it back.
 */
export interface Slots {
  /** Resolves when there is a free slot, first come first served. */
  take(): Promise<void>
  give(): void
}

export function openSlots(count: number): Slots {
  let free = count
  const waiting: (() => void)[] = []
  return {
    take() {
      if (free > 0) {
        free -= 1
        return Promise.resolve()
      }
      return new Promise((resolve) => waiting.push(resolve))
    },
    give() {
      const next = waiting.shift()
      if (next === undefined) free += 1
      else next()
    },
  }
}

/** Runs `work` in one slot. */
export async function inSlot<T>(slots: Slots, work: () => Promise<T>): Promise<T> {
  await slots.take()
  try {
    return await work()
  } finally {
    slots.give()
  }
}
