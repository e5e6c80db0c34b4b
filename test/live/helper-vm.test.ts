/**
 * Auto-recovery with a real kernel: disks on which a guest took its own snapshots (helper-vm-scene.ts) are rolled back by the
 * helper VM, and by umbra-revert beside their originals. Needs QEMU and Debian's packages; no root, no KVM, no device.
 */
import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { copyFile, mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { setTimeout } from 'node:timers/promises'
import { type HelperVm, startHelperVm } from '../../src/libvirt/helper-vm.ts'
import { type HelperVmImages, helperVmImages } from '../../src/libvirt/helper-vm-images.ts'
import {
  besideScript,
  copiesOf,
  emptyDisks,
  guestScript,
  lookScript,
  runInKernel,
  type SceneDisk,
  set,
  sums,
} from './helper-vm-scene.ts'
import { rarely } from './thorough.ts'

const needed = ['qemu-system-x86_64', 'qemu-img', 'setpriv', 'cpio', 'lz4', 'mkfs.btrfs', 'apt-cache']
const missing = needed.filter((program) => spawnSync(program, ['--version']).error !== undefined)
const skip = missing.length > 0 && `not installed: ${missing.join(', ')}`

const attached = (disks: readonly SceneDisk[]) =>
  disks.map(({ serial, path, format }) => ({ serial, image: { format, storage: { file: path } } }))

async function isRunning(pid: number): Promise<boolean> {
  const status = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => ') Z')
  return status.slice(status.lastIndexOf(')') + 2)[0] !== 'Z'
}

async function assertGone(pid: number): Promise<void> {
  for (let i = 0; i < 300 && (await isRunning(pid)); i++) await setTimeout(10)
  assert.equal(await isRunning(pid), false)
}

