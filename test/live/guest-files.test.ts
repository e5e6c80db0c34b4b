/**
 * Files out of a recovery point: disks with every file system and layout that is read, filled by a real kernel that lost its power
 * (guest-files-scene.ts), put into a repository, and read by one helper VM. Needs QEMU and Debian's packages; no libvirt, no KVM,
 * no device.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { lstat, mkdtemp, readdir, readFile, readlink, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { type GuestFilesSession, openGuestFiles } from '../../src/cli/guest-files-session.ts'
import { Screen } from '../../src/cli/screen.ts'
import { readConfiguration } from '../../src/config.ts'
import { copyOut } from '../../src/guest-files/copy-out.ts'
import { parsePlace } from '../../src/guest-files/guest-path.ts'
import { helperVmImages } from '../../src/libvirt/helper-vm-images.ts'
import { createRepository, openRepository, type Repository } from '../../src/repository/repository.ts'
import { storeVms } from '../sim/stored-vm.ts'
import { runUmbra } from '../umbra-process.ts'
import { guestDisks, sceneUuid } from './guest-files-scene.ts'
import { sums } from './helper-vm-scene.ts'

const needed = ['qemu-system-x86_64', 'qemu-img', 'setpriv', 'prlimit', 'cpio', 'lz4', 'apt-cache']
const makers = ['mkfs.ext4', 'mkfs.xfs', 'mkfs.btrfs']
const missing = [
  ...needed.filter((program) => spawnSync(program, ['--version']).error !== undefined),
  ...makers.filter((program) => spawnSync(program, ['-V']).error !== undefined),
]
const skip = missing.length > 0 && `not installed: ${missing.join(', ')}`

describe('the files of a recovery point', { skip, concurrency: false }, () => {
  let directory = ''
  let repository: Repository
  let session: GuestFilesSession
  let said: readonly string[] = []
  let hasNtfs = false
  const notes: string[] = []
  const cancel = new AbortController()
  const inside = (name: string) => join(directory, name)
  const environment = () => ({ UMBRA_STATE: inside('state'), UMBRA_REPOSITORY: inside('repository'), HOME: directory })

  before(async () => {
    directory = await mkdtemp(join(tmpdir(), 'umbra-'))
    const made = await guestDisks(await helperVmImages(), directory)
    ;({ said, hasNtfs } = made)
    repository = await createRepository(inside('repository'), { encryption: 'none' })
    const disks: Record<string, Buffer> = {}
    for (const { serial, path } of made.disks) disks[serial] = await readFile(path)
    await storeVms(repository, [{ name: 'web01', uuid: '11111111-2222-4333-8444-555555555555', disks }])
    for (const { path } of made.disks) await rm(path)
    const settings = await readConfiguration({ state: inside('state') })
    const screen = new Screen(false)
    Object.assign(screen, { note: (note: string) => notes.push(note) })
    const point = await repository.point('latest').catch(async () => (await repository.listPoints())[0])
    assert.ok(point !== undefined)
    const openAgain = () => openRepository(inside('repository'))
    session = await openGuestFiles({ point, vm: undefined, openAgain }, { settings, signal: cancel.signal, screen })
  })
  after(async () => {
    await session?.[Symbol.asyncDispose]()
    await repository?.[Symbol.asyncDispose]()
    await rm(directory, { recursive: true, force: true })
  })

  const find = (place: string, follow = true) => session.files.find(parsePlace(place, true), { follow })
  const read = async (place: string) => {
    const parts: Buffer[] = []
    for await (const bytes of session.files.content(await find(place))) parts.push(Buffer.from(bytes))
    return Buffer.concat(parts)
  }
  const copy = async (place: string, target: string, keepOwners = false) => {
    const left: string[] = []
    const options = { keepOwners, signal: cancel.signal, onProgress: () => undefined }
    const copied = await copyOut(session.files, await find(place, false), inside(target), {
      ...options,
      onNote: (note) => left.push(note),
    })
    return { copied, left }
  }
  const timeTold = () => Number(said.find((line) => line.startsWith('time '))?.slice(5))

  it('lie on partitions, whole disks and logical volumes', async () => {
    const found = (await session.files.fileSystems()).map(({ name, type, label }) => [name, type, label ?? ''])
    assert.deepEqual(found, [
      ...[
        ['vda1', 'ext4', 'root fs'],
        ['vda2', 'vfat', 'DATA'],
        ['vda3', 'LVM2_member', ''],
      ],
      ...[
        ['vdb', 'xfs', 'xdata'],
        ['vdc', 'btrfs', ''],
      ],
      hasNtfs ? ['vdd', 'ntfs', 'WIN'] : ['vdd', undefined, ''],
      ...[
        ['vg0/data', 'ext2', ''],
        ['vg0/thin', 'ext2', ''],
      ],
    ])
  })

  it('are read whole from every file system', async () => {
    const places = {
      ext4: 'vda1',
      vfat: 'vda2',
      xfs: 'LABEL=xdata',
      btrfs: 'vdc',
      data: 'vg0/data',
      thin: 'vg0/thin',
      ntfs: 'vdd',
    }
    const expected = sums(said)
    assert.equal(Object.keys(expected).length, hasNtfs ? 7 : 6)
    for (const [name, md5] of Object.entries(expected)) {
      const content = await read(`${places[name as 'ext4']}:/etc/sub/random.conf`)
      assert.equal(createHash('md5').update(content).digest('hex'), md5, name)
    }
    assert.equal((await read('vdc:/home/file')).toString(), 'hi\n')
    assert.deepEqual(notes, [])
  })

  it('are listed with what an inode says, odd names too', async () => {
    for (const place of ['vda1:/etc', `UUID=${sceneUuid}:/deep/relative`, 'vdb:/etc']) {
      const listed = await session.files.list(await find(place), 1000)
      const by = Object.fromEntries(listed?.map((file) => [file.path.slice(4), file]) ?? [])
      const kinds = {
        absolute: 'symlink',
        device: 'character-device',
        fifo: 'fifo',
        hostname: 'file',
        sub: 'directory',
      }
      for (const [name, kind] of Object.entries(kinds)) assert.equal(by[name]?.kind, kind)
      const { uid, gid, mode, links } = by.hostname ?? {}
      assert.deepEqual([uid, gid, mode, links, by.absolute?.link], [12, 34, 0o4640, 2, '/etc/hostname'])
      assert.ok(by['new\nline\xff\x01x'] !== undefined && (by.sparse?.allocatedBytes ?? 1e9) < 1_000_000)
    }
    assert.equal((await read('vda1:/etc/new\\nline\\377\\001x')).toString(), 'odd')
  })

  it('are found where symbolic links of the guest lead, and nowhere else', async () => {
    assert.equal((await read('vda1:/deep/relative/absolute')).toString(), 'guest-ext4\n')
    assert.equal((await read('/journalled')).toString(), 'guest-ext4\n', 'the journal was replayed')
    for (const place of [
      'vda1:/etc/out',
      'vda1:/etc/dangling',
      'vda1:/etc/loop',
      '/nowhere',
      'vda1:/sbin/umbra-files',
    ]) {
      await assert.rejects(find(place), { code: 'GUEST_PATH_NOT_FOUND' }, place)
    }
    await assert.rejects(find('/etc/hostname'), { code: 'GUEST_PATH_AMBIGUOUS', message: /vda1, vda2, vdb/ })
    await assert.rejects(find('vda3:/'), { code: 'GUEST_FILE_SYSTEM_UNREADABLE' })
  })

  it('are searched for by name', async () => {
    const found: string[] = []
    for await (const file of session.files.search(await find('vda1:/'), '*.conf'))
      if (file !== undefined) found.push(file.path)
    assert.deepEqual(found, ['etc/sub/random.conf'])
  })

  it('are copied with names, links, holes and times, and without devices', async () => {
    const isRoot = process.getuid?.() === 0
    for (const [place, target] of [
      ['vda1:/', 'ext4'],
      ['vdb:/', 'xfs'],
    ] as const) {
      const { copied, left } = await copy(place, target, isRoot)
      assert.deepEqual(left.toSorted(), [
        'etc/device is left out: it is a character-device',
        'etc/fifo is left out: it is a fifo',
      ])
      assert.equal(copied.isWhole, true)
      const name = inside(`${target}/etc/hostname`)
      const [hostname, sparse] = [await lstat(name), await lstat(inside(`${target}/etc/sparse`))]
      assert.deepEqual([hostname.mode & 0o7777, hostname.nlink], [isRoot ? 0o4640 : 0o640, 2])
      if (isRoot) assert.deepEqual([hostname.uid, hostname.gid], [12, 34])
      if (target === 'ext4') assert.ok(Math.abs(hostname.mtimeMs / 1000 - timeTold()) < 1e-5)
      assert.ok(sparse.size === 300_000_000 && sparse.blocks * 512 < 1_000_000)
      assert.equal(await readlink(inside(`${target}/etc/out`)), '../../../../../../../../tmp')
      const odd = Buffer.concat([Buffer.from(inside(`${target}/etc/`)), Buffer.from('new\nline\xff\x01x', 'latin1')])
      assert.equal(await readFile(odd, 'utf8'), 'odd')
      const content = await readFile(inside(`${target}/etc/sub/random.conf`))
      assert.equal(createHash('md5').update(content).digest('hex'), sums(said)[target])
    }
    await copy('vg0/thin:/etc/hostname', 'one-file')
    assert.equal(await readFile(inside('one-file'), 'utf8'), 'guest-thin\n')
  })

  it('are let go of by ^C: no process, no socket, no file is left', async () => {
    const { exitCode, stdout } = await runUmbra(['files', 'latest', 'search', 'vda1:/', '*'], environment(), 'vda1:/')
    assert.match(stdout, /^d.*vda1:\/etc$/m)
    assert.ok(exitCode === 130 || exitCode === 0) // the search may have been quicker
    const own = await readdir(inside('state/s'))
    assert.equal(own.filter((name) => name.startsWith('files-')).length, 1, 'that of this test')
  })

  it('are given up when the helper VM hangs, and it ends', async () => {
    process.kill(session.pid, 'SIGSTOP')
    const asked = session.files.find(parsePlace('vda1:/etc'), { follow: true })
    cancel.abort(new Error('enough'))
    await assert.rejects(asked, { message: 'enough' })
    assert.throws(() => process.kill(session.pid, 0), { code: 'ESRCH' })
  })
})
