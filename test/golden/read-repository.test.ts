/**
 * docs/repository-format.md says enough: a reader that was written from it alone, in another language, restores the same
 * bytes as Umbra does, from full and incremental backups.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { createRepository, type RecoveryPoint } from '../../src/repository/repository.ts'
import { goldenDisk, goldenNoise } from './repository-1.make.ts'

const reader = path.join(import.meta.dirname, '../../scripts/read-repository.py')
const block = 64 * 1024
const chunkSizeBytes = 2 * block
const skip = spawnSync('python3', ['--version']).status !== 0 && 'not here: python3'

test('an independent reader restores what Umbra restores', { skip }, async () => {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-reader-'))
  await using _folder = { [Symbol.asyncDispose]: () => rm(folder, { recursive: true }) }
  await using repository = await createRepository(path.join(folder, 'r'), { chunkSizeBytes, encryption: 'none' })
  const first = goldenDisk(1)
  const second = Buffer.from(first)
  second.set(goldenNoise(block), block) // one block of the first chunk
  second.fill(0, 0, block) // the other one becomes zeros

  const full = await written(repository, first.length, async (stream) => {
    for (let chunk = 0; chunk * chunkSizeBytes < first.length; chunk += 1) {
      await stream.writeChunk(chunk, first.subarray(chunk * chunkSizeBytes, (chunk + 1) * chunkSizeBytes))
    }
  })
  const base = { point: full, stream: 'disk' }
  const incremental = await written(repository, first.length, async (stream) => {
    assert.deepEqual(await Array.fromAsync(stream.unusableChunks()), [])
    await stream.zeroBlocks(0, [0])
    await stream.writeBlocks(0, [1], second.subarray(block, 2 * block))
  }, base)

  for (const [point, expected] of [[full, first], [incremental, second]] as const) {
    const output = path.join(folder, point.id)
    execFileSync(reader, [repository.location, point.id, 'disk', output])
    assert.ok((await readFile(output)).equals(expected))
    await using source = await point.openStream('disk')
    const own = Buffer.alloc(source.sizeBytes)
    await source.read(0, own)
    assert.ok(own.equals(expected))
  }
})

type Draft = Awaited<ReturnType<Awaited<ReturnType<typeof createRepository>>['beginPoint']>>
type Stream = Awaited<ReturnType<Draft['openStream']>>

async function written(
  repository: Awaited<ReturnType<typeof createRepository>>,
  sizeBytes: number,
  fill: (stream: Stream) => Promise<void>,
  base?: { point: RecoveryPoint; stream: string },
): Promise<RecoveryPoint> {
  await using draft = await repository.beginPoint()
  await using stream = await draft.openStream('disk', sizeBytes, base)
  await fill(stream)
  await stream.finish()
  return draft.commit({})
}
