/**
 * The real files of a repository: what is large and aligned goes past the kernel's cache, and every byte is there however it
 * went.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { AlignedBuffers } from '../chunks/aligned-buffers.ts'
import { realFiles } from './repository-files.ts'

const mebibyte = 1024 * 1024

async function folderOf(t: { after(end: () => Promise<void>): void }): Promise<string> {
  const folder = await mkdtemp(path.join(tmpdir(), 'umbra-files-'))
  t.after(() => rm(folder, { recursive: true }))
  return folder
}

async function written(file: string, parts: readonly Uint8Array[]): Promise<void> {
  const handle = await realFiles.create(file)
  for (const part of parts) {
    for (let done = 0; done < part.length; ) done += await handle.write(part.subarray(done))
  }
  await handle.sync()
  await handle.close()
}

test('every byte is there in its place, aligned or not, in parts of any size', async (t) => {
  const folder = await folderOf(t)
  const aligned = new AlignedBuffers(4 * mebibyte, 0).take()
  for (let at = 0; at < aligned.length; at += 4) aligned.writeUInt32LE((at * 2654435761) % 2 ** 32, at)
  const shapes = [
    [3 * mebibyte],
    [3 * mebibyte + 1234, 77],
    [100, 3 * mebibyte],
    [mebibyte, 2 * mebibyte, 5],
    [4096, 5],
  ]
  for (const [number, lengths] of shapes.entries()) {
    const parts = lengths.map((length, index) => aligned.subarray(index * 4096, index * 4096 + length))
    const file = path.join(folder, `${number}`)
    await written(file, parts)
    assert.ok((await readFile(file)).equals(Buffer.concat(parts)), `${lengths}`)
  }
})

test('a whole pack leaves nothing in the cache of the host, which has better use for it', async (t) => {
  const folder = await folderOf(t)
  const fileSystem = execFileSync('stat', ['-f', '--format=%T', folder], { encoding: 'utf8' }).trim()
  if (!['ext2/ext3', 'xfs', 'btrfs'].includes(fileSystem)) return t.skip(`no way past the cache on ${fileSystem}`)
  if (!existsSync('/usr/bin/fincore')) return t.skip('there is no fincore (util-linux-extra)')
  const file = path.join(folder, 'pack')
  await written(file, [new AlignedBuffers(4 * mebibyte, 0).take()])
  const cachedBytes = execFileSync('/usr/bin/fincore', ['--noheadings', '--bytes', '--output', 'RES', file])
  assert.equal(Number(cachedBytes), 0)
})
