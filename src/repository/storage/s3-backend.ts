/**
 * A backend in a bucket of an S3 store. See docs/s3.md and docs/repository-format.md, "Crash safety".
 * An object is one put: it is there whole or not at all, and durable when the store has answered. Multipart uploads are
 * never made, so nothing is ever half written; those of other programs are not touched.
 */
import { randomUUID } from 'node:crypto'
import type { Readable } from 'node:stream'
import { type Clock, systemClock } from '../../base/clock.ts'
import { invariant } from '../../base/failure.ts'
import { failure } from '../../errors.ts'
import { type Backend, isObjectKey, type ObjectEntry } from './backend.ts'
import { type S3Address, s3AddressText } from './s3-address.ts'
import { type Attempts, openAttempts, type S3Limits, s3Limits } from './s3-attempts.ts'
import { type ListedObject, S3Connection } from './s3-connection.ts'
import { cutOff, s3Failure } from './s3-errors.ts'
import { findConditions, type PutOutcome, putIfAbsent } from './s3-put.ts'

export interface S3BackendOptions {
  readonly limits?: Partial<S3Limits>
  readonly clock?: Clock
}

/** Opens the backend at `address`. The store is not asked before it is used. Disposal closes the connections. */
export function openS3Backend(address: S3Address, { limits, clock = systemClock }: S3BackendOptions = {}): Backend {
  return new S3Backend(address, { ...s3Limits, ...limits }, clock)
}

/** Our own objects that try what the store can; never listed. */
const probeFolder = 'tmp/'
const probePattern = /^umbra-probe-[0-9a-f-]{36}$/
const probesKeptMs = 24 * 60 * 60 * 1000

class S3Backend implements Backend {
  readonly location: string
  readonly #bucket: string
  readonly #prefix: string
  readonly #clock: Clock
  readonly #connection: S3Connection
  readonly #attempts: Attempts
  #conditions: Promise<boolean> | undefined

  constructor(address: S3Address, limits: S3Limits, clock: Clock) {
    this.location = s3AddressText(address)
    this.#bucket = address.bucket
    this.#prefix = address.prefix === '' ? '' : `${address.prefix}/`
    this.#clock = clock
    this.#connection = new S3Connection(address, limits)
    this.#attempts = openAttempts(limits, clock)
  }

  async put(key: string, parts: readonly Uint8Array[]): Promise<PutOutcome> {
    const name = this.#name(key)
    const body = inOnePiece(parts)
    const honoursConditions = await this.#honoursConditions()
    return this.#run(name, putIfAbsent(this.#connection, name, body, honoursConditions), body.length)
  }

