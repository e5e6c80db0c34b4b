/**
 * Real processes on one directory: they back up, delete, restore and compare, collect with no delay and verify, all at once,
 * and some are killed at moments that a seed chooses. At the end everything listed comes back byte for byte, and after two
 * more collections the directory holds what the points need.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readdir, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Failure } from '../../src/base/failure.ts'
import { createRepository, openRepository, type Repository } from '../../src/repository/repository.ts'
import { assertWhole, chunkSizeBytes, seededRandom, writePoint } from './collect-stress-world.ts'

const seed = Number(process.env.UMBRA_STRESS_SEED ?? 1)
const runMs = Number(process.env.UMBRA_STRESS_MS ?? 12_000)
const contents = 24

type Random = () => number

const below = (random: Random, limit: number) => Math.floor(random() * limit)

async function backUp(repository: Repository, random: Random): Promise<void> {
  await writePoint(
    repository,
    Array.from({ length: 1 + below(random, 12) }, () => 1 + below(random, contents)),
  )
}

/** The newest stay: their backup may be the one that is compared. */
async function deleteSome(repository: Repository, random: Random): Promise<void> {
  const points = await repository.listPoints()
  const victim = points.slice(0, -2)[below(random, points.length)]
  if (victim !== undefined) await repository.deletePoint(victim.id)
}

/** What is listed is whole, or it has been deleted meanwhile. */
async function compare(repository: Repository, random: Random): Promise<void> {
  const points = await repository.listPoints()
  const point = points[below(random, points.length)]
  if (point === undefined) return
  try {
    await assertWhole(point)
  } catch (error) {
    if (!(error instanceof Failure)) throw error
    const ids = (await repository.listPoints()).map(({ id }) => id)
    assert.ok(!ids.includes(point.id), `${point.id} is listed and can not be read: ${error.message}`)
  }
}

async function collect(repository: Repository, random: Random): Promise<void> {
  try {
    const { missing, damaged } = await repository.collect({ delayMs: 0, repackBelow: random() })
    assert.deepEqual([missing.records, damaged.length], [0, 0])
  } catch (error) {
    if (!(error instanceof Failure) || error.code !== 'COLLECT_IN_PROGRESS') throw error
  }
}

async function verify(repository: Repository): Promise<void> {
  const { damage } = await repository.verify()
  const listed = new Set((await repository.listPoints()).map(({ id }) => id))
  assert.deepEqual(
    damage.filter(({ point }) => listed.has(point)),
    [],
  )
}

const roles = { backUp, deleteSome, compare, collect, verify }
type Role = keyof typeof roles

/** Until it is killed. Some open the repository anew for each step, others live long. */
async function act(role: Role, folder: string, ownSeed: number): Promise<void> {
  const random = seededRandom(ownSeed)
  let repository = await openRepository(folder)
  for (;;) {
    await roles[role](repository, random)
    if (role !== 'backUp' && role !== 'collect') await sleep(20 + below(random, 100))
    if (random() < 0.7) continue
    await repository[Symbol.asyncDispose]()
    repository = await openRepository(folder)
  }
}

interface Actor {
  readonly role: Role
  readonly child: ChildProcess
  killed: boolean
}

function start(role: Role, folder: string, ownSeed: number): Actor {
  const child = spawn(process.execPath, [import.meta.filename, role, folder, String(ownSeed)], {
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  return { role, child, killed: false }
}

async function kill(actor: Actor): Promise<void> {
  const { child } = actor
  assert.equal(child.exitCode, null, `${actor.role} ended by itself`)
  actor.killed = true
  const over = once(child, 'exit')
  child.kill('SIGKILL')
  await over
}

async function bytesUnder(folder: string): Promise<number> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => [])
  const files = entries.filter((entry) => entry.isFile())
  const sizes = await Promise.all(files.map(async (file) => (await stat(path.join(file.parentPath, file.name))).size))
  return sizes.reduce((sum, size) => sum + size, 0)
}

async function assertEnd(folder: string): Promise<void> {
  await using repository = await openRepository(folder)
  const points = await repository.listPoints()
  assert.deepEqual(await repository.listDamagedPoints(), [])
  for (const point of points) await assertWhole(point)
  await repository.collect({ delayMs: 0, repackBelow: 1 })
  await repository.collect({ delayMs: 0, repackBelow: 1 })
  for (const point of points) await assertWhole(point)
  assert.deepEqual((await repository.verify()).damage, [])
  const needed = new Set(points.flatMap(({ content }) => content.seeds as number[])).size * chunkSizeBytes
  const found = await bytesUnder(path.join(folder, 'packs'))
  // Beside chunks there are maps, documents and what packs consist of: about a kilobyte for a point.
  const slack = 4096 * (points.length + 8)
  assert.ok(found <= needed * 1.02 + slack, `${found} bytes for ${needed} needed`)
  for (const empty of ['drafts', 'condemned', 'tmp']) assert.equal(await bytesUnder(path.join(folder, empty)), 0, empty)
}

function defineTests(): void {
  test('processes at work and killed at random lose nothing, and leave nothing', { timeout: 100_000 }, async () => {
    const folder = await mkdtemp(path.join(tmpdir(), 'umbra-collect-'))
    const random = seededRandom(seed)
    const actors: Actor[] = []
    try {
      await (await createRepository(folder, { chunkSizeBytes, encryption: 'none' }))[Symbol.asyncDispose]()
      let nextSeed = seed * 1000
      const begin = (role: Role) => {
        nextSeed += 1
        actors.push(start(role, folder, nextSeed))
      }
      for (const role of ['backUp', 'backUp', 'deleteSome', 'compare', 'collect', 'collect', 'verify'] as const)
        begin(role)
      const end = performance.now() + runMs
      while (performance.now() < end) {
        await sleep(150 + below(random, 500))
        const victims = actors.filter(({ role, killed }) => !killed && (role === 'backUp' || role === 'collect'))
        const victim = victims[below(random, victims.length)]
        if (victim === undefined) continue
        await kill(victim)
        begin(victim.role)
      }
      for (const actor of actors.filter(({ killed }) => !killed)) await kill(actor)
      await assertEnd(folder)
    } finally {
      for (const { child } of actors) child.kill('SIGKILL')
      await rm(folder, { recursive: true, force: true })
    }
  })
}

const [, , role, folder = '', ownSeed] = process.argv
if (role === undefined) defineTests()
else await act(role as Role, folder, Number(ownSeed))
