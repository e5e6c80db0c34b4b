import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { before, describe, it } from 'node:test'
import { exceptionStore, LvmBench, MiB, memoryDevice, noLvm, randomNumbers } from '../../test/sim/volume-images.ts'
import { Failure } from '../base/failure.ts'
import type { RevertDisk } from './disk-stretch.ts'
import { lvmChecksum } from './physical-volume.ts'
import { planRevert } from './plan-revert.ts'
import { revertByReading } from './revert-by-reading.ts'

const set = '0a1b2c3d'
const diskBytes = 4 * MiB
const areaOffset = 4096
const chunkBytes = 4096

/** Two groups, each on a disk of its own; the first has two metadata areas. */
interface Guest {
  readonly images: readonly Buffer[]
  /** By disk, where the volume and the store begin: neither is in pieces. */
  readonly origins: readonly number[]
  readonly stores: readonly number[]
  readonly before: readonly Buffer[]
}

function makeGuest(): Guest {
  const lvm = new LvmBench([{ sizeBytes: diskBytes }, { sizeBytes: diskBytes }])
  const guest = { images: [] as Buffer[], origins: [] as number[], stores: [] as number[], before: [] as Buffer[] }
  try {
    const tags = `--addtag umbra --addtag umbra.set=${set} --addtag umbra.origin=data`
    for (const [index, group] of ['one', 'two'].entries()) {
      lvm.lvm(`pvcreate -qq -ff -y --metadatacopies ${2 - index} --dataalignment 64k --metadatasize 32k $${index}
        vgcreate -qq -y -s 64k ${group} $${index}
        lvcreate -qq -y -an -Zn -Wn -l 20 -n data ${group}
        lvcreate -qq -y -an -Zn -Wn -l 30 -n umbra_${set}_0 ${tags} ${group}`)
      const content = randomBytes(20 * 65536)
      const olds = Array.from({ length: 300 }, (_, number) => (number * 7) % 320)
      lvm.writeVolume(`${group}/data`, randomBytes(20 * 65536))
      lvm.writeVolume(`${group}/umbra_${set}_0`, exceptionStore(30 * 65536, chunkBytes, content, olds))
      const after = lvm.readVolume(`${group}/data`)
      // What the store does not hold was not written.
      for (let chunk = 0; chunk < 320; chunk++) {
        if (!olds.includes(chunk)) content.copy(after, chunk * chunkBytes, chunk * chunkBytes, (chunk + 1) * chunkBytes)
      }
      lvm.writeVolume(`${group}/data`, after)
      guest.before.push(content)
      guest.origins.push(lvm.layout(`${group}/data`)[0]?.offset ?? 0)
      guest.stores.push(lvm.layout(`${group}/umbra_${set}_0`)[0]?.offset ?? 0)
    }
    guest.images.push(...lvm.parts.map(({ path }) => lvm.bench.contents(path)))
    return guest
  } finally {
    lvm.end()
  }
}

const disksOf = (images: readonly Buffer[]) => {
  const devices = images.map((image) => memoryDevice(image))
  return { devices, disks: devices.map((device, index): RevertDisk => ({ name: `vd${index}`, device })) }
}

/** The checksum of the metadata text and those of the headers, as they should be for what is there. */
function reseal(image: Buffer): void {
  for (const area of [areaOffset, diskBytes - 64 * 1024].filter(
    (at) => image.toString('latin1', at + 5, at + 9) === 'LVM2',
  )) {
    const at = area + Number(image.readBigUInt64LE(area + 40) & 0xffffffn)
    const length = Number(image.readBigUInt64LE(area + 48) & 0xffffffn)
    image.writeUInt32LE(lvmChecksum(image.subarray(at, at + length)), area + 56)
    image.writeUInt32LE(lvmChecksum(image.subarray(area + 4, area + 512)), area)
  }
  image.writeUInt32LE(lvmChecksum(image.subarray(512 + 20, 1024)), 512 + 16)
}

/** Replaces in the metadata text of a disk with one area; the text may become longer. */
function editText(image: Buffer, from: string | RegExp, to: string): void {
  const at = areaOffset + Number(image.readBigUInt64LE(areaOffset + 40))
  const length = Number(image.readBigUInt64LE(areaOffset + 48))
  const text = image.toString('latin1', at, at + length)
  const edited = text.replace(from, to)
  assert.notEqual(edited, text)
  image.write(edited, at, 'latin1')
  image.writeBigUInt64LE(BigInt(edited.length), areaOffset + 48)
  reseal(image)
}