  /** Found out before the first put, so that who only reads needs no right to write. */
  #honoursConditions(): Promise<boolean> {
    this.#conditions ??= this.#findConditions().catch((error) => {
      this.#conditions = undefined
      throw error
    })
    return this.#conditions
  }

  async #findConditions(): Promise<boolean> {
    const name = `${this.#prefix}${probeFolder}umbra-probe-${randomUUID()}`
    const honoured = await this.#run(name, findConditions(this.#connection, name))
    await this.#run(name, (signal) => this.#connection.delete(name, signal))
    return honoured
  }

  async get(key: string, maxBytes: number): Promise<Buffer> {
    const name = this.#name(key)
    return this.#run(name, async (signal) => {
      const { body, objectBytes: sizeBytes } = await this.#connection.open(name, signal)
      if (sizeBytes > maxBytes) {
        body.destroy()
        const reason = `it has ${sizeBytes} bytes, at most ${maxBytes} are possible`
        throw failure('REPOSITORY_DAMAGED', { path: this.#path(name), reason })
      }
      const object = Buffer.allocUnsafeSlow(sizeBytes)
      let filled = 0
      await fill(object, filled, body, (bytes) => {
        filled = bytes
      })
      if (filled < sizeBytes) throw cutOff(`only ${filled} of ${sizeBytes} bytes came`)
      return object
    })
  }

  async read(key: string, offset: number, target: Uint8Array): Promise<number> {
    const name = this.#name(key)
    if (target.length === 0) return this.#ensureThere(name)
    let filled = 0 // an attempt goes on where the one before broke off
    return this.#run(name, async (signal) => {
      const opened = await this.#connection.openRange(name, offset + filled, target.length - filled, signal)
      if (opened === undefined) return filled
      await fill(target, filled, opened.body, (bytes) => {
        filled = bytes
      })
      const wanted = Math.min(target.length, opened.objectBytes - offset)
      if (filled < wanted) throw cutOff(`only ${filled} of ${wanted} bytes came`)
      return filled
    })
  }

  async #ensureThere(name: string): Promise<number> {
    const found = await this.#run(name, (signal) => this.#connection.head(name, signal))
    if (found === undefined) throw failure('REPOSITORY_OBJECT_MISSING', { path: this.#path(name) })
    return 0
  }

  async *list(prefix: string): AsyncIterable<ObjectEntry> {
    invariant(prefix === '' || (prefix.endsWith('/') && isObjectKey(prefix.slice(0, -1))), `no prefix: ${prefix}`)
    for await (const { name, sizeBytes } of this.#listNames(this.#prefix + prefix)) {
      const key = name.slice(this.#prefix.length)
      if (isObjectKey(key) && !key.startsWith(probeFolder)) yield { key, sizeBytes }
    }
  }

  async *#listNames(prefix: string): AsyncIterable<ListedObject> {
    for (let after: string | undefined; ; ) {
      const page = await this.#run(prefix, (signal) => this.#connection.list(prefix, after, signal))
      yield* page.objects
      if (page.next === undefined) return
      if (page.next === after) {
        throw failure('REPOSITORY_IO', { path: this.#path(prefix), reason: 'the store lists the same page for ever' })
      }
      after = page.next
    }
  }

  async delete(key: string): Promise<void> {
    const name = this.#name(key)
    await this.#run(name, (signal) => this.#connection.delete(name, signal))
  }

  /** Probes of processes that were killed; one that lives needs its own for seconds. */
  async sweep(): Promise<void> {
    const folder = this.#prefix + probeFolder
    const before = this.#clock.now() - probesKeptMs
    const old: string[] = []
    for await (const { name, changedAt } of this.#listNames(folder)) {
      if (probePattern.test(name.slice(folder.length)) && changedAt.getTime() < before) old.push(name)
    }
    for (const name of old) await this.#run(name, (signal) => this.#connection.delete(name, signal))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#attempts[Symbol.dispose]()
    this.#connection[Symbol.dispose]()
  }

  #name(key: string): string {
    invariant(isObjectKey(key), `no object key: ${key}`)
    return this.#prefix + key
  }

  #path(name: string): string {
    return `s3://${this.#bucket}/${name}`
  }

  async #run<T>(name: string, deed: (signal: AbortSignal) => Promise<T>, neededBytes = 0): Promise<T> {
    const path = this.#path(name)
    try {
      return await this.#attempts.run(path, deed)
    } catch (error) {
      throw s3Failure(error, path, neededBytes)
    }
  }
}

/** In memory that is not shared: the HTTP client and the hash want it so. */
function inOnePiece(parts: readonly Uint8Array[]): Buffer {
  const [only, ...others] = parts
  if (only === undefined || others.length > 0 || only.buffer instanceof SharedArrayBuffer) return Buffer.concat(parts)
  return Buffer.from(only.buffer, only.byteOffset, only.byteLength)
}

/** Fills `target` from `at` on and tells how far it is filled. A body that is longer is not read on. */
async function fill(target: Uint8Array, at: number, body: Readable, tell: (filled: number) => void): Promise<void> {
  let filled = at
  for await (const chunk of body as AsyncIterable<Buffer>) {
    const wanted = chunk.subarray(0, target.length - filled)
    target.set(wanted, filled)
    filled += wanted.length
    tell(filled)
    if (wanted.length < chunk.length) break
  }
}
