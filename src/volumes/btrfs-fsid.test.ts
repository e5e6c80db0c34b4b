import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { Bench, MiB, memoryDevice, noBtrfs, noGdisk, run } from '../../test/sim/volume-images.ts'
import { restoreFsid } from './btrfs-fsid.ts'

const fsid = '6c1f5b1e-2a0b-4c47-9f3d-0123456789ab'
const other = '11111111-2222-3333-4444-555555555555'
const sizeBytes = 128 * MiB

function makeBtrfs(bench: Bench): string {
  const path = bench.image('btrfs', sizeBytes)
  run('mkfs.btrfs', ['-q', '-f', '-U', fsid, path])
  return path
}

const superblock = (path: string, mirror: number) =>
  run('btrfs', ['inspect-internal', 'dump-super', '-s', String(mirror), path])

describe('the fsid of a btrfs copy', { skip: noBtrfs }, () => {
  it('is given back in the superblock and its mirror, and the file system is sound', async () => {
    const bench = new Bench()
    try {
      const path = makeBtrfs(bench)
      run('btrfstune', ['-f', '-m', path])
      assert.match(superblock(path, 1), /METADATA_UUID/)
      const device = bench.device(path, sizeBytes)
      await restoreFsid(device, fsid)
      assert.deepEqual(
        device.writes.map(({ offset }) => offset),
        [64 * MiB, 65536],
        'the mirror first',
      )
      for (const mirror of [0, 1]) {
        const now = superblock(path, mirror)
        assert.match(now, new RegExp(`^fsid\\s+${fsid}$`, 'm'))
        assert.match(now, /\[match\]/)
        assert.doesNotMatch(now, /METADATA_UUID|DON'T MATCH/)
      }
      run('btrfs', ['check', path])
      await restoreFsid(device, fsid)
      assert.equal(device.writes.length, 2, 'a second time there is nothing to do')
    } finally {
      bench.end()
    }
  })

  it('is given back on a partition', { skip: noGdisk }, async () => {
    const bench = new Bench()
    try {
      const path = makeBtrfs(bench)
      run('btrfstune', ['-f', '-m', path])
      const disk = bench.image('disk', sizeBytes + 4 * MiB)
      run('sgdisk', ['-n', '1:2048:4095', '-n', `2:4096:${4096 + sizeBytes / 512 - 1}`, disk])
      const bytes = bench.contents(path)
      const device = bench.device(disk, sizeBytes + 4 * MiB)
      await device.write(2 * MiB, bytes)
      device.writes.length = 0
      await restoreFsid(device, fsid)
      assert.deepEqual(
        device.writes.map(({ offset }) => offset),
        [66 * MiB, 2 * MiB + 65536],
      )
      // The table at the end counts when that at the beginning is damaged.
      await device.write(512, Buffer.alloc(512))
      await restoreFsid(device, fsid)
      await device.write(sizeBytes + 4 * MiB - 512, Buffer.alloc(512))
      await assert.rejects(restoreFsid(device, fsid), { message: /partition table is damaged/ })
    } finally {
      bench.end()
    }
  })

  it('is not given to a file system that had another one, or whose superblocks are damaged', async () => {
    const bench = new Bench()
    try {
      const path = makeBtrfs(bench)
      const device = bench.device(path, sizeBytes)
      await assert.rejects(restoreFsid(device, other, 'vda'), { code: 'VOLUMES_NOT_UNDERSTOOD' })
      run('btrfstune', ['-f', '-m', path])
      await assert.rejects(restoreFsid(device, other, 'vda'), { message: /vda.*no btrfs whose own fsid is 11111111/ })
      const sound = bench.contents(path)
      for (const at of [65536 + 0x20, 65536 + 0x100, 65536 + 4000, 64 * MiB + 0x30, 64 * MiB + 0x23b]) {
        const spoilt = Buffer.from(sound)
        spoilt[at] = (spoilt[at] ?? 0) ^ 1
        const memory = memoryDevice(spoilt)
        await assert.rejects(restoreFsid(memory, fsid), { message: /superblock is damaged/ })
        assert.deepEqual(memory.writes, [])
      }
      for (const size of [0, 511, 65536, 65536 + 4095]) {
        await assert.rejects(restoreFsid(memoryDevice(sound.subarray(0, size)), fsid), { message: /no btrfs on it/ })
      }
    } finally {
      bench.end()
    }
  })
})
