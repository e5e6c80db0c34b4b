/**
 * What every BlockSource and BlockSink promises: see src/disk/block-device.ts. Run by the disk in memory, and in
 * test/live by real images behind QEMU's own NBD server.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { describe, it } from 'node:test'
import { Failure } from '../../src/base/failure.ts'
import type { BlockSink, BlockSource, Extent } from '../../src/disk/block-device.ts'

const sizeBytes = 6 * 1024 * 1024 + 3 * 512

/** Data, zeros between, an end that is no whole cluster, and single bytes around the edges of clusters. */
export function sampleContent(): Uint8Array {
  const content = new Uint8Array(sizeBytes)
  content.set(randomBytes(700_000), 0)
  content.set(randomBytes(1), 2 * 1024 * 1024 - 1)
  content.set(randomBytes(1_500_000), 3_000_001)
  content.set(randomBytes(100), sizeBytes - 100)
  return content
}

/** `open` gives a disk with that content; each test disposes what it opened. */
export function blockDeviceContract(name: string, open: (content: Uint8Array) => Promise<BlockSource>): void {
  describe(`${name} as a source of blocks`, () => {
    it('has the size of its content', async () => {
      await using source = await open(sampleContent())
      assert.equal(source.sizeBytes, sizeBytes)
    })

    it('reads any range, however it is aligned', async () => {
      const content = sampleContent()
      await using source = await open(content)
      for (const [offset, length] of ranges()) await assertReads(source, content, offset, length)
    })

    it('answers many reads in flight, each with its own bytes', async () => {
      const content = sampleContent()
      await using source = await open(content)
      const offsets = Array.from({ length: 100 }, (_, i) => (i * 61_441) % (sizeBytes - 50_000))
      await Promise.all(offsets.map((offset) => assertReads(source, content, offset, 50_000)))
    })

    it('fills only the bytes it was given', async () => {
      const content = sampleContent()
      await using source = await open(content)
      const around = new Uint8Array(300).fill(0xaa)
      await source.read(1000, around.subarray(100, 200))
      assert.deepEqual(around.subarray(0, 100), new Uint8Array(100).fill(0xaa))
      assert.deepEqual(around.subarray(100, 200), content.subarray(1000, 1100))
      assert.deepEqual(around.subarray(200), new Uint8Array(100).fill(0xaa))
    })

    it('fills several buffers with what follows one another, if it can', async () => {
      const content = sampleContent()
      await using source = await open(content)
      for (const offset of [0, 1000, sizeBytes - 700]) {
        const targets = [100, 512, 88].map((length) => new Uint8Array(length))
        if (source.readParts === undefined) return
        await source.readParts(offset, targets)
        assert.deepEqual(Buffer.concat(targets), Buffer.from(content.subarray(offset, offset + 700)))
      }
      const beyond = [new Uint8Array(512), new Uint8Array(512)]
      await assert.rejects(
        async () => source.readParts?.(sizeBytes - 512, beyond),
        failsAt('DISK_READ_FAILED', sizeBytes),
      )
    })

    it('refuses to read beyond the end, and names the offset', async () => {
      await using source = await open(sampleContent())
      await assert.rejects(source.read(sizeBytes - 10, new Uint8Array(11)), failsAt('DISK_READ_FAILED', sizeBytes - 10))
      await assert.rejects(source.read(-1, new Uint8Array(1)), failsAt('DISK_READ_FAILED', -1))
    })

    it('reports extents that ascend, leave no gap and end where asked', async () => {
      await using source = await open(sampleContent())
      for (const [offset, length] of ranges()) {
        const extents = await Array.fromAsync(source.extents(offset, length))
        assertCovers(extents, offset, length)
      }
    })

    it('calls nothing empty that is not', async () => {
      const content = sampleContent()
      await using source = await open(content)
      for await (const { offset, length, data } of source.extents(0, sizeBytes)) {
        if (!data) assert.ok(content.subarray(offset, offset + length).every((byte) => byte === 0))
      }
    })

    it('refuses to read once disposed, and can be disposed twice', async () => {
      const source = await open(sampleContent())
      await source[Symbol.asyncDispose]()
      await source[Symbol.asyncDispose]()
      await assert.rejects(source.read(512, new Uint8Array(10)), failsAt('DISK_READ_FAILED', 512))
    })
  })
}

