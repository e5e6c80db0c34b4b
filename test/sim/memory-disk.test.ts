/**
 * The disk in memory keeps the contract of real disks, and fails where it is told to.
 * See test/contract/block-device.contract.ts.
 */
import assert from 'node:assert/strict'
import { it } from 'node:test'
import { blockDeviceContract, blockSinkContract, failsAt } from '../contract/block-device.contract.ts'
import { MemoryDisk } from './memory-disk.ts'

blockDeviceContract('a disk in memory', async (content) => MemoryDisk.of(content).open())
blockSinkContract('a disk in memory', async (size) => new MemoryDisk(size).open())

it('fails the call or the offset that was named, and works again after that', async () => {
  const disk = new MemoryDisk(1024 * 1024, [
    { operation: 'read', call: 2 },
    { operation: 'write', offset: 70_000, reason: 'bad sector' },
  ])
  await using handle = disk.open()
  await handle.read(0, new Uint8Array(10))
  await assert.rejects(handle.read(10, new Uint8Array(10)), failsAt('DISK_READ_FAILED', 10))
  await handle.read(20, new Uint8Array(10))
  await assert.rejects(handle.write(65_536, new Uint8Array(65_536)), /bad sector/)
  await handle.write(0, new Uint8Array(10).fill(7))
  assert.deepEqual(disk.content().subarray(0, 11), new Uint8Array([7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0]))
})