describe('the helper VM', { skip, concurrency: false }, () => {
  let directory = ''
  let images: HelperVmImages
  let disks: SceneDisk[] = []
  /** At the instant of the guest's snapshot, but for thinvg/other, which was not part of it. */
  let expected: Record<string, string> = {}
  let vm: HelperVm

  before(async () => {
    directory = await mkdtemp(join(tmpdir(), 'umbra-'))
    images = await helperVmImages()
    disks = await emptyDisks(directory)
    const found = sums(await runInKernel(images, directory, disks, guestScript))
    expected = Object.fromEntries(Object.entries(found).filter(([name]) => !name.startsWith('now:')))
    assert.notEqual(found['now:datavg/data'], found['datavg/data'])
    assert.equal(Object.keys(expected).length, 6)
  })
  after(() => rm(directory, { recursive: true, force: true }))

  const assertReverted = (looked: readonly string[]) => {
    assert.deepEqual(sums(looked), expected)
    const volumes = looked.filter((line) => line.startsWith('lv '))
    assert.deepEqual(
      volumes,
      ['datavg data', 'datavg logs', 'partvg vol', 'thinvg other', 'thinvg pool', 'thinvg vol'].map((it) => `lv ${it}`),
    )
    assert.match(looked.find((line) => line.startsWith('pool ')) ?? '', / rw /)
    const rest = looked.filter((line) => !/^(sum|lv|pool) /.test(line))
    assert.deepEqual(rest, [
      ...['default file', 'default inside', 'inside two', 'top my vol', 'top untouched', 'subvolumes 3', 'writable'],
      'btrfs is clean',
    ])
  }

  const openCopies = (name: string, which = disks) => copiesOf(which, directory, name)
  const disk = (name: string) => disks.filter(({ serial }) => serial === `orig-${name}`)

  it('rolls back linear, striped and thin volumes, a group on a partition, and btrfs', async (test) => {
    let beganMs = performance.now()
    vm = await startHelperVm({ images })
    test.diagnostic(`boot: ${Math.round(performance.now() - beganMs)} ms`)
    const copies = await openCopies('all')
    beganMs = performance.now()
    const reverted = await vm.revert(set, attached(copies), { vm: 'web' })
    test.diagnostic(`revert of 5 disks: ${Math.round(performance.now() - beganMs)} ms`)
    assert.deepEqual(reverted.map(({ where }) => where.replace(/^[0-9a-f-]{36}:/, 'fsid:')).sort(), [
      'datavg/data',
      'datavg/logs',
      'fsid:/my\\040vol',
      'partvg/vol',
      'thinvg/vol',
    ])
    assert.ok(reverted.every(({ chunks }) => chunks > 0))
    assertReverted(await runInKernel(images, directory, copies, lookScript('all')))
  })

  it('serves one VM after the other, also clones of each other', async (test) => {
    const pair = disks.slice(0, 2)
    const [one, two] = [await openCopies('one', pair), await openCopies('two', pair)]
    const beganMs = performance.now()
    const answers = await Promise.all([one, two].map((each) => vm.revert(set, attached(each), { vm: 'web' })))
    test.diagnostic(`2 disks: ${Math.round((performance.now() - beganMs) / 2)} ms`)
    assert.deepEqual(answers[0], answers[1])
    assert.equal(answers[0]?.length, 2)
  })

  it('says that a set is lost when its snapshot area has overflowed, and starts anew', async () => {
    const pid = vm.pid
    const broken = await brokenPartition((store) => store.writeUInt32LE(0, 4))
    const reverting = vm.revert(set, attached(broken), { vm: 'web' })
    await assert.rejects(reverting, { code: 'GUEST_SET_LOST', message: /web.*not valid/ })
    await assertGone(pid)
    const [reverted] = await vm.revert(set, attached(await openCopies('next', disk('part'))), { vm: 'web' })
    assert.equal(reverted?.where, 'partvg/vol')
  })

  it('refuses exceptions that point nowhere', async () => {
    // The first entry of the first area, one chunk of 4 KiB after the header.
    const broken = await brokenPartition((store) => store.writeBigUInt64LE(1n << 40n, 4096))
    await assert.rejects(vm.revert(set, attached(broken), { vm: 'web' }), { code: 'HELPER_VM_FAILED' })
  })

  it('refuses a group of which a disk is missing, a set that is not there, and noise', rarely, async () => {
    const half = attached(await openCopies('half', disk('a')))
    await assert.rejects(vm.revert(set, half, { vm: 'web' }), { code: 'HELPER_VM_FAILED', message: /more disks/ })
    const other = attached(await openCopies('other', disk('part')))
    await assert.rejects(vm.revert('0badcafe', other, { vm: 'web' }), { code: 'GUEST_SET_LOST', message: /0badcafe/ })
    const path = join(directory, 'noise.raw')
    await writeFile(path, randomBytes(8 * 1024 * 1024))
    const noise = attached([{ serial: 'noise', path, format: 'raw' }])
    await assert.rejects(vm.revert(set, noise, { vm: 'web' }), { code: 'GUEST_SET_LOST' })
  })

  it('is ended by a cancellation, and by its disposal', async () => {
    await vm.revert(set, attached(await openCopies('again', disk('part'))), { vm: 'web' })
    const pid = vm.pid
    const stop = new AbortController()
    const copies = attached(await openCopies('cancelled'))
    const reverting = vm.revert(set, copies, { vm: 'web', signal: stop.signal })
    await setTimeout(1000)
    const reason = new Error('enough')
    stop.abort(reason)
    await assert.rejects(reverting, reason)
    await assertGone(pid)
    await vm.revert(set, attached(await openCopies('more', disk('part'))), { vm: 'web' })
    const last = vm.pid
    assert.equal(await isRunning(last), true)
    await vm[Symbol.asyncDispose]()
    await assertGone(last)
    await assert.rejects(vm.revert(set, copies, { vm: 'web' }), { code: 'HELPER_VM_FAILED' })
  })

  it('dies with the process that started it', async () => {
    const library = new URL('../../src/libvirt/helper-vm.ts', import.meta.url).href
    const script = `
      import { startHelperVm } from ${JSON.stringify(library)}
      const vm = await startHelperVm({ images: ${JSON.stringify(images)} })
      console.log(vm.pid)
      setInterval(() => 0, 1000)`
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const pid = await new Promise<number>((resolve) => child.stdout.once('data', (bytes) => resolve(Number(bytes))))
    assert.equal(await isRunning(pid), true)
    child.kill('SIGKILL')
    await assertGone(pid)
  })

  it(
    'is not needed where the guest itself reverts copies beside its disks, which stay as they are',
    rarely,
    async (test) => {
      const live = await openCopies('orig')
      const copies = await openCopies('copy')
      const said = await runInKernel(images, directory, [...live, ...copies], besideScript)
      const of = (when: string) =>
        said.filter((line) => line.includes(`${when}:`)).map((it) => it.replace(`${when}:`, ''))
      assert.equal(of('before').length, 8)
      assert.deepEqual(of('after'), of('before'))
      assert.equal(said.filter((line) => line.startsWith('reverted\t')).length, 5, said.join('\n'))
      assert.ok(said.some((line) => /^fsid\tcopy-btrfs\t[0-9a-f-]{36}$/.test(line)))
      assert.ok(said.includes('left /run: lock quiet top udev  /run/udev/rules.d: '))
      test.diagnostic(`in the guest, 5 disks: ${said.find((line) => line.startsWith('took '))}`)
      assertReverted(await runInKernel(images, directory, copies, lookScript('copy')))
    },
  )

  /** A copy of the disk with a partition, its exception store spoiled. */
  async function brokenPartition(spoil: (store: Buffer) => void): Promise<SceneDisk[]> {
    const path = join(directory, 'broken.raw')
    for (const original of disk('part')) await copyFile(original.path, path)
    await using file = await open(path, 'r+')
    const block = Buffer.alloc(8192)
    for (let at = 0; ; at += 512) {
      const { bytesRead } = await file.read(block, 0, block.length, at)
      assert.ok(bytesRead > 0, 'the disk has no exception store')
      if (block.toString('latin1', 0, 4) !== 'SnAp') continue
      spoil(block)
      await file.write(block, 0, block.length, at)
      return [{ serial: 'broken', path, format: 'raw' }]
    }
  }
})
