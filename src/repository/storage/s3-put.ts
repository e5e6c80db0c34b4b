/**
 * One put to an object store, however often its request is repeated. It carries a nonce, so that the object of the put's
 * own first attempt, whose answer was lost, is told from another writer's.
 */
import { randomUUID } from 'node:crypto'
import type { S3Connection } from './s3-connection.ts'
import { isNotImplemented, isTaken } from './s3-errors.ts'

export type PutOutcome = 'stored' | 'exists'

/** Calls to the returned function are the attempts of one put: one after the other, until it does not throw. */
export function putIfAbsent(connection: S3Connection, name: string, body: Buffer, honoursConditions: boolean) {
  const nonce = randomUUID()
  let inDoubt = false // an attempt may have stored the object

  async function whose(signal: AbortSignal): Promise<PutOutcome | undefined> {
    const found = await connection.head(name, signal)
    if (found === undefined) return undefined
    return found.nonce === nonce && found.sizeBytes === body.length ? 'stored' : 'exists'
  }

  return async (signal: AbortSignal): Promise<PutOutcome> => {
    // A store without conditions is asked before. Two that race there replace each other's object, which is harmless: the
    // names of packs and indexes are their contents' digests, and a recovery point's name belongs to one draft.
    const there = inDoubt || !honoursConditions ? await whose(signal) : undefined
    if (there !== undefined) return there
    const wasInDoubt = inDoubt
    inDoubt = true
    try {
      await connection.put(name, body, nonce, honoursConditions, signal)
      return 'stored'
    } catch (error) {
      if (!isTaken(error)) throw error
      // The first attempt may arrive after it was given up.
      return (wasInDoubt ? await whose(signal) : undefined) ?? 'exists'
    }
  }
}

/**
 * Whether the store refuses to replace an object when it is told to: seen by trying it with `name`, which nobody else has.
 * The caller removes that object.
 */
export function findConditions(connection: S3Connection, name: string) {
  return async (signal: AbortSignal): Promise<boolean> => {
    try {
      // A repeated first one is refused as well, and then all is known.
      for (let time = 0; time < 2; time++) await connection.put(name, Buffer.alloc(0), randomUUID(), true, signal)
      return false
    } catch (error) {
      if (isTaken(error)) return true
      if (isNotImplemented(error)) return false
      throw error
    }
  }
}
