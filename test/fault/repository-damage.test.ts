/**
 * Damage to any object of a repository: cut off, extended, flipped, exchanged with another of its kind, missing. Wrong bytes
 * are never handed out, what can not be restored is named by verify, and all that is not concerned stays usable.
 * src/repository/verification/damage.test.ts has what is said of which damage, in which words.
 */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { Failure } from '../../src/base/failure.ts'
import {
  createRepository,
  openRepositoryOn,
  type RecoveryPoint,
  type Repository,
} from '../../src/repository/repository.ts'
import { openLocalBackend } from '../../src/repository/storage/local-backend.ts'
import { bytesOf, chunkSizeBytes, directory, writePoint } from './power-cut-scenario.ts'
import { UnsyncedFiles } from './unsynced-files.ts'
import { everything, seededRandom } from './unsynced-files-tree.ts'

type PointName = 'A' | 'B' | 'C'
interface Written {
  readonly files: UnsyncedFiles
  readonly ids: Readonly<Record<PointName, string>>
  readonly data: Readonly<Record<PointName, Buffer>>
}

/** B shares chunks with A, C with nobody. */
async function threePoints(): Promise<Written> {
  const files = new UnsyncedFiles()
  await using repository = await createRepository(directory, { chunkSizeBytes, files, encryption: 'none' })
  const data = { A: bytesOf(1), B: bytesOf(2), C: Buffer.from(bytesOf(3).map((byte) => byte ^ 0x55)) }
  const { id: A } = await writePoint(repository, 1)
  const { id: B } = await writePoint(repository, 2)
  const { id: C } = await writePoint(repository, 3, data.C)
  return { files, ids: { A, B, C }, data }
}

const names: readonly PointName[] = ['A', 'B', 'C']
const kinds = ['pack', 'index', 'manifest'] as const
type Kind = (typeof kinds)[number]

/** The only object of its kind that belongs to the point. */
async function objectOf(files: UnsyncedFiles, kind: Kind, id: string): Promise<string> {
  if (kind === 'manifest') return `${directory}/points/${id}.json`
  const folder = `${directory}/${kind === 'pack' ? 'packs' : 'indexes'}/${id}`
  const [object, ...others] = await Array.fromAsync(files.entries(folder))
  assert.ok(object !== undefined && others.length === 0)
  return `${folder}/${object.name}`
}

async function bytesIn(files: UnsyncedFiles, path: string): Promise<Buffer> {
  const file = await files.openToRead(path)
  const bytes = Buffer.alloc(await file.sizeBytes())
  await file.read(bytes, 0, 0)
  return bytes
}

async function replace(files: UnsyncedFiles, path: string, bytes: Buffer | undefined): Promise<void> {
  await files.remove(path)
  if (bytes === undefined) return
  const file = await files.create(path)
  await file.write(bytes)
}

interface Found {
  /** Listed as one that can be restored, and as damaged. */
  readonly listed: readonly PointName[]
  readonly damaged: readonly PointName[]
  /** Those of which every byte was read, and right. */
  readonly restored: readonly PointName[]
  /** Those that verify has named. */
  readonly named: readonly PointName[]
}

const damageCodes = ['REPOSITORY_CHUNK_CORRUPT', 'RECOVERY_POINT_DAMAGED', 'RECOVERY_POINT_NOT_FOUND']

/** What a process finds that opens the repository; a byte that is wrong fails. */
async function look({ files, ids, data }: Written): Promise<Found> {
  await using repository = await openRepositoryOn(openLocalBackend(directory, files))
  const namesOf = (all: Iterable<string>) => names.filter((name) => [...all].includes(ids[name]))
  const restored: PointName[] = []
  for (const name of names) {
    try {
      const found = await readPoint(await repository.point(ids[name]))
      assert.ok(found.equals(data[name]), `${name} has wrong bytes`)
      restored.push(name)
    } catch (error) {
      assert.ok(error instanceof Failure && damageCodes.includes(error.code), String(error))
    }
  }
  const report = await repository.verify()
  await backUpAnother(repository)
  return {
    listed: namesOf((await repository.listPoints()).map(({ id }) => id)),
    damaged: namesOf((await repository.listDamagedPoints()).map(({ id }) => id)),
    restored,
    named: namesOf([...report.damage.map(({ point }) => point), ...report.damagedPoints.map(({ id }) => id)]),
  }
}

