/**
 * From copies into a draft: a recovery point to build upon that goes while the backup runs costs time, not the backup.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { MemoryDisk } from '../../test/sim/memory-disk.ts'
import { openMemoryRepository } from '../../test/sim/memory-repository.ts'
import { systemClock } from '../base/clock.ts'
import type { BlockSource } from '../disk/block-device.ts'
import type { Repository } from '../repository/repository.ts'
import type { Changes } from '../vss/change-tracking.ts'
import type { Volume } from '../vss/provider.ts'
import { EarlierBackups } from './earlier-backups.ts'
import { transferAll } from './transfer-copies.ts'

const chunk = 128 * 1024
const volume: Volume = { id: 'a/sda', component: 'a', caption: 'web01', name: 'sda', properties: {} }

/** Backs `disk` up; `meanwhile` happens between the choice of the earlier point and the transfer. */
async function backedUp(
  repository: Repository,
  disk: MemoryDisk,
  changes?: Changes,
  { meanwhile = async () => undefined as unknown, readAll = false } = {},
) {
  const earlier = await EarlierBackups.find(repository, [volume])
  await using draft = await repository.beginPoint()
  await meanwhile()
  const open = async () => disk.open()
  const copy = { id: 'copy', volume, provider: 'p', open, ...(changes === undefined ? {} : { changes }) }
  const { chunkSizeBytes, blockSizeBytes } = repository
  const signal = new AbortController().signal
  const how = { chunkSizeBytes, blockSizeBytes, signal, clock: systemClock, onProgress: undefined }
  const ports = { providers: [], limitReads: (source: BlockSource) => source, emit: () => undefined }
  const disks = await transferAll([copy], [], draft, { ...how, ...ports, earlier, readAll })
  const point = await draft.commit({})
  return { point, disk: disks.get('a')?.[0] }
}

async function contentOf(repository: Repository, id: string): Promise<Buffer> {
  await using source = await (await repository.point(id)).openStream('a/disks/sda')
  const content = Buffer.alloc(source.sizeBytes)
  await source.read(0, content)
  return content
}

test('the earlier recovery point is removed before its disk has its turn: the disk is read whole, and says why', async () => {
  await using memory = await openMemoryRepository(chunk)
  const { repository } = memory
  const disk = MemoryDisk.of(Buffer.alloc(8 * chunk, 7))
  const first = await backedUp(repository, disk)
  assert.equal(first.disk?.how, 'whole')
  disk.put(0, Buffer.alloc(1000, 8))
  const changes: Changes = {
    since: first.point.id,
    async *ranges() {
      yield { offset: 0, length: 64 * 1024 }
    },
  }
  const second = await backedUp(repository, disk, changes, {
    meanwhile: () => repository.deletePoint(first.point.id),
  })
  assert.equal(second.disk?.how, 'whole')
  assert.match(second.disk?.because ?? '', /there is no recovery point/)
  assert.ok((await contentOf(repository, second.point.id)).equals(disk.content()))
})

test('only what changed is read when the earlier recovery point is there', async () => {
  await using memory = await openMemoryRepository(chunk)
  const { repository } = memory
  const disk = MemoryDisk.of(Buffer.alloc(8 * chunk, 7))
  const first = await backedUp(repository, disk)
  disk.put(0, Buffer.alloc(1000, 8))
  const changes: Changes = {
    since: first.point.id,
    async *ranges() {
      yield { offset: 0, length: 64 * 1024 }
    },
  }
  const second = await backedUp(repository, disk, changes)
  assert.deepEqual([second.disk?.how, second.disk?.readBytes], ['changed', 64 * 1024])
  assert.ok((await contentOf(repository, second.point.id)).equals(disk.content()))
  disk.put(3 * chunk, Buffer.alloc(5 * chunk, 9)) // behind the tracking's back, on more than half of the disk
  const none: Changes = { since: second.point.id, ranges: () => ReadableStream.from<never>([]) }
  let third = await backedUp(repository, disk, none)
  for (let tries = 20; third.disk?.how === 'changed' && tries > 0; tries -= 1)
    third = await backedUp(repository, disk, { ...none, since: third.point.id })
  assert.equal(third.disk?.how, 'compared')
  assert.match(third.disk?.because ?? '', /in doubt: at \d+ the disk differs/)
  assert.ok((await contentOf(repository, third.point.id)).equals(disk.content()))
})

test('nothing is trusted when that was asked for: all of it is read and compared, and little is stored', async () => {
  await using memory = await openMemoryRepository(chunk)
  const { repository } = memory
  const disk = MemoryDisk.of(Buffer.alloc(8 * chunk, 7))
  const first = await backedUp(repository, disk)
  disk.put(0, Buffer.alloc(1000, 8))
  const lying: Changes = { since: first.point.id, ranges: () => ReadableStream.from<never>([]) }
  const { disk: told, point } = await backedUp(repository, disk, lying, { readAll: true })
  assert.deepEqual([told?.how, told?.since, told?.readBytes], ['compared', first.point.id, 8 * chunk])
  assert.match(told?.because ?? '', /no change tracking was to be trusted/)
  assert.ok((await contentOf(repository, point.id)).equals(disk.content()))
})
