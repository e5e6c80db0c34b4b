/**
 * A directory as an archive that nobody writes: GNU tar reads it, Umbra's own reader brings every attribute back, and what
 * Umbra did not write is refused. GNU tar is the judge of the form.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { appendFileSync, existsSync, lstatSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { link, lutimes, mkdir, mkdtemp, rm, symlink, truncate, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import type { BlockSource } from '../disk/block-device.ts'
import { DirectorySource } from './directory-source.ts'
import { extractTree } from './extract-tree.ts'
import { blockBytes, checksumOf, encodeHeaders } from './tar-header.ts'
import { readArchive } from './tar-reader.ts'
import { listTree, type TreeEntry } from './tree-listing.ts'

const root = process.getuid?.() === 0
const odd = Buffer.from([0x66, 0xff, 0xfe, 0x0a, 0x27, 0x20, 0x78]) // no UTF-8, a new line, a quote
const under = (directory: string, name: Buffer) => Buffer.concat([Buffer.from(`${directory}/`), name])
const options = { signal: new AbortController().signal, onProgress: () => undefined }

let base = ''
before(async () => {
  base = await mkdtemp(join(tmpdir(), 'umbra-archive-'))
})
after(() => rm(base, { recursive: true }))

/** One of everything that a tree can hold. */
async function makeTree(): Promise<string> {
  const tree = await mkdtemp(join(base, 'tree-'))
  await writeFile(join(tree, 'plain'), 'plain text\n', { mode: 0o640 })
  await writeFile(join(tree, 'empty'), '')
  await writeFile(join(tree, 'block'), Buffer.alloc(blockBytes, 'b'))
  await writeFile(join(tree, 'large'), Buffer.alloc(3 * 1024 * 1024 + 17, 'abcdefg'))
  await writeFile(join(tree, 'sparse'), 'x')
  await truncate(join(tree, 'sparse'), 100_000)
  await writeFile(under(tree, odd), 'a name of any bytes')
  const deep = join(tree, 'd'.repeat(90), 'e'.repeat(200), 'f'.repeat(100))
  await mkdir(deep, { recursive: true })
  await writeFile(join(deep, 'g'.repeat(99)), 'a long name')
  await mkdir(join(tree, 'nothing in it'), { mode: 0o710 })
  await symlink('/etc/passwd', join(tree, 'absolute link'))
  await symlink('l'.repeat(300), join(tree, 'long link'))
  await link(join(tree, 'plain'), join(tree, 'second name'))
  execFileSync('mkfifo', ['-m', '622', join(tree, 'fifo')])
  if (root) {
    execFileSync('mknod', ['-m', '660', join(tree, 'device'), 'c', '1', '3'])
    execFileSync('chown', ['12345:4000000', join(tree, 'block')])
    execFileSync('chmod', ['4755', join(tree, 'block')])
    execFileSync('chown', ['-h', '54:55', join(tree, 'absolute link')])
  }
  await utimes(join(tree, 'empty'), -1.5, -1.5)
  await utimes(join(tree, 'large'), 1_234_567_890, 1_234_567_890)
  await lutimes(join(tree, 'long link'), 1000.25, 1000.25)
  await utimes(tree, 1_700_000_000.123456, 1_700_000_000.123456)
  return tree
}

async function bytesOf(source: BlockSource): Promise<Buffer> {
  const bytes = Buffer.alloc(source.sizeBytes)
  await source.read(0, bytes)
  return bytes
}

function bytesAsSource(bytes: Buffer): BlockSource {
  return {
    sizeBytes: bytes.length,
    read: async (offset, target) => target.set(bytes.subarray(offset, offset + target.length)),
    async *extents(offset, length) {
      yield { offset, length, data: true }
    },
    [Symbol.asyncDispose]: async () => undefined,
  }
}

/** What a tree is, but for the numbers of its inodes; times to the microsecond. */
async function describeTree(tree: string, exclude: readonly string[] = []) {
  const entries = await listTree(tree, { exclude })
  return entries.map(({ inode: _, path, link: to, mtimeNs, ...rest }) => {
    const content = rest.kind === 'file' ? readFileSync(under(tree, path)).toString('base64') : ''
    const us = Math.round(Number(mtimeNs) / 1000)
    return { ...rest, path: path.toString('latin1'), link: to?.toString('latin1'), us, content }
  })
}

