/**
 * A collection that is killed after any operation, or whose storage refuses any: nothing needed is gone, and a fresh
 * collection comes to the same end.
 */
import assert from 'node:assert/strict'
import {
  assertAllWhole,
  type Hooks,
  type Operation,
  World,
  writeSmallPoint,
} from '../../../test/fault/collect-stress-world.ts'
import { threadTests } from '../../../test/fault/thread-tests.ts'
import { Failure } from '../../base/failure.ts'
import { ownProcessMark } from '../../base/process-mark.ts'
import { plainSeal } from '../keys/seal.ts'
import { sealJson } from '../keys/sealed-json.ts'

const tests: Record<string, () => Promise<void>> = {}

const deadDraft = '20261121T000000Z-dead'

/** Points, garbage, a pack that is mostly garbage, one that is condemned and due, and what a dead draft left. */
async function scene(): Promise<World> {
  const world = await World.make()
  await using repository = await world.open()
  await repository.deletePoint((await writeSmallPoint(repository, [1, 2, 3])).id)
  await world.collect()
  world.nowMs += 25 * 3_600_000
  const mostlyGarbage = await writeSmallPoint(repository, [4, 5, 6, 7, 10, 11])
  await writeSmallPoint(repository, [8, 7])
  await repository.deletePoint(mostlyGarbage.id)
  await repository.deletePoint((await writeSmallPoint(repository, [9])).id)
  const key = `drafts/${deadDraft}.json`
  const { host } = await ownProcessMark()
  const mark = { host, boot: '00000000', pid: 1, startTicks: 1 }
  world.objects.set(key, sealJson(plainSeal, 'draft', key, mark))
  world.objects.set(`packs/${deadDraft}/${'ab'.repeat(32)}`, Buffer.alloc(1000))
  return world
}

/** So many small index objects that they are merged, and some name garbage that goes on the way. */
async function mergeScene(): Promise<World> {
  const world = await World.make()
  await using repository = await world.open()
  for (let seed = 100; seed < 166; seed += 1) {
    const { id } = await writeSmallPoint(repository, [seed])
    if (seed >= 102) await repository.deletePoint(id)
    if (seed === 150) await world.collect()
  }
  world.nowMs += 25 * 3_600_000
  return world
}

/** What is left when everything was collected. Repacked packs have other names, but the same sizes. */
async function endOf(world: World): Promise<unknown> {
  await world.collect({ delayMs: 0 })
  await world.collect({ delayMs: 0 })
  await assertAllWhole(world)
  for (const prefix of ['condemned/', 'drafts/']) assert.deepEqual(world.keys(prefix), [])
  const { condemned, missing, damaged } = await world.collect({ dryRun: true, delayMs: 0 })
  const points = world.keys('points/')
  return { points, condemned, missing, damaged, packs: world.keys('packs/').length, bytes: world.packBytes() }
}

function counting(act: (operation: Operation, number: number, isAfter: boolean) => void): Hooks & { count: number } {
  const hooks = {
    count: 0,
    before(operation: Operation) {
      hooks.count += 1
      act(operation, hooks.count, false)
    },
    after: (operation: Operation) => act(operation, hooks.count, true),
  }
  return hooks
}

const refuse = (code: string) => {
  throw new Failure(code, 'the storage refuses')
}

async function operations(original: World, delayMs: number): Promise<Operation[]> {
  const all: Operation[] = []
  await original.copy().collect({ delayMs }, { before: (operation) => void all.push(operation) })
  return all
}

const isChange = ({ name }: Operation) => name === 'put' || name === 'delete'

/** The storage stops after operation `last`, which is done when it is a change. */
async function killedAfter(original: World, delayMs: number, last: number): Promise<World> {
  const world = original.copy()
  const hooks = counting((operation, number, isAfter) => {
    if (number > last || (number === last && (isAfter || !isChange(operation)))) refuse('REPOSITORY_IO')
  })
  await assert.rejects(world.collect({ delayMs }, hooks), { code: 'REPOSITORY_IO' })
  await assertAllWhole(world)
  return world
}

for (const delayMs of [0, 24 * 3_600_000]) {
  tests[`killed after every single operation (delay ${delayMs} ms), a fresh collection ends the same`] = async () => {
    const original = await scene()
    const expected = await endOf(original.copy())
    const count = (await operations(original, delayMs)).length
    assert.ok(count > 50, String(count))
    for (let last = 1; last < count; last += 1) {
      const world = await killedAfter(original, delayMs, last)
      assert.deepEqual(await endOf(world), expected, `killed after operation ${last}`)
    }
  }
}

tests['killed after every change while small indexes are merged, a fresh collection ends the same'] = async () => {
  const original = await mergeScene()
  const expected = await endOf(original.copy())
  const all = await operations(original, 24 * 3_600_000)
  const changes = all.flatMap((operation, at) => (isChange(operation) && at + 1 < all.length ? [at + 1] : []))
  assert.ok(changes.length > 60, String(changes.length))
  for (const last of changes.filter((_, number) => number % 3 === 0)) {
    const world = await killedAfter(original, 24 * 3_600_000, last)
    assert.deepEqual(await endOf(world), expected, `killed after operation ${last}`)
  }
}

for (const code of ['REPOSITORY_IO', 'REPOSITORY_FULL']) {
  tests[`refused with ${code} at every single operation, nothing is lost and a fresh collection ends the same`] =
    async () => {
      const original = await scene()
      const expected = await endOf(original.copy())
      const all = await operations(original, 0)
      for (const [index, refused] of all.entries()) {
        if (code === 'REPOSITORY_FULL' && refused.name !== 'put') continue
        const world = original.copy()
        const hooks = counting((_, number, isAfter) => {
          if (number === index + 1 && !isAfter) refuse(code)
        })
        await world.collect({ delayMs: 0 }, hooks).catch((error: unknown) => {
          // What can not be read for a moment looks like damage.
          const codes = [code, 'COLLECT_UNSURE']
          assert.ok(error instanceof Failure && codes.includes(error.code), String(error))
        })
        await assertAllWhole(world)
        assert.deepEqual(await endOf(world), expected, `refused at operation ${index + 1}`)
      }
    }
}

threadTests(import.meta.url, tests)
