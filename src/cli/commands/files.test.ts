/**
 * umbra files as far as no helper VM is needed: what it is asked, and how it prints. test/live/guest-files.test.ts has the rest.
 */
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { storeVms } from '../../../test/sim/stored-vm.ts'
import { runUmbra } from '../../../test/umbra-process.ts'
import type { GuestFile } from '../../guest-files/file-record.ts'
import { createRepository } from '../../repository/repository.ts'
import { fileDocument, fileSystemsText, filesText, modeText } from '../guest-files-listing.ts'

let directory = ''
const environment = () => ({
  UMBRA_STATE: join(directory, 'state'),
  UMBRA_REPOSITORY: join(directory, 'repository'),
  HOME: directory,
})

before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'umbra-'))
  await using repository = await createRepository(join(directory, 'repository'), { encryption: 'none' })
  const disks = { vda: Buffer.alloc(4096) }
  await storeVms(repository, [
    { name: 'web01', uuid: '11111111-2222-4333-8444-555555555555', disks },
    { name: 'web02', uuid: '11111111-2222-4333-8444-666666666666', disks },
  ])
})
after(() => rm(directory, { recursive: true }))

describe('umbra files', () => {
  it('refuses what it does not understand before anything starts', async () => {
    const wrong: readonly (readonly [string[], RegExp])[] = [
      [['latest', 'rm', 'vda1:/'], /ls, cat, cp, search/],
      [['latest', 'ls', 'etc'], /etc is no path in a guest/],
      [['latest', 'cp', 'vda1:/a'], /cp takes PATH and TARGET/],
      [['latest', 'search', 'vda1:/', 'a/b'], /no slash/],
      [['latest', 'cat', 'vda1:/a', '--json'], /leave out --json/],
      [['latest', 'cat', 'vda1:/a', '--owner'], /belong to cp/],
    ]
    const ends = await Promise.all(wrong.map(([words]) => runUmbra(['files', ...words], environment())))
    for (const [index, { exitCode, stdout, stderr }] of ends.entries()) {
      assert.equal(exitCode, 2)
      assert.match(stdout + stderr, wrong[index]?.[1] ?? /./)
    }
  })

  it('wants to know which VM, and knows those that are there', async () => {
    const several = await runUmbra(['files', 'latest'], environment())
    assert.match(several.stderr, /--vm which one: web01, web02/)
    const none = await runUmbra(['files', 'latest', '--vm', 'web03'], environment())
    assert.equal(none.exitCode, 1)
  })
})

describe('files of guests', () => {
  const file: GuestFile = {
    ...{
      path: 'etc/a\n\xff',
      kind: 'file',
      mode: 0o4640,
      uid: 12,
      gid: 34,
      links: 2,
      sizeBytes: 11,
      allocatedBytes: 512,
    },
    mtimeMs: Date.UTC(2026, 0, 2),
  }

  it('are printed like ls does, harmless on a terminal', () => {
    const link: GuestFile = { ...file, path: 'x', kind: 'symlink', mode: 0o777, sizeBytes: 1000, link: '/\x1b[31m' }
    const lines = filesText([
      { file, name: 'a\n\xff' },
      { file: link, name: 'x' },
    ]).split('\n')
    assert.match(lines[0] ?? '', /^-rwSr----- 2 12 34 {3}11 2026-01-0\d \d\d:\d\d:\d\d a\\n\\377$/)
    assert.match(lines[1] ?? '', /^lrwxrwxrwx 2 12 34 1000 .* x -> \/\\033\[31m$/)
    assert.deepEqual(
      [modeText('directory', 0o1777), modeText('fifo', 0o2750), modeText('socket', 0o1000)],
      ['drwxrwxrwt', 'prwxr-s---', 's--------T'],
    )
    assert.match(
      fileSystemsText([{ index: 1, name: 'vda1', sizeBytes: 1024, type: 'swap', isReadable: false }], undefined),
      /swap \(not readable\)/,
    )
  })

  it('are told to programs with their bytes when they are no UTF-8', () => {
    const { path, pathBase64, mode, modifiedAt } = fileDocument('vda1', file)
    assert.deepEqual([path, mode, modifiedAt], ['/etc/a\\n\\377', '4640', '2026-01-02T00:00:00.000Z'])
    assert.deepEqual(Buffer.from(String(pathBase64), 'base64'), Buffer.from('/etc/a\n\xff', 'latin1'))
    assert.equal(fileDocument('vda1', { ...file, path: 'a\xc3\xa9\n' }).path, '/aé\n')
  })
})
