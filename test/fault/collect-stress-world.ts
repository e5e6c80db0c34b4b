/**
 * A repository in memory whose every operation can be held, refused or made the last: what the tests of collection run on.
 */
import assert from 'node:assert/strict'
import { createCipheriv } from 'node:crypto'
import { Failure } from '../../src/base/failure.ts'
import { type CollectOptions, collectRepository } from '../../src/repository/collection/collect.ts'
import { plainSeal } from '../../src/repository/keys/seal.ts'
import { Manifests } from '../../src/repository/manifests.ts'
import { openRepositoryOn, type RecoveryPoint, type Repository } from '../../src/repository/repository.ts'
import { newConfig, putConfig } from '../../src/repository/repository-config.ts'
import type { Backend } from '../../src/repository/storage/backend.ts'

export const chunkSizeBytes = 64 * 1024

export type Objects = Map<string, Buffer>

export interface Operation {
  readonly name: 'put' | 'get' | 'read' | 'list' | 'delete' | 'sweep'
  readonly key: string
}

/** Called before an operation is done, and after; what it throws is what the operation rejects with. */
export interface Hooks {
  before?(operation: Operation): Promise<void> | void
  after?(operation: Operation): Promise<void> | void
}

let worlds = 0

/** Markers are told apart by location, so everybody of one world gets the same. */
export const newLocation = (): string => {
  worlds += 1
  return `memory-${worlds}`
}

export function memoryBackend(objects: Objects, location: string, hooks: Hooks = {}): Backend {
  const missing = (key: string) => new Failure('REPOSITORY_OBJECT_MISSING', `${key} is missing`)
  async function done<T>(operation: Operation, deed: () => T): Promise<T> {
    await hooks.before?.(operation)
    const result = deed()
    await hooks.after?.(operation)
    return result
  }
  return {
    location,
    put: (key, parts) =>
      done({ name: 'put', key }, () => {
        if (objects.has(key)) return 'exists'
        objects.set(key, Buffer.concat(parts))
        return 'stored'
      }),
    get: (key) =>
      done({ name: 'get', key }, () => {
        const object = objects.get(key)
        if (object === undefined) throw missing(key)
        return Buffer.from(object)
      }),
    read: (key, offset, target) =>
      done({ name: 'read', key }, () => {
        const object = objects.get(key)
        if (object === undefined) throw missing(key)
        const part = object.subarray(offset, offset + target.length)
        target.set(part)
        return part.length
      }),
    async *list(prefix) {
      // As a directory: what is added or removed meanwhile may be seen or not.
      const keys = await done({ name: 'list', key: prefix }, () =>
        [...objects.keys()].filter((key) => key.startsWith(prefix)),
      )
      for (const [number, key] of keys.entries()) {
        if (number % 3 === 2) await hooks.before?.({ name: 'list', key })
        const object = objects.get(key)
        if (object !== undefined) yield { key, sizeBytes: object.length }
      }
    },
    delete: (key) => done({ name: 'delete', key }, () => void objects.delete(key)),
    sweep: () => done({ name: 'sweep', key: '' }, () => undefined),
    [Symbol.asyncDispose]: async () => undefined,
  }
}

/** The same bytes for the same seed. */
export function seededBytes(seed: number, length: number): Buffer {
  const key = Buffer.alloc(16)
  key.writeUInt32LE(seed)
  return createCipheriv('aes-128-ctr', key, Buffer.alloc(16)).update(Buffer.alloc(length))
}

export class World {
  readonly objects: Objects = new Map()
  readonly location = newLocation()
  repositoryId = ''
  nowMs = Date.UTC(2026, 10, 22)

  static async make(): Promise<World> {
    const world = new World()
    const config = newConfig(chunkSizeBytes, 1)
    await putConfig(memoryBackend(world.objects, world.location), config, plainSeal)
    world.repositoryId = config.id
    return world
  }

  /** The same once more, changed by nobody. */
  copy(): World {
    const world = new World()
    world.repositoryId = this.repositoryId
    world.nowMs = this.nowMs
    for (const [key, object] of this.objects) world.objects.set(key, object)
    return world
  }

  /** A process of its own: it knows nothing of what others have loaded. */
  open(hooks?: Hooks): Promise<Repository> {
    return openRepositoryOn(memoryBackend(this.objects, this.location, hooks))
  }

  collect(options: CollectOptions = {}, hooks?: Hooks) {
    const backend = memoryBackend(this.objects, this.location, hooks)
    const manifests = new Manifests(backend, plainSeal, this.repositoryId)
    const { repositoryId, nowMs } = this
    const now = () => new Date(nowMs)
    return collectRepository({ backend, seal: plainSeal, manifests, repositoryId, chunkSizeBytes, now }, options)
  }

  keys(prefix: string): string[] {
    return [...this.objects.keys()].filter((key) => key.startsWith(prefix)).sort()
  }

