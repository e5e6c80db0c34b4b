/**
 * Copies out of archives as GNU tar writes them in the helper VM, and out of such as only a hostile guest would have.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import {
  chmod,
  link,
  lstat,
  mkdir,
  mkdtemp,
  open,
  readdir,
  readFile,
  readlink,
  rm,
  symlink,
  utimes,
  writeFile,
} from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { encodeHeaders } from '../files/tar-header.ts'
import type { TreeEntry } from '../files/tree-listing.ts'
import { copyOut } from './copy-out.ts'
import type { FoundFile } from './guest-files.ts'
import { GuestFiles } from './guest-files.ts'
import type { AnswerEnd } from './guest-reader.ts'

const isGnuTar = spawnSync('tar', ['--version']).stdout?.toString().includes('GNU tar') ?? false
const isRoot = process.getuid?.() === 0
const fine: AnswerEnd = { exit: 0, notes: [] }

let directory = ''
const inside = (name: string) => join(directory, name)
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'umbra-'))
})
after(() => rm(directory, { recursive: true, force: true }))

/** Copies what `archive` holds to `target`. */
async function copy(
  archive: Uint8Array,
  target: string,
  options: { kind?: 'file' | 'directory'; path?: string; end?: AnswerEnd; keepOwners?: boolean } = {},
) {
  const { kind = 'directory', path = kind === 'file' ? 'etc/x' : 'etc', end = fine, keepOwners = false } = options
  const notes: string[] = []
  const reader = {
    async *ask() {
      for (let at = 0; at < archive.length; at += 10_000) yield Buffer.from(archive.subarray(at, at + 10_000))
      return end
    },
  }
  const files = new GuestFiles(reader, { disks: 1, onNote: () => undefined })
  const fileSystem = { index: 1, name: 'vda1', sizeBytes: 1, isReadable: true }
  const source = { fileSystem, file: { path, kind } } as FoundFile
  const signal = AbortSignal.timeout(60_000)
  const copied = await copyOut(files, source, target, {
    keepOwners,
    signal,
    onProgress: () => undefined,
    onNote: (note) => notes.push(note),
  })
  return { copied, notes }
}

/** As helper-vm/umbra-files calls it. */
function tarOf(from: string, name: string): Buffer {
  const words = [
    '-c',
    '-f',
    '-',
    '-b',
    '128',
    '--format=posix',
    '--pax-option=delete=atime,delete=ctime',
    '--sparse',
    '--numeric-owner',
  ]
  return execFileSync('tar', [...words, '-C', from, name], {
    maxBuffer: 64 * 1024 * 1024,
    env: { LC_ALL: 'C', PATH: process.env.PATH },
  })
}

const entryOf = (path: string, more: Partial<TreeEntry> = {}): TreeEntry => ({
  path: Buffer.from(path, 'latin1'),
  ...{ kind: 'file', mode: 0o644, uid: 0, gid: 0, mtimeNs: 0n, sizeBytes: 0 },
  ...more,
})
const archiveOf = (...entries: TreeEntry[]) => Buffer.concat([...entries.map(encodeHeaders), Buffer.alloc(65_536)])
const root = entryOf('', { kind: 'directory', mode: 0o755 })