/** `open` gives an empty disk of that size, which must be a whole number of sectors. */
export function blockSinkContract(name: string, open: (size: number) => Promise<BlockSource & BlockSink>): void {
  describe(`${name} as a sink of blocks`, () => {
    it('returns what was written, and zeros everywhere else', async () => {
      const content = sampleContent()
      await using disk = await open(sizeBytes)
      for (const [offset, length] of ranges()) await disk.write(offset, content.subarray(offset, offset + length))
      await disk.flush()
      const expected = new Uint8Array(sizeBytes)
      for (const [offset, length] of ranges()) expected.set(content.subarray(offset, offset + length), offset)
      await assertReads(disk, expected, 0, sizeBytes)
    })

    it('takes many writes in flight, even into one sector', async () => {
      const content = randomBytes(100 * 777)
      await using disk = await open(sizeBytes)
      const starts = Array.from({ length: 100 }, (_, i) => i * 777)
      await Promise.all(starts.map((start) => disk.write(start, content.subarray(start, start + 777))))
      await disk.flush()
      const back = new Uint8Array(content.length)
      await disk.read(0, back)
      assert.ok(content.equals(back))
    })

    it('takes what stands in several buffers, if it can', async () => {
      const content = sampleContent()
      await using sink = await open(sizeBytes)
      const write = sink.writeParts?.bind(sink)
      if (write === undefined) return
      for (const offset of [0, 4096, 100_001, sizeBytes - 20_000]) {
        const bytes = content.subarray(offset, offset + 20_000)
        await write(offset, [bytes.subarray(0, 8192), bytes.subarray(8192, 8300), bytes.subarray(8300)])
        await assertReads(sink, content, offset, 20_000)
      }
      const beyond = [new Uint8Array(512), new Uint8Array(512)]
      await assert.rejects(write(sizeBytes - 512, beyond), failsAt('DISK_WRITE_FAILED', sizeBytes))
    })

    it('refuses to write beyond the end, and names the offset', async () => {
      await using disk = await open(sizeBytes)
      await assert.rejects(disk.write(sizeBytes - 1, new Uint8Array(2)), failsAt('DISK_WRITE_FAILED', sizeBytes - 1))
    })

    it('refuses to write and to flush once disposed', async () => {
      const disk = await open(sizeBytes)
      await disk[Symbol.asyncDispose]()
      await assert.rejects(disk.write(512, new Uint8Array(512)), failsAt('DISK_WRITE_FAILED', 512))
      await assert.rejects(disk.flush(), failsAt('DISK_WRITE_FAILED', 0))
    })
  })
}

/** For assert.rejects: a failure with that code and offset. */
export function failsAt(code: string, offset: number): (error: unknown) => boolean {
  return (error) => error instanceof Failure && error.code === code && error.context.offset === offset
}

function ranges(): [number, number][] {
  return [
    [0, 0],
    [0, 1],
    [511, 2],
    [65_535, 65_538],
    [699_990, 20],
    [1_000_000, 3_500_000],
    [sizeBytes - 513, 513],
  ]
}

async function assertReads(source: BlockSource, content: Uint8Array, offset: number, length: number): Promise<void> {
  const target = new Uint8Array(length).fill(0x55)
  await source.read(offset, target)
  const isSame = Buffer.from(target.buffer).equals(content.subarray(offset, offset + length))
  assert.ok(isSame, `${length} bytes at ${offset} are not those of the disk`)
}

function assertCovers(extents: readonly Extent[], offset: number, length: number): void {
  let reached = offset
  for (const extent of extents) {
    assert.equal(extent.offset, reached)
    assert.ok(extent.length > 0)
    reached += extent.length
  }
  assert.equal(reached, offset + length)
}
