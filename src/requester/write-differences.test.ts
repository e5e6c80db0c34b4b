/**
 * A restore over a disk that is still there: afterwards it is what was stored, whatever it was; what is the same is neither
 * written nor read from the repository.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { describe, test } from 'node:test'
import { MemoryDisk } from '../../test/sim/memory-disk.ts'
import { openMemoryRepository } from '../../test/sim/memory-repository.ts'
import type { LendingSource } from '../disk/block-device.ts'
import type { Encryption, RecoveryPoint, Repository } from '../repository/repository.ts'
import { writeDifferences } from './write-differences.ts'

const chunk = 256 * 1024
/** The last chunk is short; the third is zeros. */
const stored = Buffer.concat([randomBytes(2 * chunk), Buffer.alloc(chunk), randomBytes(2 * chunk), randomBytes(512)])

async function pointOf(
  repository: Repository,
  data: Buffer,
  before?: { point: RecoveryPoint; changed: number },
): Promise<RecoveryPoint> {
  await using draft = await repository.beginPoint()
  const base = before === undefined ? undefined : { point: before.point, stream: 'sda' }
  await using stream = await draft.openStream('sda', data.length, base)
  if (before === undefined) {
    for (let at = 0; at < data.length; at += chunk)
      await stream.writeChunk(at / chunk, Buffer.from(data.subarray(at, at + chunk)))
  } else {
    for await (const _ of stream.unusableChunks()) assert.fail('the earlier point is whole')
    const { blockSizeBytes } = repository
    const offset = before.changed * blockSizeBytes
    const number = Math.floor(offset / chunk)
    const block = before.changed % (chunk / blockSizeBytes)
    await stream.writeBlocks(number, [block], Buffer.from(data.subarray(offset, offset + blockSizeBytes)))
  }
  await stream.finish()
  return draft.commit({})
}

async function restoreOver(point: RecoveryPoint, present: Buffer) {
  const disk = MemoryDisk.of(present)
  await using source = await point.openStream('sda')
  let chunksRead = 0
  let progress = 0
  const counted: LendingSource = {
    sizeBytes: source.sizeBytes,
    read: (offset, target) => source.read(offset, target),
    extents: (offset, length) => source.extents(offset, length),
    holds: async (offset, data) => (await source.holds?.(offset, data)) ?? assert.fail('the repository can tell'),
    withBytes: (offset, length, use) => {
      chunksRead += 1
      return source.withBytes(offset, length, use)
    },
    [Symbol.asyncDispose]: async () => undefined,
  }
  const written = await writeDifferences(counted, disk.open(), {
    chunkSizeBytes: chunk,
    signal: new AbortController().signal,
    onProgress: (bytes) => {
      progress += bytes
    },
  })
  assert.equal(progress, stored.length)
  assert.equal(disk.calls.flush, 1)
  return { content: Buffer.from(disk.content()), written, chunksRead, writes: disk.calls.write }
}

for (const encryption of ['none', { passphrase: 'correct horse' }] satisfies Encryption[]) {
  describe(`on a clone (encryption: ${encryption === 'none' ? 'none' : 'passphrase'})`, () => {
    test('of the same bytes nothing is written, and nothing read from the repository', async () => {
      await using made = await openMemoryRepository(chunk, encryption)
      const { content, ...counts } = await restoreOver(await pointOf(made.repository, stored), stored)
      assert.ok(content.equals(stored))
      assert.deepEqual(counts, { written: 0, chunksRead: 0, writes: 0 })
    })

    test('only what differs is, zeros and the short end included', async () => {
      await using made = await openMemoryRepository(chunk, encryption)
      const present = Buffer.from(stored)
      for (const at of [chunk + 5, 2 * chunk + 7, stored.length - 1]) present[at] = (present[at] ?? 0) ^ 1
      const { content, ...counts } = await restoreOver(await pointOf(made.repository, stored), present)
      assert.ok(content.equals(stored))
      assert.deepEqual(counts, { written: 2 * chunk + 512, chunksRead: 3, writes: 3 })
    })

    test('a chunk that is stored in parts is compared by them', async () => {
      await using made = await openMemoryRepository(chunk, encryption)
      const first = await pointOf(made.repository, stored)
      const next = Buffer.from(stored)
      next.fill('changed', 0, 100)
      const second = await pointOf(made.repository, next, { point: first, changed: 0 })
      assert.deepEqual((await restoreOver(second, next)).writes, 0)
      const over = await restoreOver(second, stored)
      assert.ok(over.content.equals(next))
      assert.equal(over.writes, 1)
    })
  })
}