describe('a plan of a revert by reading', { skip: noLvm }, () => {
  let guest: Guest
  before(() => {
    guest = makeGuest()
  })
  const copies = () => guest.images.map((image) => Buffer.from(image))

  /** `spoil` gets the second disk and the place of its store; the first one is always sound. */
  async function refused(
    spoil: (image: Buffer, store: number) => void,
    reason: RegExp,
    code = 'VOLUMES_NOT_UNDERSTOOD',
  ) {
    const images = copies()
    spoil(images[1] as Buffer, guest.stores[1] ?? 0)
    const { devices, disks } = disksOf(images)
    await assert.rejects(revertByReading('vm', set, disks), (error) => {
      assert.ok(error instanceof Failure, String(error))
      assert.equal(error.code, code)
      assert.match(error.message, reason)
      return true
    })
    assert.deepEqual(
      devices.flatMap(({ writes }) => writes),
      [],
      'nothing is written to any disk',
    )
  }

  it('says which chunks go where, and reverts', async () => {
    const images = copies()
    const { disks } = disksOf(images)
    const plan = await planRevert('vm', set, disks)
    assert.deepEqual(
      plan.volumes.map(({ group, volume, chunks }) => [group, volume, chunks]),
      [
        ['one', 'data', 300],
        ['two', 'data', 300],
      ],
    )
    assert.deepEqual(
      plan.changes.map(({ group, places }) => [group, places.length]),
      [
        ['one', 2],
        ['two', 1],
      ],
    )
    await revertByReading('vm', set, disks)
    for (const [index, image] of images.entries()) {
      const at = guest.origins[index] ?? 0
      assert.ok(image.subarray(at, at + 20 * 65536).equals(guest.before[index] ?? Buffer.alloc(0)))
    }
  })

  it('refuses groups that are not whole or not the guest’s own, and has written nothing', async () => {
    const edits: [string | RegExp, string, RegExp][] = [
      ['"RESIZEABLE"', '"EXPORTED"', /two is exported/],
      ['seqno =', 'lock_type = "sanlock"\nseqno =', /shared \(sanlock\)/],
      ['"WRITE"]', '"WRITE", "CLUSTERED"]', /clustered/],
      [/(pv0 \{[^}]*)flags = \[\]/, '$1flags = ["MISSING"]', /was missing/],
      [/(pv0 \{\s+id = ")\w{4}/, '$1AAAA', /was removed from the group two while it was absent/],
      ['umbra.origin=data', 'umbra.origin=none', /no volume two\/none/],
      ['umbra.origin=data', `umbra.origin=umbra_${set}_0`, /second snapshot/],
      ['"umbra", ', '', /not ours/],
      ['"pv0", 20', '"pv0", 19', /overlap/],
      ['"pv0", 20', '"pv0", 40', /beyond its disk/],
      ['"pv0", 20', '"pv7", 20', /no physical volume/],
      ['start_extent = 0', 'start_extent = 1', /gap/],
      ['type = "striped"', 'type = "thin"', /segment1/],
      ['extent_size = 128', 'extent_size = 0', /extent_size/],
      ['extent_size = 128', 'extent_size = 9007199254740993', /extent_size/],
      [/pe_start = \d+/, 'pe_start = 8000', /larger than its disk/],
      [/pe_start = \d+/, 'pe_start = 16', /overlap/],
      ['logical_volumes {', 'logical_volumes {{{{', /no LVM metadata/],
      ['seqno =', 'seqno = 1\nseqno =', /second seqno/],
      ['contents = "Text', 'contents = "Test', /another format/],
    ]
    for (const [from, to, reason] of edits) {
      await refused((image) => editText(image, from, to), reason)
    }
    await refused((image) => image.fill(1, areaOffset, areaOffset + 4), /header of a metadata area is damaged/)
    await refused((image) => image.fill(1, 600, 640), /label is damaged/)
    await refused((image) => guest.images[0]?.copy(image), /same physical volume as vd0/)
  })

  it('refuses exception stores that are not sound, and has written nothing', async () => {
    const u32 = (at: number, value: number) => (image: Buffer, store: number) =>
      void image.writeUInt32LE(value, store + at)
    const pair = (index: number, old: bigint, fresh: bigint) => (image: Buffer, store: number) => {
      image.writeBigUInt64LE(old, store + chunkBytes + index * 16)
      image.writeBigUInt64LE(fresh, store + chunkBytes + index * 16 + 8)
    }
    await refused(u32(4, 0), /the snapshot area of two\/data overflowed/, 'GUEST_SET_LOST')
    await refused(u32(0, 1), /is not a snapshot area/)
    await refused(u32(4, 2), /another version/)
    await refused(u32(8, 2), /another version/)
    for (const sectors of [0, 1, 4, 7, 24, 65536, 0xffffffff]) await refused(u32(12, sectors), /has chunks of/)
    await refused(pair(3, 320n, 5n), /chunk 320, which its volume does not have/)
    await refused(pair(3, 2n ** 63n, 5n), /which its volume does not have/)
    await refused(pair(3, 0n, 5n), /chunk 0 of its volume twice/)
    await refused(pair(3, 1n, 4n), /uses its chunk 4 twice/)
    await refused(pair(3, 1n, 1n), /holds no data/)
    await refused(pair(3, 1n, 258n), /holds no data/)
    await refused(pair(3, 1n, 480n), /chunk 480, which it does not have/)
    await refused(pair(3, 1n, 2n ** 64n - 1n), /which it does not have/)
  })

  it('refuses when the set is on no disk, or one of the disks of a group is not there', async () => {
    const { disks, devices } = disksOf(copies())
    await assert.rejects(revertByReading('vm', 'ffffffff', disks), { code: 'VOLUMES_NOT_UNDERSTOOD' })
    await assert.rejects(revertByReading('vm', set, []), { code: 'VOLUMES_NOT_UNDERSTOOD' })
    assert.deepEqual(
      devices.flatMap(({ writes }) => writes),
      [],
    )
  })

  it('leaves the old or the new metadata valid wherever it is cut off', async () => {
    const whole = disksOf(copies())
    await revertByReading('vm', set, whole.disks)
    const total = whole.devices.reduce((sum, { writes }) => sum + writes.length, 0)
    const points = Array.from({ length: total }, (_, at) => at).filter((at) => at < 3 || at > total - 8)
    for (const cut of points) {
      const images = copies()
      const { devices, disks } = disksOf(images)
      let left = cut
      const stop = () => {
        if (left-- <= 0) throw new Error('power loss')
      }
      for (const device of devices) device.beforeWrite = stop
      await assert.rejects(revertByReading('vm', set, disks), /power loss/)
      const again = disksOf(images)
      const outcome = await revertByReading('vm', set, again.disks).catch((error: Failure) => error.message)
      if (typeof outcome === 'string') assert.match(outcome, /there is no snapshot of the set/)
      for (const [index, image] of images.entries()) {
        const at = guest.origins[index] ?? 0
        assert.ok(image.subarray(at, at + 20 * 65536).equals(guest.before[index] ?? Buffer.alloc(0)), `cut at ${cut}`)
      }
    }
  })

  it('flushes chunks before metadata, and texts before the headers that name them', async () => {
    const { devices, disks } = disksOf(copies())
    const log: string[] = []
    for (const device of devices) device.log = log
    await revertByReading('vm', set, disks)
    const steps = log.map((step) => (step === 'flush' ? 'flush' : step === 'write 512' ? 'header' : 'write'))
    const order = steps.filter((step, index) => step !== steps[index - 1])
    assert.deepEqual(order, ['write', 'flush', 'write', 'flush', 'header', 'flush'])
  })

  it('never hangs, writes outside or breaks on hostile bytes', async () => {
    const random = randomNumbers(42)
    const store = guest.stores[1] ?? 0
    const origin = guest.origins[1] ?? 0
    const textAt = areaOffset + Number(guest.images[1]?.readBigUInt64LE(areaOffset + 40))
    const places = [
      [512, 200],
      [areaOffset, 64],
      [textAt, 2000],
      [store, 16],
      [store + chunkBytes, 4096],
      [store + 258 * chunkBytes, 800],
    ]
    const outcomes = { reverted: 0, refused: 0 }
    for (let round = 0; round < 400; round++) {
      const image = Buffer.from(guest.images[1] as Buffer)
      const [from = 0, size = 1] = places[round % places.length] ?? []
      for (let flips = 1 + random(4); flips > 0; flips--) {
        const at = from + random(size)
        image[at] = random(2) ? random(256) : (image[at] ?? 0) ^ (1 << random(8))
      }
      if (random(4)) reseal(image)
      const cut = random(8) === 0 ? image.subarray(0, random(diskBytes)) : image
      const { devices, disks } = disksOf([cut])
      try {
        await revertByReading('vm', set, disks)
        outcomes.reverted++
      } catch (error) {
        assert.ok(error instanceof Failure, `round ${round}: ${error instanceof Error ? error.stack : error}`)
        assert.match(error.code, /^(VOLUMES_NOT_UNDERSTOOD|GUEST_SET_LOST)$/)
        assert.deepEqual(
          devices.flatMap(({ writes }) => writes),
          [],
        )
        outcomes.refused++
      }
      for (const { offset, length } of devices.flatMap(({ writes }) => writes)) {
        const inMetadata = offset >= areaOffset && offset + length <= origin
        assert.ok(inMetadata || offset >= origin, `round ${round}: ${length} bytes at ${offset}`)
      }
    }
    assert.ok(outcomes.reverted > 20 && outcomes.refused > 100, JSON.stringify(outcomes))
  })
})