  packBytes(): number {
    return this.keys('packs/').reduce((sum, key) => sum + (this.objects.get(key)?.length ?? 0), 0)
  }
}

/** A point whose disk has one chunk for each seed; a document tells them. */
export async function writePoint(repository: Repository, seeds: readonly number[]): Promise<RecoveryPoint> {
  await using draft = await repository.beginPoint()
  await writeChunks(draft, seeds)
  return draft.commit({ seeds: [...seeds] })
}

export async function writeChunks(draft: Awaited<ReturnType<Repository['beginPoint']>>, seeds: readonly number[]) {
  await using stream = await draft.openStream('disk', seeds.length * chunkSizeBytes)
  for (const [number, seed] of seeds.entries()) await stream.writeChunk(number, seededBytes(seed, chunkSizeBytes))
  await stream.finish()
  await draft.putDocument('seeds', Buffer.from(seeds.join(' ')))
}

/** The same in little: a disk of one short chunk, and a document for each of the others. */
export async function writeSmallPoint(repository: Repository, seeds: readonly number[]): Promise<RecoveryPoint> {
  const [first = 0, ...others] = new Set(seeds)
  await using draft = await repository.beginPoint()
  await fillSmall(draft, [first, ...others])
  return draft.commit({ seeds: [first], others })
}

export async function fillSmall(
  draft: Awaited<ReturnType<Repository['beginPoint']>>,
  [first = 0, ...others]: readonly number[],
): Promise<void> {
  await using stream = await draft.openStream('disk', smallBytes)
  await stream.writeChunk(0, seededBytes(first, smallBytes))
  await stream.finish()
  for (const seed of others) await draft.putDocument(`seed ${seed}`, seededBytes(seed, smallBytes))
}

const smallBytes = 200

export async function assertWhole(point: RecoveryPoint): Promise<void> {
  const { seeds, others } = point.content as { seeds: number[]; others?: number[] }
  await using source = await point.openStream('disk')
  const read = Buffer.alloc(source.sizeBytes)
  await source.read(0, read)
  const chunkBytes = others === undefined ? chunkSizeBytes : smallBytes
  for (const [number, seed] of seeds.entries()) {
    const chunk = read.subarray(number * chunkBytes, (number + 1) * chunkBytes)
    assert.ok(chunk.equals(seededBytes(seed, chunkBytes)), `chunk ${number} of ${point.id}`)
  }
  for (const seed of others ?? []) {
    const document = await point.readDocument(`seed ${seed}`)
    assert.ok(seededBytes(seed, smallBytes).equals(document), `document ${seed} of ${point.id}`)
  }
}

/** Every point listed comes back byte for byte, read by somebody who knows nothing yet; answers how many. */
export async function assertAllWhole(world: World): Promise<number> {
  await using repository = await world.open()
  assert.deepEqual(await repository.listDamagedPoints(), [])
  const points = await repository.listPoints()
  for (const point of points) await assertWhole(point)
  return points.length
}

export function isFailure(code: string): (error: unknown) => boolean {
  return (error) => error instanceof Failure && error.code === code
}

/** Numbers from 0 to 1 that are the same for the same seed. */
export function seededRandom(seed: number): () => number {
  let state = (seed * 2_654_435_761 + 88_172_645) >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

/** Lets one held operation go on at a time, chosen by chance. */
export class Schedule {
  readonly #random: () => number
  readonly #held: { readonly actor: string; readonly goOn: () => void }[] = []
  readonly log: string[] = []

  constructor(random: () => number) {
    this.#random = random
  }

  hooks(actor: string): Hooks {
    return {
      before: (operation) =>
        new Promise<void>((resolve) => {
          const goOn = () => {
            this.log.push(`${actor}: ${operation.name} ${operation.key}`)
            resolve()
          }
          this.#held.push({ actor, goOn })
        }),
    }
  }

  /** Until all have ended; answers what became of each. */
  async run(actors: Readonly<Record<string, Promise<unknown>>>): Promise<PromiseSettledResult<unknown>[]> {
    let left = Object.keys(actors).length
    for (const actor of Object.values(actors)) {
      actor.then(
        () => (left -= 1),
        () => (left -= 1),
      )
    }
    // One actor is favoured for a while, so that long runs of one come as well.
    let favourite = ''
    while (left > 0) {
      await new Promise((resolve) => setImmediate(resolve))
      if (this.#held.length === 0) continue
      if (this.#random() < 0.15) favourite = this.#held[Math.floor(this.#random() * this.#held.length)]?.actor ?? ''
      const liked = this.#held.findIndex(({ actor }) => actor === favourite)
      const chosen = liked !== -1 && this.#random() < 0.8 ? liked : Math.floor(this.#random() * this.#held.length)
      const [one] = this.#held.splice(chosen, 1)
      one?.goOn()
    }
    return Promise.allSettled(Object.values(actors))
  }
}
