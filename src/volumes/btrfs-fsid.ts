/**
 * A btrfs copy that met its original was given another fsid by `btrfstune -m`, which keeps the first one as metadata UUID.
 * This gives it its own fsid back, in the superblock and its mirrors; nothing else of the file system names it.
 * Source: btrfs documentation, "On-disk format", superblock; btrfstune(8); only checksums of the type crc32c.
 */
import {
  fits,
  type RevertDevice,
  type RevertDisk,
  readStretch,
  refuse,
  type Stretch,
  writeStretch,
} from './disk-stretch.ts'
import { stretchesOf } from './partitions.ts'

const superblockBytes = 4096
const superblockOffsets = [64 * 1024, 64 * 1024 ** 2, 256 * 1024 ** 3]
const metadataUuidFlag = 0x400n
const changingFlags = (1n << 35n) | (1n << 36n)
const field = { fsid: 0x20, bytenr: 0x30, flags: 0x38, magic: 0x40, incompatible: 0xbc, checksumType: 0xc4 } as const
const deviceBytesField = 0xc9 + 8
const metadataUuidField = 0x23b

interface Superblock {
  readonly offset: number
  readonly bytes: Buffer
}

/** `disk` is its name for a failure. Nothing is written when it has that fsid already. */
export async function restoreFsid(device: RevertDevice, fsid: string, disk = 'the disk'): Promise<void> {
  const wanted = fsid.replaceAll('-', '').toLowerCase()
  const fileSystems: { stretch: Stretch; superblocks: readonly Superblock[] }[] = []
  const holder: RevertDisk = { name: disk, device }
  for (const stretch of await stretchesOf(holder)) {
    const superblocks = await readSuperblocks(stretch)
    if (superblocks !== undefined) fileSystems.push({ stretch, superblocks })
  }
  if (fileSystems.length === 0) refuse(disk, 'there is no btrfs on it')
  const ours = fileSystems.filter(({ superblocks: [first] }) => first !== undefined && ownFsid(first.bytes) === wanted)
  const [only] = ours
  if (only === undefined) refuse(disk, `it holds no btrfs whose own fsid is ${fsid}`)
  if (ours.length > 1) refuse(disk, `it holds several btrfs whose own fsid is ${fsid}`)
  for (const { bytes } of only.superblocks) {
    if (ownFsid(bytes) !== wanted) refuse(disk, 'the superblocks of a btrfs contradict each other')
    if ((bytes.readBigUInt64LE(field.flags) & changingFlags) !== 0n) refuse(disk, 'a change of the fsid is unfinished')
  }
  // The kernel goes by the first one: it is changed when the mirrors are.
  for (const superblock of only.superblocks.toReversed()) {
    if (hasOwnFsid(superblock.bytes)) continue
    await writeStretch(only.stretch, superblock.offset, withOwnFsid(superblock.bytes))
    await device.flush()
  }
}

const hasOwnFsid = (bytes: Buffer) => (bytes.readBigUInt64LE(field.incompatible) & metadataUuidFlag) === 0n

function ownFsid(bytes: Buffer): string {
  const at = hasOwnFsid(bytes) ? field.fsid : metadataUuidField
  return bytes.toString('hex', at, at + 16)
}

function withOwnFsid(old: Buffer): Buffer {
  const bytes = Buffer.from(old)
  bytes.copy(bytes, field.fsid, metadataUuidField, metadataUuidField + 16)
  bytes.fill(0, metadataUuidField, metadataUuidField + 16)
  bytes.writeBigUInt64LE(bytes.readBigUInt64LE(field.incompatible) & ~metadataUuidFlag, field.incompatible)
  bytes.writeUInt32LE(crc32c(bytes.subarray(32)), 0)
  return bytes
}

/** The superblock and those of its mirrors that the file system is large enough for; undefined without a btrfs. */
async function readSuperblocks(stretch: Stretch): Promise<Superblock[] | undefined> {
  const disk = stretch.disk.name
  const found: Superblock[] = []
  let deviceBytes = stretch.sizeBytes
  for (const offset of superblockOffsets) {
    if (offset + superblockBytes > deviceBytes || !fits(stretch, offset, superblockBytes)) break
    const bytes = await readStretch(stretch, offset, superblockBytes)
    const isSuperblock = bytes.toString('latin1', field.magic, field.magic + 8) === '_BHRfS_M'
    if (found.length === 0) {
      if (!isSuperblock) return undefined
      deviceBytes = Math.min(deviceBytes, Number(bytes.readBigUInt64LE(deviceBytesField)))
    }
    if (bytes.readUInt16LE(field.checksumType) !== 0) refuse(disk, 'a btrfs has checksums of another type than crc32c')
    const isSound = isSuperblock && bytes.readBigUInt64LE(field.bytenr) === BigInt(offset)
    if (!isSound || crc32c(bytes.subarray(32)) !== bytes.readUInt32LE(0)) refuse(disk, 'a btrfs superblock is damaged')
    found.push({ offset, bytes })
  }
  return found.length === 0 ? undefined : found
}

const crc32cTable = Uint32Array.from({ length: 256 }, (_, byte) => {
  let rest = byte
  for (let bit = 0; bit < 8; bit++) rest = (rest >>> 1) ^ (rest & 1 ? 0x82f63b78 : 0)
  return rest
})

function crc32c(bytes: Uint8Array): number {
  let rest = 0xffffffff
  for (const byte of bytes) rest = (rest >>> 8) ^ (crc32cTable[(rest ^ byte) & 0xff] ?? 0)
  return (rest ^ 0xffffffff) >>> 0
}