describe('a tree of GNU tar', { skip: !isGnuTar && 'GNU tar is not installed' }, () => {
  const oddName = Buffer.from('odd\n\xff\x01', 'latin1')
  const longName = 'n'.repeat(250)
  const content = randomBytes(100_000)

  before(async () => {
    const tree = inside('tree')
    await mkdir(join(tree, longName, longName), { recursive: true })
    await writeFile(join(tree, 'plain'), content)
    await writeFile(Buffer.concat([Buffer.from(`${tree}/`), oddName]), 'odd')
    await writeFile(join(tree, longName, longName, 'deep'), 'deep')
    await link(join(tree, 'plain'), join(tree, 'second'))
    await symlink('/etc/passwd', join(tree, 'absolute'))
    await link(join(tree, 'absolute'), join(tree, 'absolute-too'))
    await symlink('../../..', join(tree, 'up'))
    const sparse = await open(join(tree, 'sparse'), 'w')
    await sparse.write(content, 0, 4096, 0)
    for (let part = 1; part < 60; part++) await sparse.write(content, 0, 4096, part * 1_048_576)
    await sparse.truncate(500_000_000)
    await sparse.close()
    execFileSync('mkfifo', [join(tree, 'fifo')])
    await chmod(join(tree, 'plain'), 0o4751)
    await utimes(join(tree, 'plain'), 1_700_000_000.123456, 1_700_000_000.123456)
  })

  it('comes out with names, links, times, modes and holes', async () => {
    const { copied, notes } = await copy(tarOf(inside('tree'), '.'), inside('out'))
    const out = inside('out')
    assert.ok((await readFile(join(out, 'plain'))).equals(content))
    const [plain, second, sparse] = await Promise.all(
      ['plain', 'second', 'sparse'].map((name) => lstat(join(out, name))),
    )
    assert.deepEqual([plain?.mode && plain.mode & 0o7777, plain?.ino], [0o751, second?.ino])
    assert.equal(plain?.mtimeMs, 1_700_000_000_123.456)
    assert.ok((sparse?.blocks ?? 0) * 512 < 2_000_000 && sparse?.size === 500_000_000)
    assert.ok((await readFile(join(out, 'sparse'))).equals(await readFile(inside('tree/sparse'))))
    assert.equal(await readFile(Buffer.concat([Buffer.from(`${out}/`), oddName]), 'utf8'), 'odd')
    assert.equal(await readFile(join(out, longName, longName, 'deep'), 'utf8'), 'deep')
    assert.equal(await readlink(join(out, 'absolute-too')), '/etc/passwd')
    assert.equal(await readlink(join(out, 'up')), '../../..')
    assert.deepEqual(notes, ['fifo is left out: it is a fifo'])
    assert.deepEqual([copied.skipped, copied.isWhole, copied.files], [1, true, 4])
    const compared = spawnSync('diff', ['-r', '--no-dereference', inside('tree'), out])
    assert.match(compared.stdout.toString(), /^Only in .*: fifo\n$/)
  })

  it('keeps owners and setuid when asked', { skip: !isRoot && 'only root can' }, async () => {
    const owned = inside('owned')
    await mkdir(owned)
    await writeFile(join(owned, 'x'), 'x')
    execFileSync('chown', ['-R', '12:34', owned])
    await chmod(join(owned, 'x'), 0o4755)
    await copy(tarOf(owned, '.'), inside('kept'), { keepOwners: true })
    await copy(tarOf(owned, '.'), inside('ours'))
    const of = async (name: string) => {
      const { uid, gid, mode } = await lstat(inside(name))
      return [uid, gid, mode & 0o7777]
    }
    assert.deepEqual(await of('kept/x'), [12, 34, 0o4755])
    assert.deepEqual(await of('ours/x'), [0, 0, 0o755])
    assert.deepEqual((await of('kept')).slice(0, 2), [12, 34])
  })

  it('comes as a single file too', async () => {
    for (const name of ['plain', 'absolute', 'sparse']) {
      await copy(tarOf(inside('tree'), `./${name}`), inside(`one-${name}`), { kind: 'file', path: `etc/${name}` })
    }
    assert.ok((await readFile(inside('one-plain'))).equals(content))
    assert.equal(await readlink(inside('one-absolute')), '/etc/passwd')
    assert.equal((await lstat(inside('one-sparse'))).size, 500_000_000)
  })

  it('says when files could not be read as a whole, and leaves nothing of one that is cut off', async () => {
    const archive = tarOf(inside('tree'), '.')
    const { copied } = await copy(archive, inside('damaged'), { end: { exit: 2, notes: ['Input/output error'] } })
    assert.equal(copied.isWhole, false)
    for (const length of [200_000, 1024, 10_240]) {
      const end = { exit: 2, notes: ['it is gone'] }
      await assert.rejects(copy(archive.subarray(0, length), inside('cut'), { end }), { code: 'GUEST_FILES_REFUSED' })
    }
    await assert.rejects(copy(archive, inside('cut'), { end: { exit: 137, notes: [] } }), {
      code: 'GUEST_FILES_INCOMPLETE',
    })
    assert.deepEqual(
      (await readdir(directory)).filter((name) => name === 'cut' || name.startsWith('.umbra')),
      [],
    )
  })
})

