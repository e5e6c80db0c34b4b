/**
 * Backend: where the objects of a repository are kept (a directory or an object store).
 * The contract is small enough for S3: put a whole object if it is absent, read a range, list a prefix, delete.
 * Every object is written once and never changed. test/contract/backend.contract.ts is the contract as tests.
 *
 * Retry law: a backend retries what is worth retrying (a connection that broke, a server that is busy) by itself and
 * within its own limits; what it rejects with is final. Nobody above a backend retries.
 */

export interface ObjectEntry {
  readonly key: string
  readonly sizeBytes: number
}

/** Disposal closes files and connections; operations under way may reject. */
export interface Backend extends AsyncDisposable {
  /** What an operator would call this place: a path or a URL. */
  readonly location: string
  /**
   * Stores the object made of `parts`, all of it or nothing, on stable storage when it resolves.
   * 'exists' when the key was there before: the old object is untouched. Of several that put one key at once exactly
   * one gets 'stored'. The buffers belong to the backend until the promise settles. REPOSITORY_FULL, REPOSITORY_IO.
   */
  put(key: string, parts: readonly Uint8Array[]): Promise<'stored' | 'exists'>
  /** The object as it is now, not as it was before; the buffer is the caller's. REPOSITORY_OBJECT_MISSING when there is none; REPOSITORY_DAMAGED when it is longer than `maxBytes`; REPOSITORY_IO. */
  get(key: string, maxBytes: number): Promise<Buffer>
  /**
   * Fills `target` (which may be shared memory) with the object's bytes from `offset` on; answers how many there were.
   * REPOSITORY_OBJECT_MISSING, REPOSITORY_IO.
   */
  read(key: string, offset: number, target: Uint8Array): Promise<number>
  /** Every object whose key begins with `prefix` (which ends in '/' or is empty), in no order. */
  list(prefix: string): AsyncIterable<ObjectEntry>
  /** The object is gone when it resolves; that there was none is no error. */
  delete(key: string): Promise<void>
  /** Removes what writers that are no more left half written; leaves alone what a living one is writing. */
  sweep(): Promise<void>
  /**
   * Only where copies of manifests and indexes are kept: the next `get` of `key` asks the store. For a reader
   * whose proof failed, or who has to know that the object is there still.
   */
  forget?(key: string): Promise<void>
}

const keyPattern = /^[A-Za-z0-9][A-Za-z0-9._-]*(\/[A-Za-z0-9][A-Za-z0-9._-]*)*$/

/** True for a key every backend can hold: no empty part, none that begins with a dot, at most 200 characters. */
export function isObjectKey(key: string): boolean {
  return key.length <= 200 && keyPattern.test(key)
}