async function readPoint(point: RecoveryPoint): Promise<Buffer> {
  await using source = await point.openStream('disk')
  const found = Buffer.alloc(source.sizeBytes, 0xaa)
  await source.read(0, found)
  assert.equal(Buffer.from(await point.readDocument('seed')).toString(), `seed ${point.content.seed}`)
  return found
}

/** What shares nothing with the others. */
async function backUpAnother(repository: Repository): Promise<void> {
  const another = Buffer.from(bytesOf(4).map((byte) => byte ^ 0x33))
  const point = await writePoint(repository, 4, another)
  assert.ok((await readPoint(point)).equals(another))
}

type Spoil = (bytes: Buffer) => Buffer | undefined

const spoils: Readonly<Record<string, Spoil>> = {
  'without its last byte': (bytes) => bytes.subarray(0, -1),
  'cut in half': (bytes) => bytes.subarray(0, bytes.length >> 1),
  'cut after some bytes': (bytes) => bytes.subarray(0, 20),
  empty: () => Buffer.alloc(0),
  'extended by a byte': (bytes) => Buffer.concat([bytes, Buffer.from([0])]),
  'extended by itself': (bytes) => Buffer.concat([bytes, bytes]),
  'of zeros': (bytes) => Buffer.alloc(bytes.length),
  'of zeros in its second half': (bytes) => Buffer.from(bytes).fill(0, bytes.length >> 1),
  missing: () => undefined,
}

/** As many as there are seeds, each in a byte of its own. */
const flips = Array.from({ length: 24 }, (_, seed): [string, Spoil] => {
  const random = seededRandom(seed)
  const flip = (bytes: Buffer) => {
    const flipped = Buffer.from(bytes)
    const at = Math.floor(random() * bytes.length)
    flipped[at] = (flipped[at] ?? 0) ^ (1 << Math.floor(random() * 8))
    return flipped
  }
  return [`with a bit flipped (seed ${seed})`, flip]
})

/** What holds whatever is damaged: what can not be restored is named by verify, and nothing else is. */
function judgeFound(found: Found): void {
  const notNamed = names.filter((name) => !found.named.includes(name))
  const notKnown = names.filter((name) => !found.listed.includes(name) && !found.damaged.includes(name))
  assert.deepEqual(
    found.restored,
    notNamed.filter((name) => !notKnown.includes(name)),
  )
}

describe('an object of point A', () => {
  for (const kind of kinds) {
    for (const [how, spoil] of [...Object.entries(spoils), ...flips]) {
      it(`${kind} ${how}: what can not be restored is named, and the rest is there`, async () => {
        const written = await prepared()
        const path = await objectOf(written.files, kind, written.ids.A)
        await replace(written.files, path, spoil(await bytesIn(written.files, path)))
        const found = await look(written)
        judgeFound(found)
        assert.ok(found.restored.includes('C'), 'C has nothing to do with it')
        if (kind === 'manifest') {
          assert.deepEqual(found.restored, ['B', 'C'])
          assert.deepEqual(found.damaged, how === 'missing' ? [] : ['A'])
        } else assert.deepEqual(found.listed, names)
        if (kind !== 'manifest' && how === 'missing') assert.deepEqual(found.named, ['A', 'B'])
      })
    }
  }
})

describe('two objects exchanged', () => {
  for (const kind of kinds) {
    it(`${kind} of A and of C: B keeps what it does not need of them`, async () => {
      const written = await prepared()
      const paths = [
        await objectOf(written.files, kind, written.ids.A),
        await objectOf(written.files, kind, written.ids.C),
      ] as const
      const [first, second] = [await bytesIn(written.files, paths[0]), await bytesIn(written.files, paths[1])]
      await replace(written.files, paths[0], second)
      await replace(written.files, paths[1], first)
      const found = await look(written)
      judgeFound(found)
      const expected = { pack: [], index: [], manifest: ['B'] } // an index under another's name is not believed
      assert.deepEqual(found.restored, expected[kind])
    })
  }
})

const fresh = threePoints()

/** A copy for each test. */
async function prepared(): Promise<Written> {
  const written = await fresh
  return { ...written, files: written.files.afterPowerCut(everything) }
}
