/**
 * umbra mount and umbra export as the real program, on a repository that was made by hand; no libvirt anywhere.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { access, mkdir, mkdtemp, open, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { setTimeout } from 'node:timers/promises'
import { storeVms } from '../../../test/sim/stored-vm.ts'
import { runUmbra } from '../../../test/umbra-process.ts'
import { mountDisks } from '../../libvirt/fuse-export.ts'
import { createRepository } from '../../repository/repository.ts'

const program = join(import.meta.dirname, '..', '..', '..', 'bin', 'umbra')
const uuid = '11111111-2222-4333-8444-555555555555'
const content = Buffer.concat([randomBytes(3 * 1024 * 1024), Buffer.alloc(5 * 1024 * 1024), randomBytes(512)])
let directory = ''
const inside = (name: string) => join(directory, name)
const environment = () => ({
  UMBRA_STATE: inside('state'),
  UMBRA_CONNECT: 'qemu+unix:///system?socket=/nowhere/libvirt-sock',
  UMBRA_REPOSITORY: inside('repository'),
  HOME: directory,
})

const hasFuse = await access('/dev/fuse').then(
  () => process.getuid?.() === 0,
  () => false,
)

before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'umbra-mount-'))
  await using repository = await createRepository(inside('repository'), { encryption: 'none' })
  await storeVms(repository, [{ name: 'web01', uuid, disks: { vda: content, vdb: content.subarray(0, 4096) } }])
})
after(() => rm(directory, { recursive: true }))

describe('umbra mount', { skip: hasFuse ? false : 'FUSE can not be used here' }, () => {
  it('shows the disks as files that can be read only, until ^C', async () => {
    const point = inside('point')
    await mkdir(point)
    const mount = spawn(program, ['mount', 'latest', point], { env: { ...process.env, ...environment() } })
    await said(mount, 'mounted')
    assert.deepEqual((await readdir(point)).sort(), ['web01-vda.raw', 'web01-vdb.raw'])
    assert.ok((await readFile(join(point, 'web01-vda.raw'))).equals(content))
    await assert.rejects(writeThrough(join(point, 'web01-vda.raw')), { code: /EACCES|EROFS|EPERM/ })
    mount.kill('SIGINT')
    assert.equal(await endOf(mount), 0)
    assert.deepEqual([await readdir(point), await mountedBelow(point)], [[], []])
  })

  it('is unmounted when umbra is killed, and can be mounted there again', async () => {
    const point = inside('killed')
    await mkdir(point)
    for (const signal of ['SIGKILL', 'SIGINT'] as const) {
      const mount = spawn(program, ['mount', 'latest', point], { env: { ...process.env, ...environment() } })
      await said(mount, 'mounted')
      assert.equal((await mountedBelow(point)).length, 2)
      mount.kill(signal)
      await endOf(mount)
      while ((await mountedBelow(point)).length > 0) await setTimeout(20) // the test's own limit ends it
    }
    assert.deepEqual(await readdir(point), [])
  })

  it('replaces no file, and leaves none when it fails', async () => {
    const point = inside('taken')
    await mkdir(point)
    await writeFile(join(point, 'web01-vdb.raw'), 'mine')
    const end = await runUmbra(['mount', 'latest', point], environment())
    assert.equal(end.exitCode, 1)
    assert.match(end.stderr, /nothing can be mounted at .*web01-vdb\.raw: EEXIST/)
    assert.deepEqual(await readdir(point), ['web01-vdb.raw'])
    const disks = [{ exportName: 'x', path: join(point, 'x.raw') }]
    await assert.rejects(mountDisks(disks, { socketPath: inside('nobody') }), { code: 'MOUNT_FAILED' })
    assert.deepEqual(await readdir(point), ['web01-vdb.raw'])
  })
})

describe('umbra export', () => {
  it('writes images and the configuration, and says so', async () => {
    await mkdir(inside('to'))
    const words = ['export', 'latest', '--vm', 'web01', '--format', 'raw', '--to', inside('to')]
    const end = await runUmbra(words, environment())
    assert.equal(end.exitCode, 0, end.stderr)
    assert.match(end.stdout, /web01 was exported: .*\/to\/web01\.xml\n.*web01-vda\.raw \(8\.0 MiB\)/)
    assert.ok((await readFile(inside('to/web01-vda.raw'))).equals(content))
    const again = await runUmbra([...words, '--json'], environment())
    assert.equal(again.exitCode, 1)
    assert.equal(JSON.parse(again.stdout).error.code, 'EXPORT_FILE_EXISTS')
  })

  it('leaves nothing after ^C', async () => {
    await mkdir(inside('cancelled'))
    const end = await runUmbra(['export', 'latest', '--to', inside('cancelled')], environment(), 'written')
    assert.equal(end.exitCode, 130, end.stderr)
    assert.deepEqual(await readdir(inside('cancelled')), [])
  })

  it('leaves files aside when it is killed, which the next one there removes', async () => {
    await mkdir(inside('again'))
    const words = ['export', 'latest', '--to', inside('again')]
    const killed = spawn(program, words, { env: { ...process.env, ...environment() } })
    await said(killed, 'written')
    killed.kill('SIGKILL')
    await endOf(killed)
    const left = await readdir(inside('again'))
    assert.ok(left.length > 0 && left.every((name) => name.includes('.umbra-new-')), left.join())
    const end = await runUmbra(words, environment())
    assert.equal(end.exitCode, 0, end.stderr)
    assert.match(end.stderr, /removed what an export that was killed had left: .*umbra-new/)
    assert.deepEqual((await readdir(inside('again'))).sort(), ['web01-vda.qcow2', 'web01-vdb.qcow2', 'web01.xml'])
  })
})

function said({ stdout }: ChildProcess, word: string): Promise<void> {
  return new Promise((resolve, reject) => {
    let text = ''
    stdout?.on('data', (bytes: Buffer) => {
      text += bytes
      if (text.includes(word)) resolve()
    })
    stdout?.on('close', () => reject(new Error(`it ended and said: ${text}`)))
  })
}

function endOf(child: ChildProcess): Promise<number | null> {
  return new Promise((resolve) => child.on('close', (exitCode) => resolve(exitCode)))
}

async function mountedBelow(path: string): Promise<string[]> {
  return (await readFile('/proc/mounts', 'utf8')).split('\n').filter((line) => line.includes(path))
}

async function writeThrough(path: string): Promise<void> {
  const file = await open(path, 'r+')
  try {
    await file.write(Buffer.from('x'), 0, 1, 0)
    await file.sync()
  } finally {
    await file.close()
  }
}
