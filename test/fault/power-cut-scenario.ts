/**
 * What is done to a repository while operations of its disk fail: a list of steps, each one entry, and the ledger of what
 * was reported as done. A step must be repeatable after it has failed.
 */
import assert from 'node:assert/strict'
import { createCipheriv } from 'node:crypto'
import { Failure } from '../../src/base/failure.ts'
import {
  createRepository,
  openRepositoryOn,
  type RecoveryPoint,
  type Repository,
} from '../../src/repository/repository.ts'
import { openLocalBackend } from '../../src/repository/storage/local-backend.ts'
import type { UnsyncedFiles } from './unsynced-files.ts'

/** Two of its parents are missing at first. */
export const directory = '/srv/backups/umbra'
export const chunkSizeBytes = 64 * 1024
const streamBytes = 3 * chunkSizeBytes + 1000

/** What was reported as done, and what was only begun. */
export interface Ledger {
  created: boolean
  /** Of each point the seed of its bytes. */
  readonly committed: Map<string, number>
  /** Points whose deletion was begun: they may be gone. */
  readonly deleting: Set<string>
  readonly pinned: Set<string>
}

const emptyLedger = (): Ledger => ({ created: false, committed: new Map(), deleting: new Set(), pinned: new Set() })

export const copyOfLedger = ({ created, committed, deleting, pinned }: Ledger): Ledger => ({
  created,
  committed: new Map(committed),
  deleting: new Set(deleting),
  pinned: new Set(pinned),
})

/** One process of the product: it opens the repository once. */
export class PowerCutProcess {
  readonly files: UnsyncedFiles
  readonly ledger: Ledger
  #repository: Repository | undefined

  constructor(files: UnsyncedFiles, ledger: Ledger = emptyLedger()) {
    this.files = files
    this.ledger = ledger
  }

  async repository(): Promise<Repository> {
    this.#repository ??= await openRepositoryOn(openLocalBackend(directory, this.files))
    return this.#repository
  }

  /** Also where a creation that was reported as failed had come to its end. */
  async create(): Promise<void> {
    try {
      this.#repository = await createRepository(directory, { chunkSizeBytes, files: this.files, encryption: 'none' })
    } catch (error) {
      if (!(error instanceof Failure && error.code === 'REPOSITORY_NOT_EMPTY')) throw error
      assert.equal(error.context.found, 'a repository')
      await this.repository()
    }
    this.ledger.created = true
  }

  async backUp(seed: number): Promise<void> {
    const repository = await this.repository()
    const { id } = await writePoint(repository, seed)
    this.ledger.committed.set(id, seed)
  }

  async deletePoint(seed: number): Promise<void> {
    const repository = await this.repository()
    const id = this.#idOf(seed)
    this.ledger.deleting.add(id)
    await repository.deletePoint(id)
  }

  async pin(seed: number): Promise<void> {
    const repository = await this.repository()
    await repository.pin(this.#idOf(seed), 'to be kept')
    this.ledger.pinned.add(this.#idOf(seed))
  }

  async unpin(seed: number): Promise<void> {
    const repository = await this.repository()
    this.ledger.pinned.delete(this.#idOf(seed))
    await repository.unpin(this.#idOf(seed))
  }

  #idOf(seed: number): string {
    const [id] = [...this.ledger.committed].find(([, of]) => of === seed) ?? []
    assert.ok(id !== undefined)
    return id
  }

  async close(): Promise<void> {
    await this.#repository?.[Symbol.asyncDispose]()
    this.#repository = undefined
  }
}

export interface Step {
  readonly name: string
  readonly run: (process: PowerCutProcess) => Promise<unknown>
}

export interface Scenario {
  readonly name: string
  /** Done well, and on stable storage, before anything fails. */
  readonly before: readonly Step[]
  /** At each operation of these, something fails. */
  readonly steps: readonly Step[]
  /** A collection follows whatever failed, and must leave what is needed and nothing else. */
  readonly collects?: boolean
}

const create: Step = { name: 'create', run: (process) => process.create() }
const backUpA: Step = { name: 'back up A', run: (process) => process.backUp(1) }
const backUpB: Step = { name: 'back up B, which shares chunks with A', run: (process) => process.backUp(2) }
const backUpC: Step = { name: 'back up C', run: (process) => process.backUp(3) }
const deleteA: Step = { name: 'delete A', run: (process) => process.deletePoint(1) }
const deleteC: Step = { name: 'delete C', run: (process) => process.deletePoint(3) }

const inRepository = (name: string, run: (repository: Repository) => Promise<unknown>): Step => ({
  name,
  run: async (process) => run(await process.repository()),
})
/** Of A, whose pack holds what B needs, that is copied; C's pack has only garbage. */
const condemn = inRepository('condemn', (repository) => repository.collect({ repackBelow: 1 }))
const sweep = inRepository('sweep', (repository) => repository.collect({ repackBelow: 1, delayMs: 0 }))
const repairIndex = inRepository('make the indexes again', (repository) => repository.repairIndex())

/** What is new in the repository gets an entry here. */
export const scenarios: readonly Scenario[] = [
  { name: 'a repository is made and backed up to', before: [], steps: [create, backUpA] },
  { name: 'a backup of what is partly there', before: [create, backUpA], steps: [backUpB] },
  { name: 'a deletion', before: [create, backUpA, backUpB], steps: [deleteA], collects: true },
  {
    name: 'a collection condemns and repacks',
    before: [create, backUpA, backUpB, backUpC, deleteA, deleteC],
    steps: [condemn],
    collects: true,
  },
  {
    name: 'a collection sweeps',
    before: [create, backUpA, backUpB, backUpC, deleteA, deleteC, condemn],
    steps: [sweep],
    collects: true,
  },
  {
    name: 'a point is pinned and unpinned',
    before: [create, backUpA],
    steps: [
      { name: 'pin A', run: (process) => process.pin(1) },
      { name: 'unpin A', run: (process) => process.unpin(1) },
    ],
  },
  {
    name: 'the indexes are made again',
    before: [create, backUpA, backUpB, deleteA],
    steps: [repairIndex],
    collects: true,
  },
]

export async function writePoint(
  repository: Repository,
  seed: number,
  data: Buffer = bytesOf(seed),
): Promise<RecoveryPoint> {
  await using draft = await repository.beginPoint()
  await using stream = await draft.openStream('disk', data.length)
  for (let number = 0; number * chunkSizeBytes < data.length; number += 1) {
    await stream.writeChunk(number, data.subarray(number * chunkSizeBytes, (number + 1) * chunkSizeBytes))
  }
  await stream.finish()
  await draft.putDocument('seed', Buffer.from(`seed ${seed}`))
  return draft.commit({ seed })
}

/** A chunk that all points share and zstd can not shorten, zeros, a chunk and an end of its own. */
export function bytesOf(seed: number): Buffer {
  const known = bytes.get(seed)
  if (known !== undefined) return known
  const data = Buffer.concat([
    createCipheriv('aes-128-ctr', Buffer.alloc(16), Buffer.alloc(16)).update(Buffer.alloc(chunkSizeBytes)),
    Buffer.alloc(chunkSizeBytes),
    Buffer.alloc(chunkSizeBytes, `text of ${seed} `),
    Buffer.alloc(streamBytes - 3 * chunkSizeBytes, `end of ${seed} `),
  ])
  bytes.set(seed, data)
  return data
}

const bytes = new Map<number, Buffer>()
