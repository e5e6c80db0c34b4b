/**
 * A host that is prepared once and copied for each case of a matrix: every copy is like the first, and none knows of another.
 */
import assert from 'node:assert/strict'
import { lstatSync, readFileSync, readlinkSync, renameSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { leftovers } from '../sim/leftovers.ts'
import { uuidOf } from '../sim/sim-world.ts'
import { Host, preparedOnce } from './harness.ts'

const vms = { web01: { disks: { sda: { sizeBytes: 256 * 1024 } } }, held: { power: 'paused' } } as const

async function prepare(): Promise<{ host: Host }> {
  const host = await Host.create(vms)
  await host.clock.drive(host.clock.sleep(1000))
  await host.world.hypervisor.save(uuidOf('held'), host.world.path('/memory'))
  return { host }
}

const sdaOf = ({ world }: Host) => Buffer.from(world.diskBytes('web01', 'sda'))

describe('a copy of a host', () => {
  const again = preparedOnce(prepare)

  test('has its disks, its VMs, its files and its time, whatever became of another copy', async () => {
    const { host: one } = await again()
    const before = sdaOf(one)
    const left = leftovers(one.world)
    one.world.guest('web01').write('sda', 0, 'written in the first copy')
    await one.world.hypervisor.turnOff(uuidOf('web01'))
    renameSync(one.world.path('/memory'), one.world.path('/elsewhere'))
    await one.clock.drive(one.clock.sleep(5000))
    await using host = (await again()).host
    assert.deepEqual(sdaOf(host), before)
    assert.equal(await host.world.hypervisor.power(uuidOf('web01')), 'running')
    assert.deepEqual(leftovers(host.world), left)
    assert.equal(host.clock.monotonicMs(), 1000)
  })

  test('has the memory that was saved', async () => {
    await using host = (await again()).host
    await host.world.hypervisor.restoreSaved(host.world.path('/memory'))
    assert.equal(await host.world.hypervisor.power(uuidOf('held')), 'paused')
  })

  test('has a guest that stays frozen, for as long as it was', async () => {
    const frozen = preparedOnce(async () => {
      const { host } = await prepare()
      await host.world.guest('web01').freeze()
      await host.clock.drive(host.clock.sleep(3000))
      return { host }
    })
    await using host = (await frozen()).host
    assert.equal(host.world.guest('web01').isFrozen, true)
    await host.clock.drive(host.clock.sleep(4000))
    assert.ok(host.longestFreezeMs >= 7000, `${host.longestFreezeMs} ms`)
  })

  test('names the inodes of its own files, and keeps links', async () => {
    const marked = preparedOnce(async () => {
      const { host } = await prepare()
      const file = join(host.directory, 'file')
      writeFileSync(file, 'content', { mode: 0o600 })
      writeFileSync(join(host.directory, 'journal'), `{"inode":"${lstatSync(file).ino}"}\n`)
      symlinkSync('file', join(host.directory, 'link'))
      return { host }
    })
    await marked()
    await using host = (await marked()).host
    const { ino, mode } = lstatSync(join(host.directory, 'file'))
    assert.equal(readFileSync(join(host.directory, 'journal'), 'utf8'), `{"inode":"${ino}"}\n`)
    assert.equal(mode & 0o777, 0o600)
    assert.equal(readlinkSync(join(host.directory, 'link')), 'file')
  })
})
