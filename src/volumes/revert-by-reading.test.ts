import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { describe, it } from 'node:test'
import { exceptionStore, LvmBench, MiB, noLvm, randomNumbers } from '../../test/sim/volume-images.ts'
import { planRevert } from './plan-revert.ts'
import { revertByReading } from './revert-by-reading.ts'

const set = '0a1b2c3d'
const makeArea = (number: number, volume: string, group: string, size: string) =>
  `lvcreate -qq -y -an -Zn -Wn ${size} -n umbra_${set}_${number} --addtag umbra --addtag umbra.set=${set} --addtag umbra.origin=${volume} ${group}`
const lvcreate = 'lvcreate -qq -y -an -Zn -Wn'

/** Fills the volume, takes its snapshot, and writes on to some chunks of it. Returns what it held at the instant. */
function writeOn(lvm: LvmBench, volume: string, area: string, chunkBytes: number, chunks: number): Buffer {
  const before = randomBytes(lvm.readVolume(volume).length)
  const random = randomNumbers(chunks)
  const count = before.length / chunkBytes
  const picked = new Set<number>([0, 1, 2, 3, count - 1])
  while (picked.size < Math.min(chunks, count)) picked.add(random(count))
  const after = Buffer.from(before)
  for (const chunk of picked) randomBytes(chunkBytes).copy(after, chunk * chunkBytes)
  lvm.writeVolume(volume, after)
  const areaBytes = lvm.readVolume(area).length
  lvm.writeVolume(area, exceptionStore(areaBytes, chunkBytes, before, [...picked]))
  return before
}

/** Its groups are clean for lvm2, and nothing of the set is left in the metadata that counts. */
function assertClean(lvm: LvmBench, groups: readonly string[], volumes: readonly string[]): void {
  for (const group of groups) assert.equal(lvm.lvm(`vgck ${group}`), '')
  assert.match(lvm.lvm('vgs --noheadings -o vg_name,vg_attr'), /wz--n-/)
  const listed = lvm.lvm('lvs --noheadings -o vg_name,lv_name --separator / -O vg_name,lv_name').trim().split(/\s+/)
  assert.deepEqual(listed, volumes)
  for (const index of lvm.parts.keys()) {
    assert.doesNotMatch(lvm.lvm(`pvck --dump metadata $${index}`), /umbra/)
    assert.doesNotMatch(lvm.lvm(`pvck --dump headers $${index}`), /CHECK:|WARNING/)
  }
}

const tableOf = (entries: readonly { type: number; start: number; sectors: number }[]) => {
  const sector = Buffer.alloc(512)
  sector.writeUInt16LE(0xaa55, 510)
  for (const [index, { type, start, sectors }] of entries.entries()) {
    sector.writeUInt8(type, 446 + index * 16 + 4)
    sector.writeUInt32LE(start, 446 + index * 16 + 8)
    sector.writeUInt32LE(sectors, 446 + index * 16 + 12)
  }
  return sector
}

