/**
 * Disks as files by FUSE, for real: what the daemon is told, and what becomes of the files when it is killed.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { access, mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { MemoryDisk } from '../../test/sim/memory-disk.ts'
import { serveDisks } from '../disk/nbd-server.ts'
import { fuseArguments, mountDisks } from './fuse-export.ts'

const hasFuse = await access('/dev/fuse').then(
  () => process.getuid?.() === 0,
  () => false,
)

describe('disks mounted by FUSE', { skip: hasFuse ? false : 'FUSE can not be used here' }, () => {
  it('say when their daemon has ended, and leave no dead mount behind', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'umbra-fuse-'))
    const content = randomBytes(8192)
    const path = join(directory, 'a,b=c "d".raw')
    {
      const disks = [{ name: 'a/b', source: MemoryDisk.of(content).open() }]
      await using server = await serveDisks(disks, { socketPath: join(directory, 's') })
      await using mount = await mountDisks([{ exportName: 'a/b', path }], server)
      assert.ok((await readFile(path)).equals(content))
      process.kill(mount.pid, 'SIGKILL')
      assert.match(await mount.ended, /ended with SIGKILL/)
      await assert.rejects(readFile(path), { code: 'ENOTCONN' })
    }
    assert.deepEqual(await readdir(directory), [])
    await rm(directory, { recursive: true })
  })

  it('give an error for what can not be read, and go on', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'umbra-fuse-'))
    const path = join(directory, 'disk.raw')
    const disk = MemoryDisk.of(randomBytes(8192))
    {
      await using server = await serveDisks([{ name: 'disk', source: disk.open() }], {
        socketPath: join(directory, 's'),
      })
      await using _ = await mountDisks([{ exportName: 'disk', path }], server)
      disk.faults.push({ operation: 'read' })
      await assert.rejects(readFile(path), { code: 'EIO' })
      disk.faults.length = 0
      assert.ok((await readFile(path)).equals(disk.content()))
    }
    await rm(directory, { recursive: true })
  })
})

describe("the storage daemon's arguments", () => {
  it('are JSON, so that no character of a path has a meaning', () => {
    const args = fuseArguments([{ exportName: 'x,y', path: '/a,b' }], '/s,t')
    assert.deepEqual(JSON.parse(args[1] ?? ''), {
      driver: 'nbd',
      'node-name': 'disk0',
      'read-only': true,
      server: { type: 'unix', path: '/s,t' },
      export: 'x,y',
    })
    assert.equal(JSON.parse(args[3] ?? '').mountpoint, '/a,b')
  })
})
