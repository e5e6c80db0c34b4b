/**
 * Keeps copies of indexes and manifests on this host: they are read at every start, never change, and come over a network.
 * A copy is only ever a saving. The store's list says what exists; a copy that can not be used is fetched again; the
 * directory may be deleted at any time. Readers prove by its digest what they get, wherever it came from, and call
 * `forget` when the proof fails, or when they have to know whether the object is there still.
 */
import { randomUUID } from 'node:crypto'
import { mkdir, open, readdir, rename, rm, rmdir, stat } from 'node:fs/promises'
import { homedir } from 'node:os'
import path from 'node:path'
import { systemClock } from '../../base/clock.ts'
import { invariant } from '../../base/failure.ts'
import { FormatError } from '../format.ts'
import type { Backend, ObjectEntry } from './backend.ts'

/** What is kept. The configuration is not: by it a repository is known. */
const keptPrefixes = ['indexes/', 'points/']
const asideFolder = '.aside'
const asidesKeptMs = 60 * 60 * 1000

const isKept = (key: string) => keptPrefixes.some((prefix) => key.startsWith(prefix))

/** Where copies are kept unless told: `$XDG_CACHE_HOME/umbra`, for root /var/cache/umbra, else ~/.cache/umbra. */
export function indexCacheDirectory(environment: NodeJS.ProcessEnv = process.env, userId = process.getuid?.()): string {
  const { XDG_CACHE_HOME } = environment
  if (XDG_CACHE_HOME !== undefined && path.isAbsolute(XDG_CACHE_HOME)) return path.join(XDG_CACHE_HOME, 'umbra')
  return userId === 0 ? '/var/cache/umbra' : path.join(homedir(), '.cache/umbra')
}

/** `backend` with copies below `directory`, which need not exist. Disposal disposes `backend` and leaves the copies. */
export function withIndexCache(backend: Backend, directory: string, repositoryId: string): Backend {
  invariant(/^[0-9a-f-]{36}$/i.test(repositoryId), 'no id of a repository')
  return new IndexCache(backend, path.join(directory, repositoryId))
}

class IndexCache implements Backend {
  readonly location: string
  readonly #backend: Backend
  readonly #folder: string
  /** Keys that are read from the store until it gave them anew. */
  readonly #distrusted = new Set<string>()

  constructor(backend: Backend, folder: string) {
    this.location = backend.location
    this.#backend = backend
    this.#folder = folder
  }

  put(key: string, parts: readonly Uint8Array[]): Promise<'stored' | 'exists'> {
    return this.#backend.put(key, parts)
  }

  async get(key: string, maxBytes: number): Promise<Buffer> {
    if (!isKept(key)) return this.#backend.get(key, maxBytes)
    const copy = this.#distrusted.has(key) ? undefined : await readCopy(this.#file(key), maxBytes)
    if (copy !== undefined) return copy
    const object = await this.#backend.get(key, maxBytes)
    await this.#keep(key, object)
    return object
  }

  read(key: string, offset: number, target: Uint8Array): Promise<number> {
    return this.#backend.read(key, offset, target)
  }

  async *list(prefix: string): AsyncIterable<ObjectEntry> {
    if (!keptPrefixes.some((kept) => kept.startsWith(prefix) || prefix.startsWith(kept))) {
      yield* this.#backend.list(prefix)
      return
    }
    const listed = new Set<string>()
    for await (const entry of this.#backend.list(prefix)) {
      if (isKept(entry.key)) listed.add(entry.key)
      yield entry
    }
    await this.#dropOthers(prefix, listed).catch(() => undefined) // they are found again next time
  }

  async delete(key: string): Promise<void> {
    await this.#backend.delete(key)
    await this.#drop(key)
  }

  sweep(): Promise<void> {
    return this.#backend.sweep()
  }

  async forget(key: string): Promise<void> {
    await this.#backend.forget?.(key)
    this.#distrusted.add(key) // the copy may be one that can not be removed
    await this.#drop(key)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#backend[Symbol.asyncDispose]()
  }

  #file(key: string): string {
    return path.join(this.#folder, key)
  }

  async #drop(key: string): Promise<void> {
    await rm(this.#file(key), { force: true }).catch(() => undefined) // its reader finds out what it is worth
  }

  async #keep(key: string, object: Uint8Array): Promise<void> {
    await this.#write(this.#file(key), object).then(
      () => this.#distrusted.delete(key),
      () => undefined, // the disk is full, or not ours to write: then it is not kept
    )
  }

  /** Aside, and renamed: a reader in another process finds it whole or not at all. */
  async #write(file: string, object: Uint8Array): Promise<void> {
    const aside = path.join(this.#folder, asideFolder, randomUUID())
    for (const folder of [path.dirname(aside), path.dirname(file)])
      await mkdir(folder, { recursive: true, mode: 0o700 })
    try {
      await using handle = await open(aside, 'wx', 0o600)
      await handle.writeFile(object)
      await rename(aside, file)
    } catch (error) {
      await rm(aside, { force: true })
      throw error
    }
  }

  /** Copies below `prefix` whose objects are gone, and what was left half written. */
  async #dropOthers(prefix: string, listed: ReadonlySet<string>): Promise<void> {
    const entries = await readdir(this.#folder, { recursive: true, withFileTypes: true })
    for (const entry of entries) {
      const file = path.join(entry.parentPath, entry.name)
      const key = path.relative(this.#folder, file)
      if (entry.isDirectory()) continue
      if (key.startsWith(`${asideFolder}/`)) await dropOld(file)
      else if (key.startsWith(prefix) && !listed.has(key)) {
        await rm(file, { force: true })
        await rmdir(path.dirname(file)).catch(() => undefined) // others are in it
      }
    }
  }
}

/** Undefined when there is none, or none that could be the object. */
async function readCopy(file: string, maxBytes: number): Promise<Buffer | undefined> {
  try {
    await using handle = await open(file)
    const found = await handle.stat()
    return found.isFile() && found.size <= maxBytes ? await handle.readFile() : undefined
  } catch {
    return undefined // also when the disk can not read it
  }
}

/** What a killed process was writing. One that lives needs seconds. */
async function dropOld(file: string): Promise<void> {
  const { mtimeMs } = await stat(file)
  if (mtimeMs < systemClock.now() - asidesKeptMs) await rm(file, { force: true })
}

/** Decodes an object. A copy that can not be decoded is fetched once more. FormatError, and what `get` says. */
export async function getDecoded<T>(
  backend: Backend,
  key: string,
  maxBytes: number,
  decode: (object: Buffer) => T,
): Promise<T> {
  const object = await backend.get(key, maxBytes)
  try {
    return decode(object)
  } catch (error) {
    if (!(error instanceof FormatError) || backend.forget === undefined) throw error
    await backend.forget(key)
    return decode(await backend.get(key, maxBytes))
  }
}
