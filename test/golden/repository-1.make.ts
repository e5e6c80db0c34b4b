/**
 * Makes test/golden/repository-1.tar.gz, a tiny repository of format 1. Run once, with the first release of the format;
 * its result is committed and never made again: a program that can not read it any more has broken the format.
 *   node test/golden/repository-1.make.ts
 */
import { execFileSync } from 'node:child_process'
import { createCipheriv } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createRepository, type Repository } from '../../src/repository/repository.ts'

const chunkSizeBytes = 64 * 1024

/** Bytes that do not compress, always the same. */
export function goldenNoise(length: number): Buffer {
  return createCipheriv('aes-128-ctr', Buffer.alloc(16, 'umbra'), Buffer.alloc(16)).update(Buffer.alloc(length))
}

/** Text, text, zeros, and a short end of noise. `day` 2 changes the second chunk. */
export function goldenDisk(day: 1 | 2): Buffer {
  return Buffer.concat([
    Buffer.alloc(chunkSizeBytes, 'the first chunk; '),
    Buffer.alloc(chunkSizeBytes, `the second chunk on day ${day}; `),
    Buffer.alloc(3 * chunkSizeBytes),
    goldenNoise(1234),
  ])
}

async function makeGolden(): Promise<void> {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-golden-'))
  await fillRepository(folder)
  const archive = path.join(import.meta.dirname, 'repository-1.tar.gz')
  const names = ['umbra-repository.json', 'points', 'indexes', 'packs']
  execFileSync('tar', ['-C', folder, '--owner=0', '--group=0', '-czf', archive, ...names])
  await rm(folder, { recursive: true })
}

async function fillRepository(folder: string): Promise<void> {
  await using repository = await createRepository(folder, { chunkSizeBytes, encryption: 'none' })
  await writeGoldenPoints(repository)
}

export async function writeGoldenPoints(repository: Repository): Promise<void> {
  for (const day of [1, 2] as const) {
    await using draft = await repository.beginPoint()
    const disk = goldenDisk(day)
    await using stream = await draft.openStream('vms/7e1b0c9e-1111-4222-8333-444455556666/disks/sda', disk.length)
    for (let number = 0; number * chunkSizeBytes < disk.length; number += 1) {
      await stream.writeChunk(number, disk.subarray(number * chunkSizeBytes, (number + 1) * chunkSizeBytes))
    }
    await stream.finish()
    await using empty = await draft.openStream('vms/7e1b0c9e-1111-4222-8333-444455556666/disks/empty', 1024 ** 4)
    await empty.finish()
    await draft.putDocument('components.xml', Buffer.from(`<components day="${day}"/>`))
    await draft.commit({ day, label: 'golden ✓' })
  }
}

if (import.meta.main) await makeGolden()