describe('a directory as an archive', () => {
  it('is listed and extracted by GNU tar with every name, mode, owner, time and link', async () => {
    const tree = await makeTree()
    await using source = await DirectorySource.open(tree)
    const archive = join(base, `${crypto.randomUUID()}.tar`)
    await writeFile(archive, await bytesOf(source))
    const listed = execFileSync('tar', ['-tf', archive], { encoding: 'latin1', env: { ...process.env, LC_ALL: 'C' } })
    assert.equal(listed.trimEnd().split('\n').length, source.fileCount)
    const out = await mkdtemp(join(base, 'tar-'))
    const env = { ...process.env, LC_ALL: 'C' }
    execFileSync('tar', ['-xpf', archive, '--numeric-owner', '-C', out], { env, stdio: 'pipe' })
    assert.deepEqual(await describeTree(out), await describeTree(tree))
  })

  it('comes back whole by the reader of its own', async () => {
    const tree = await makeTree()
    await using source = await DirectorySource.open(tree)
    const out = join(base, crypto.randomUUID())
    await extractTree(source, out, options)
    assert.deepEqual(await describeTree(out), await describeTree(tree))
  })

  it('is the same bytes each time, in reads of any size', async () => {
    const tree = await makeTree()
    await using one = await DirectorySource.open(tree)
    await using two = await DirectorySource.open(tree)
    const whole = await bytesOf(one)
    assert.equal(whole.length % (1024 * 1024), 0)
    const pieces: Buffer[] = []
    for (let at = 0; at < two.sizeBytes; at += 70_001) {
      const piece = Buffer.alloc(Math.min(70_001, two.sizeBytes - at), 'dirt')
      await two.read(at, piece)
      pieces.push(piece)
    }
    assert.ok(Buffer.concat(pieces).equals(whole))
    let end = 0
    for await (const { offset, length, data } of one.extents(0, one.sizeBytes)) {
      assert.equal(offset, end)
      end += length
      if (!data) assert.ok(whole.subarray(offset, end).every((byte) => byte === 0))
    }
    assert.equal(end, one.sizeBytes)
  })

  it('leaves out what is excluded, at any depth or by its path', async () => {
    const tree = await makeTree()
    await mkdir(join(tree, 'cache/kept'), { recursive: true })
    await writeFile(join(tree, 'cache/kept/a.tmp'), '')
    await writeFile(join(tree, 'cache/kept/a.txt'), '')
    await mkdir(join(tree, 'cache/gone'))
    const paths = (await listTree(tree, { exclude: ['*.tmp', 'cache/gone', '/large', 'd*'] })).map(({ path }) =>
      path.toString('latin1'),
    )
    assert.ok(paths.includes('cache/kept/a.txt'))
    assert.deepEqual(
      paths.filter((path) => /tmp|gone|large|^d/.test(path)),
      [],
    )
  })

  for (const [change, doIt] of [
    ['grown', (file: string) => appendFileSync(file, 'more')],
    ['become shorter', (file: string) => execFileSync('truncate', ['-s', '3', file])],
    ['been replaced', (file: string) => execFileSync('sh', ['-c', 'cp -p "$0" "$0.new" && mv "$0.new" "$0"', file])],
    ['become a symbolic link', (file: string) => execFileSync('ln', ['-sfn', '/etc/passwd', file])],
  ] as const) {
    it(`fails when a file has ${change} since it was listed`, async () => {
      const tree = await makeTree()
      await using source = await DirectorySource.open(tree)
      doIt(join(tree, 'large'))
      await assert.rejects(bytesOf(source), { code: 'DISK_READ_FAILED', message: /large: / })
    })
  }

  it('refuses a tree that another file system is mounted in', { skip: !root && 'needs root' }, async () => {
    const tree = await makeTree()
    const inner = join(tree, 'nothing in it')
    execFileSync('mount', ['-t', 'tmpfs', 'umbra-test', inner])
    try {
      await assert.rejects(DirectorySource.open(tree), { code: 'FILES_NOT_COPIED', message: /another file system/ })
      await DirectorySource.open(tree, { exclude: ['nothing in it'] })
    } finally {
      execFileSync('umount', [inner])
    }
  })
})

