/**
 * A file of the host keeps the contract of disks. See test/contract/block-device.contract.ts.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { blockDeviceContract, blockSinkContract } from '../../test/contract/block-device.contract.ts'
import { AlignedBuffers } from '../repository/chunks/aligned-buffers.ts'
import { createHostFile, openHostFile } from './host-file.ts'

const folder = await mkdtemp(join(tmpdir(), 'umbra-host-file-'))
after(() => rm(folder, { recursive: true }))
let count = 0
const newPath = () => join(folder, String(++count))

blockDeviceContract('a file of the host', async (content) => {
  const path = newPath()
  await writeFile(path, content)
  return openHostFile(path)
})
blockSinkContract('a file of the host', (size) => createHostFile(newPath(), size))

test('what is written past the cache and what goes through it become one file', async () => {
  const path = newPath()
  const content = randomBytes(3 * 4096 + 512)
  const [aligned, unaligned] = [new AlignedBuffers(4096, 0).take(), new AlignedBuffers(4096, 1).take()]
  {
    await using file = await createHostFile(path, content.length)
    for (const [page, buffer] of [aligned, unaligned, aligned].entries()) {
      content.copy(buffer, 0, page * 4096)
      await file.write(page * 4096, buffer)
    }
    await file.write(3 * 4096, content.subarray(3 * 4096)) // a disk may end within a page
    await file.flush()
  }
  assert.deepEqual(await readFile(path), content)
})

test('several buffers, past the cache and through it, become one file', async () => {
  const path = newPath()
  const content = randomBytes(4 * 4096 + 512)
  const buffers = new AlignedBuffers(4096, 0)
  const parts = [0, 1, 2, 3].map((page) => {
    const buffer = buffers.take()
    content.copy(buffer, 0, page * 4096)
    return buffer
  })
  {
    await using file = await createHostFile(path, content.length)
    await file.writeParts?.(0, parts.slice(0, 2))
    await file.writeParts?.(2 * 4096, [...parts.slice(2), content.subarray(4 * 4096)])
    await file.flush()
  }
  assert.deepEqual(await readFile(path), content)
})