describe('a hostile archive', () => {
  const text = (path: string) => Buffer.from(path, 'latin1')
  const below = entryOf('a/b/evil', { sizeBytes: 0 })

  it('never gets out of its directory', async () => {
    const outside = inside('outside')
    await mkdir(outside, { recursive: true })
    const linkOut = (path: string) => entryOf(path, { kind: 'symlink', link: text(outside) })
    const lies: TreeEntry[][] = [
      [root, entryOf('../outside/evil')],
      [root, entryOf('/tmp/evil')],
      [root, entryOf('a/../../outside/evil')],
      [root, linkOut('a'), entryOf('a/evil')],
      [root, linkOut('a'), entryOf('a', { kind: 'directory' }), entryOf('a/evil')],
      [root, linkOut('a'), entryOf('a')],
      [root, entryOf('a', { kind: 'directory' }), linkOut('a/b'), below],
      [root, entryOf('a', { kind: 'directory' }), linkOut('a'), entryOf('a/evil')],
      [root, entryOf('a', { kind: 'hard-link', link: text('../outside/x') })],
      [root, entryOf('a', { kind: 'hard-link', link: text('b') })],
      [root, root, entryOf('a')],
      [entryOf('a')],
      [],
    ]
    for (const [number, entries] of lies.entries()) {
      await assert.rejects(copy(archiveOf(...entries), inside('trap')), /./, `lie ${number}`)
      assert.deepEqual(await readdir(outside), [], `lie ${number}`)
      assert.deepEqual(
        (await readdir(directory)).filter((name) => name === 'trap' || name.startsWith('.umbra')),
        [],
      )
    }
  })

  it('brings no devices, and nothing below what is left out', async () => {
    const device = { device: { major: 8, minor: 0 } }
    const long = 'x'.repeat(300)
    const { copied, notes } = await copy(
      archiveOf(
        root,
        entryOf('sda', { kind: 'block-device', ...device }),
        entryOf('null', { kind: 'character-device', ...device }),
        entryOf('sda-too', { kind: 'hard-link', link: text('sda') }),
        entryOf(long, { kind: 'directory' }),
        entryOf(`${long}/y`),
        entryOf(`${long}/z`, { kind: 'directory' }),
        entryOf(`${long}/z/y`),
        entryOf('fine'),
      ),
      inside('devices'),
      { keepOwners: true },
    )
    assert.deepEqual(await readdir(inside('devices')), ['fine'])
    assert.deepEqual([copied.skipped, notes.length], [7, 4])
  })

  it('brings no other file than the one that was asked for', async () => {
    for (const entries of [
      [entryOf('y')],
      [entryOf('x', { kind: 'directory' }), entryOf('x/y')],
      [entryOf('x'), entryOf('x')],
    ]) {
      await assert.rejects(copy(archiveOf(...entries), inside('single'), { kind: 'file' }))
    }
    assert.ok(!(await readdir(directory)).includes('single'))
  })

  it('takes no place that exists, and copies no device', async () => {
    await symlink(inside('nowhere'), inside('dangling'))
    for (const target of ['dangling', 'outside']) {
      await assert.rejects(copy(archiveOf(root), inside(target)), { code: 'USAGE' })
    }
    await assert.rejects(copy(archiveOf(root), inside('new'), { kind: 'fifo' as 'file' }), {
      code: 'GUEST_FILES_REFUSED',
    })
  })

  it('may tell of a file without end: it is refused before it fills the disk', async () => {
    const archive = Buffer.concat([root, entryOf('endless', { sizeBytes: 2 ** 52 })].map(encodeHeaders))
    const cut = copy(Buffer.concat([archive, Buffer.alloc(10_000, 1)]), inside('endless'), {
      end: { exit: 2, notes: [] },
    })
    await assert.rejects(cut, { code: 'GUEST_FILES_REFUSED', message: /cut off/ })
    assert.ok(!(await readdir(directory)).includes('endless'))
  })

  it('may lie about sparse files, to no avail', async () => {
    const record = (key: string, value: string) => {
      const rest = ` ${key}=${value}\n`
      const length =
        [1, 2, 3].map((digits) => rest.length + digits).find((sum) => String(sum).length === sum - rest.length) ?? 0
      return `${length}${rest}`
    }
    const sparse = (map: string, size: number, realsize = '100000') => {
      const keys = [
        ['major', '1'],
        ['minor', '0'],
        ['name', './s'],
        ['realsize', realsize],
      ] as const
      const extended = Buffer.from(keys.map(([key, value]) => record(`GNU.sparse.${key}`, value)).join(''))
      const header = encodeHeaders(entryOf('x', { sizeBytes: extended.length }))
      header.write('x', 156)
      header.write('        ', 148)
      const sum = header.reduce((total, byte) => total + byte, 0)
      header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
      const body = Buffer.alloc(512)
      extended.copy(body)
      const data = Buffer.alloc(Math.ceil(size / 512) * 512)
      data.write(map)
      return Buffer.concat([
        encodeHeaders(root),
        header,
        body,
        encodeHeaders(entryOf('s', { sizeBytes: size })),
        data,
        Buffer.alloc(65_536),
      ])
    }
    await copy(sparse('1\n1000\n24\n', 536), inside('sparse-fine'))
    assert.equal((await lstat(inside('sparse-fine/s'))).size, 100_000)
    const lies: [string, number, string?][] = [
      ...(
        ['1\n99990\n24\n', '2\n1000\n24\n0\n24\n', '1\n0\n5000\n', '-1\n', 'x\n', '99999999\n', '1\n0\n'] as const
      ).map((map): [string, number] => [map, 560]),
      ...([
        ['', 0],
        ['1\n0\n24\n', 100],
      ] as [string, number][]),
      ...['x', '99999999999999999', '-5'].map((size): [string, number, string] => ['1\n1000\n24\n', 536, size]),
    ]
    for (const [map, size, realsize] of lies) {
      await assert.rejects(copy(sparse(map, size, realsize), inside('sparse')), /./, JSON.stringify(map))
    }
    assert.ok(!(await readdir(directory)).includes('sparse'))
  })

  it('does no harm as random bytes', async () => {
    const archive = archiveOf(root, entryOf('a', { kind: 'directory' }), entryOf('a/b', { sizeBytes: 0 }), entryOf('c'))
    for (let turn = 0; turn < 100; turn++) {
      const bytes = Buffer.from(archive)
      for (let change = 0; change < 4; change++)
        bytes[(turn * 7919 + change * 104_729) % 2560] = (turn * 31 + change) % 256
      await copy(bytes, inside(`random-${turn}`)).catch((error) => assert.ok(error instanceof Error))
    }
    assert.deepEqual(
      (await readdir(directory)).filter((name) => name.startsWith('.umbra')),
      [],
    )
  })
})