describe('revert by reading', { skip: noLvm }, () => {
  it('brings a linear volume back and takes the snapshot out of the metadata', async () => {
    const lvm = new LvmBench([{ sizeBytes: 64 * MiB }])
    try {
      lvm.lvm(`pvcreate -qq -ff -y $0
        vgcreate -qq -y -s 1m solo $0
        ${lvcreate} -l 20 -n data solo
        ${lvcreate} -l 4 -n beside solo
        ${makeArea(0, 'data', 'solo', '-l 8')}`)
      const beside = randomBytes(4 * MiB)
      lvm.writeVolume('solo/beside', beside)
      const before = writeOn(lvm, 'solo/data', `solo/umbra_${set}_0`, 4096, 700)
      const { disks, devices } = lvm.devices()
      const reverted = await revertByReading('vm', set, disks)
      assert.deepEqual(reverted, [{ where: 'solo/data', chunks: 700, bytes: 700 * 4096 }])
      assert.ok(lvm.readVolume('solo/data').equals(before))
      assert.ok(lvm.readVolume('solo/beside').equals(beside))
      assertClean(lvm, ['solo'], ['solo/beside', 'solo/data'])
      assert.ok((devices[0]?.mostInFlight ?? 0) > 4, 'several in flight')
      assert.equal(devices[0]?.log.at(-1), 'flush')
      // LVM goes on from there.
      lvm.lvm(`${lvcreate} -l 2 -n later solo
        lvremove -qq -y solo/later`)
      await assert.rejects(revertByReading('vm', set, disks), { code: 'VOLUMES_NOT_UNDERSTOOD' })
    } finally {
      lvm.end()
    }
  })

  it('brings back volumes in several segments and stripes over two disks, one of them a partition', async () => {
    const lvm = new LvmBench([{ sizeBytes: 40 * MiB }, { sizeBytes: 48 * MiB, offset: 5 * MiB, tailBytes: 3 * MiB }])
    try {
      const part = lvm.parts[1]
      assert.ok(part !== undefined)
      const { devices, disks } = lvm.devices()
      const extended = { type: 0x05, start: 4096, sectors: 44 * 2048 }
      await devices[1]?.write(0, tableOf([{ type: 0x83, start: 2048, sectors: 2048 }, extended]))
      await devices[1]?.write(
        4096 * 512,
        tableOf([
          { type: 0x83, start: 64, sectors: 512 },
          { ...extended, start: 2048 },
        ]),
      )
      const logical = { type: 0x8e, start: 5 * 2048 - 6144, sectors: part.sizeBytes / 512 }
      await devices[1]?.write(6144 * 512, tableOf([logical]))
      lvm.lvm(`pvcreate -qq -ff -y --metadatacopies 2 $0
        pvcreate -qq -ff -y --metadatacopies 1 $1
        vgcreate -qq -y -s 512k pair $0 $1
        ${lvcreate} -l 5 -n first pair $0
        ${lvcreate} -l 3 -n hole pair $0
        lvextend -qq -y -l +6 pair/first $1
        lvextend -qq -y -l +4 pair/first $0
        lvremove -qq -y pair/hole
        ${lvcreate} -i 2 -I 64k -l 16 -n wide pair
        ${makeArea(0, 'first', 'pair', '-l 18')}`)
      // This disk's metadata is that of an earlier version: the newest one of the group counts.
      const outdated = Buffer.alloc(MiB)
      await devices[1]?.read(part.offset, outdated)
      lvm.lvm(`${makeArea(1, 'wide', 'pair', '-i 2 -I 4k -l 20')}`)
      const first = writeOn(lvm, 'pair/first', `pair/umbra_${set}_0`, 16384, 300)
      const wide = writeOn(lvm, 'pair/wide', `pair/umbra_${set}_1`, 131072, 40)
      assert.equal(new Set(lvm.layout('pair/first').map((one) => one.part)).size, 2)
      await devices[1]?.write(part.offset, outdated)
      for (const disk of disks) {
        await assert.rejects(revertByReading('vm', set, [disk]), {
          message: /the group pair lacks its physical volume/,
        })
      }
      const reverted = await revertByReading('vm', set, disks.toReversed())
      assert.deepEqual(
        reverted.map(({ where, chunks }) => [where, chunks]),
        [
          ['pair/first', 300],
          ['pair/wide', 40],
        ],
      )
      assert.ok(lvm.readVolume('pair/first').equals(first))
      assert.ok(lvm.readVolume('pair/wide').equals(wide))
      assertClean(lvm, ['pair'], ['pair/first', 'pair/wide'])
    } finally {
      lvm.end()
    }
  })

  it('finds and writes metadata that wraps around the end of its ring', async () => {
    const lvm = new LvmBench([{ sizeBytes: 8 * MiB }])
    try {
      lvm.lvm(`pvcreate -qq -ff -y --dataalignment 64k --metadatasize 32k $0
        vgcreate -qq -y -s 64k ring $0
        ${lvcreate} -l 8 -n data ring
        ${makeArea(0, 'data', 'ring', '-l 12')}`)
      const before = writeOn(lvm, 'ring/data', `ring/umbra_${set}_0`, 4096, 20)
      const seen = { read: false, written: false }
      for (let generation = 0; generation < 60 && !(seen.read && seen.written); generation++) {
        // A tag of another length each time, so that texts end everywhere.
        const tag = (number: number) => `t${'x'.repeat((number * 37) % 200)}y${number}`
        const deltag = generation > 5 ? `--deltag ${tag(generation - 5)}` : ''
        lvm.lvm(`vgchange -qq --addtag ${tag(generation)} ${deltag} ring`)
        const { disks } = lvm.devices()
        const { changes } = await planRevert('vm', set, disks)
        const place = changes[0]?.places[0]
        const current = place?.area.current
        assert.ok(place !== undefined && current !== undefined && changes[0] !== undefined)
        const length = place.area.length
        const isWrapped = current.offset + current.length > length
        const willWrap = place.offset + changes[0].text.length > length
        seen.read ||= isWrapped
        if (!willWrap) continue
        seen.written = true
        const copy = Buffer.alloc(8 * MiB)
        await disks[0]?.device.read(0, copy)
        await revertByReading('vm', set, disks)
        assertClean(lvm, ['ring'], ['ring/data'])
        assert.ok(lvm.readVolume('ring/data').equals(before))
        await disks[0]?.device.write(0, copy)
      }
      assert.deepEqual(seen, { read: true, written: true })
    } finally {
      lvm.end()
    }
  })
})
