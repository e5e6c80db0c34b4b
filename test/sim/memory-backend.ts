/**
 * MemoryBackend: objects in memory, for tests that make many repositories. Keeps the contract of Backend; counts what is
 * stored and read.
 */
import { failure } from '../../src/errors.ts'
import type { Backend, ObjectEntry } from '../../src/repository/storage/backend.ts'

export class MemoryBackend implements Backend {
  readonly location = 'memory'
  readonly objects = new Map<string, Buffer>()
  /** Bytes of objects put, and calls of `read`. */
  putBytes = 0
  reads = 0

  async put(key: string, parts: readonly Uint8Array[]): Promise<'stored' | 'exists'> {
    if (this.objects.has(key)) return 'exists'
    const object = Buffer.concat(parts)
    this.objects.set(key, object)
    this.putBytes += object.length
    return 'stored'
  }

  async get(key: string, maxBytes: number): Promise<Buffer> {
    const object = this.#object(key)
    const reason = `it has ${object.length} bytes`
    if (object.length > maxBytes) throw failure('REPOSITORY_DAMAGED', { path: `${this.location}/${key}`, reason })
    return Buffer.from(object)
  }

  async read(key: string, offset: number, target: Uint8Array): Promise<number> {
    this.reads += 1
    const bytes = this.#object(key).subarray(offset, offset + target.length)
    target.set(bytes)
    return bytes.length
  }

  async *list(prefix: string): AsyncGenerator<ObjectEntry> {
    for (const [key, { length }] of [...this.objects]) if (key.startsWith(prefix)) yield { key, sizeBytes: length }
  }

  async delete(key: string): Promise<void> {
    this.objects.delete(key)
  }

  async sweep(): Promise<void> {
    // nothing is ever half written
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // the objects stay for who opens it again
  }

  #object(key: string): Buffer {
    const object = this.objects.get(key)
    if (object === undefined) throw failure('REPOSITORY_OBJECT_MISSING', { path: `${this.location}/${key}` })
    return object
  }
}