describe('an archive that Umbra did not write', () => {
  const entry = (path: string, more: Partial<TreeEntry> = {}): TreeEntry => {
    const common = {
      path: Buffer.from(path),
      kind: 'file',
      mode: 0o644,
      uid: 0,
      gid: 0,
      mtimeNs: 0n,
      sizeBytes: 0,
    } as const
    return { ...common, ...more }
  }
  const top = entry('', { kind: 'directory', mode: 0o755 })
  const archive = (...entries: TreeEntry[]) => Buffer.concat([...entries.map(encodeHeaders), Buffer.alloc(1024)])

  const hostile: Readonly<Record<string, Buffer>> = {
    'leads out by ..': archive(top, entry('../escaped')),
    'leads out by .. in the middle': archive(top, entry('a/../../escaped')),
    'leads out by a symbolic link': archive(
      top,
      entry('door', { kind: 'symlink', link: Buffer.from('..') }),
      entry('door/escaped'),
    ),
    'leads out by a link that replaces a directory': archive(
      top,
      entry('door', { kind: 'directory' }),
      entry('door', { kind: 'symlink', link: Buffer.from('..') }),
      entry('door/escaped'),
    ),
    'links to a file outside': archive(top, entry('x', { kind: 'hard-link', link: Buffer.from('../passwd') })),
    'links to a symbolic link': archive(
      top,
      entry('s', { kind: 'symlink', link: Buffer.from('/etc/passwd') }),
      entry('x', { kind: 'hard-link', link: Buffer.from('s') }),
    ),
    'names a file twice': archive(top, entry('a'), entry('a')),
    'begins anywhere': archive(entry('a')),
    'is empty': archive(),
    'has no end': encodeHeaders(top),
    'promises more than there is': archive(top, entry('a', { sizeBytes: 10_000 })),
    'is damaged in a header': damaged(archive(top, entry('a'))),
    'has an absolute name': renamed(archive(top, entry('a')), '/tmp/umbra-escaped'),
    'is no archive': Buffer.alloc(4096, 'x'),
  }

  function damaged(bytes: Buffer): Buffer {
    bytes[blockBytes + 2] = 0x7a
    return bytes
  }

  function renamed(bytes: Buffer, name: string): Buffer {
    const header = bytes.subarray(blockBytes, 2 * blockBytes)
    header.fill(0, 0, 100).write(name)
    header.write(`${checksumOf(header).toString(8).padStart(6, '0')}\0 `, 148)
    return bytes
  }

  for (const [what, bytes] of Object.entries(hostile)) {
    it(`is refused when it ${what}, and nothing is written outside`, async () => {
      const place = mkdtempSync(join(base, 'hostile-'))
      await assert.rejects(extractTree(bytesAsSource(bytes), join(place, 'out'), options), (error: Error) => {
        assert.match(`${(error as { code?: string }).code}`, /^(FILES_ARCHIVE_INVALID|EEXIST)$/, String(error))
        return true
      })
      assert.deepEqual(readdirSync(place), ['out'])
      assert.equal(existsSync('/tmp/umbra-escaped'), false)
      rmSync(place, { recursive: true })
    })
  }

  for (const name of ['..', '../escaped', 'a/../../escaped', 'a/..', './a', 'a//b', '/a', '']) {
    it(`is refused by its reader already for the name ${JSON.stringify(name)}`, async () => {
      const read = async () => {
        const bytes = archive(top, entry(name), entry('x', { kind: 'hard-link', link: Buffer.from(name) }))
        for await (const _ of readArchive(bytesAsSource(bytes)));
      }
      await assert.rejects(read(), { code: 'FILES_ARCHIVE_INVALID' })
    })
  }

  it('is never extracted over something that exists', async () => {
    const tree = await makeTree()
    await using source = await DirectorySource.open(tree)
    await assert.rejects(extractTree(source, tree, options), { code: 'EEXIST' })
    await symlink('/nowhere', join(base, 'dangling'))
    await assert.rejects(extractTree(source, join(base, 'dangling'), options), { code: 'EEXIST' })
    assert.ok(lstatSync(join(base, 'dangling')).isSymbolicLink())
  })

  it('does no harm as random bytes', async () => {
    const tree = await makeTree()
    await using source = await DirectorySource.open(tree, { exclude: ['large'] })
    const whole = await bytesOf(source)
    for (let round = 0; round < 200; round++) {
      const bytes = Buffer.from(whole)
      for (let hits = 0; hits < 4; hits++) bytes[(round * 7919 + hits * 104_729) % 20_000] = (round * 31 + hits) % 256
      const read = async () => {
        for await (const { content } of readArchive(bytesAsSource(bytes))) for await (const _ of content());
      }
      await read().catch((error) => assert.equal(error.code, 'FILES_ARCHIVE_INVALID', String(error)))
    }
  })
})
