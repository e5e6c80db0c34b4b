/**
 * Collection among backups, deletions and readers, step by step in every order that chance finds: each operation on the
 * storage is held until it is its turn. Nothing a listed point needs may be gone afterwards, and nothing else may be left.
 *
 * What was broken on purpose, in a copy, and is found here: see test/fault/README.md, "Collection".
 */
import assert from 'node:assert/strict'
import {
  assertAllWhole,
  assertWhole,
  fillSmall,
  isFailure,
  Schedule,
  seededRandom,
  World,
  writeSmallPoint,
} from '../../../test/fault/collect-stress-world.ts'
import { threadTests } from '../../../test/fault/thread-tests.ts'
import { Failure } from '../../base/failure.ts'
import type { Repository } from '../repository.ts'

const schedules = Number(process.env.UMBRA_SCHEDULES ?? 150)
const first = Number(process.env.UMBRA_FIRST_SCHEDULE ?? 1)

const chunks = 9
const tests: Record<string, () => Promise<void>> = {}

async function schedule(seed: number): Promise<void> {
  const random = seededRandom(seed)
  const below = (limit: number) => Math.floor(random() * limit)
  const seeds = () => Array.from({ length: 1 + below(4) }, () => 1 + below(chunks))
  const world = await World.make()
  await prepare(world, random, seeds)
  const before = await idsOf(world)
  const [victim] = before.slice(below(before.length))
  const held = new Schedule(random)
  const shared = world.open(held.hooks('shared')) // one process with two backups: what one has loaded the other uses
  const backup = async (name: string) => {
    const repository = await (random() < 0.4 ? shared : world.open(held.hooks(name)))
    for (let count = 1 + below(2); count > 0; count -= 1) await writeSmallPoint(repository, seeds())
  }
  const collect = async (name: string) => {
    for (let count = 1 + below(2); count > 0; count -= 1) {
      await world.collect({ delayMs: 0, repackBelow: random() }, held.hooks(name)).catch((error: unknown) => {
        if (!isFailure('COLLECT_IN_PROGRESS')(error)) throw error
      })
    }
  }
  const outcomes = await held.run({
    backupA: backup('backupA'),
    backupB: backup('backupB'),
    deletion: world.open(held.hooks('deletion')).then((repository) => repository.deletePoint(victim ?? '')),
    collectA: collect('collectA'),
    collectB: collect('collectB'),
    reader: world.open(held.hooks('reader')).then((repository) => read(repository, before, victim ?? '')),
  })
  try {
    for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason
    await assertAllWhole(world)
    await assertNothingElse(world)
  } catch (error) {
    throw new Error(`schedule ${seed}\n${held.log.join('\n')}`, { cause: error })
  }
}

/** Points, garbage, and perhaps a condemnation from before. */
async function prepare(world: World, random: () => number, seeds: () => number[]): Promise<void> {
  await using repository = await world.open()
  for (let count = 3; count > 0; count -= 1) await writeSmallPoint(repository, seeds())
  if (random() < 0.7) await repository.deletePoint((await writeSmallPoint(repository, seeds())).id)
  if (random() < 0.5) await world.collect({ repackBelow: random() })
}

async function idsOf(world: World): Promise<string[]> {
  await using repository = await world.open()
  return (await repository.listPoints()).map(({ id }) => id)
}

/** Bytes are right, or of a point that has been deleted there is a coded failure. */
async function read(repository: Repository, ids: readonly string[], victim: string): Promise<void> {
  for (const id of ids) {
    try {
      await assertWhole(await repository.point(id))
    } catch (error) {
      const codes = ['REPOSITORY_CHUNK_CORRUPT', 'RECOVERY_POINT_NOT_FOUND', 'REPOSITORY_OBJECT_MISSING']
      if (id !== victim || !(error instanceof Failure) || !codes.includes(error.code)) throw error
    }
  }
}

/** After two more collections there is what the points need, and nothing waits. */
async function assertNothingElse(world: World): Promise<void> {
  await world.collect({ delayMs: 0, repackBelow: 1 })
  await world.collect({ delayMs: 0, repackBelow: 1 })
  for (const prefix of ['condemned/', 'drafts/']) assert.deepEqual(world.keys(prefix), [])
  const left = await world.collect({ dryRun: true, delayMs: 0 })
  assert.deepEqual(left.condemned, { packs: 0, bytes: 0 })
  assert.deepEqual(left.missing, { records: 0, ids: [] })
  await assertAllWhole(world)
}

tests['in any order of steps nothing needed is removed, and nothing else is left'] = async () => {
  for (let seed = first; seed < first + schedules; seed += 1) await schedule(seed)
}

/** Points, and garbage of which one pack is condemned and due already. */
async function dueScene(): Promise<World> {
  const world = await World.make()
  await using repository = await world.open()
  await writeSmallPoint(repository, [9])
  await repository.deletePoint((await writeSmallPoint(repository, [1, 2])).id)
  await world.collect()
  world.nowMs += 25 * 3_600_000
  await repository.deletePoint((await writeSmallPoint(repository, [3, 4])).id)
  return world
}

type Backup = Awaited<ReturnType<Repository['beginPoint']>>

/** When a backup begins and ends, as seen by a collection: before it, at one of its operations, or after it. */
const ways = {
  'begins and ends between two operations': { begins: 'during', ends: 'during' },
  'began before and ends between two operations': { begins: 'before', ends: 'during' },
  'begins between two operations and ends later': { begins: 'during', ends: 'after' },
  'was open at the mark and ends between two operations': { begins: 'before the mark', ends: 'during' },
} as const

for (const [way, { begins, ends }] of Object.entries(ways)) {
  tests[`a backup of what is garbage that ${way} of a collection`] = async () => {
    const original = await dueScene()
    for (let at = 1, isOver = false; !isOver; at += 1) {
      const world = original.copy()
      const repository = await world.open()
      let draft: Backup | undefined
      const begin = async () => {
        draft = await repository.beginPoint()
        await fillSmall(draft, [1, 2, 3, 4])
      }
      const end = async () => void (await draft?.commit({ seeds: [1], others: [2, 3, 4] }))
      if (begins === 'before' || begins === 'before the mark') await begin()
      if (begins === 'before the mark') await world.collect({ delayMs: 0 })
      let count = 0
      const before = async () => {
        count += 1
        if (count !== at) return
        if (begins === 'during') await begin()
        if (ends === 'during') await end()
      }
      const { missing, damaged } = await world.collect({ delayMs: 0 }, { before })
      assert.deepEqual([missing.records, damaged], [0, []], `at operation ${at}`)
      isOver = count < at
      if (ends === 'after') await end()
      if (isOver && begins !== 'during') await end()
      assert.equal(await assertAllWhole(world), isOver && begins === 'during' ? 1 : 2, `at operation ${at}`)
      await world.collect({ delayMs: 0 })
      await assertAllWhole(world)
    }
  }
}

tests['while one backup of a process reads the lists anew, another does not use what they no longer name'] =
  async () => {
    const world = await dueScene()
    let during: (() => Promise<void>) | undefined
    const repository = await world.open({
      async before({ name, key }) {
        if (name !== 'list' || key !== 'indexes/') return
        const act = during
        during = undefined
        await act?.()
      },
    })
    await using first = await repository.beginPoint()
    await world.collect({ delayMs: 0 })
    during = () => fillSmall(first, [1, 2])
    await using _second = await repository.beginPoint()
    assert.equal(during, undefined)
    await first.commit({ seeds: [1], others: [2] })
    assert.equal(await assertAllWhole(world), 2)
  }

threadTests(import.meta.url, tests)
