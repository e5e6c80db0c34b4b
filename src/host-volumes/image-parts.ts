/**
 * Whether the file of a disk image is all there is to it. A copy of one file is no copy of an image whose data lie in
 * another, and a copy that lies in another directory does not find what a relative name means. Follows "qcow2 format" of
 * the QEMU documentation; every byte read here may have been chosen by a guest.
 */
import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import { resolve } from 'node:path'
import type { DiskImage } from '../vm/hypervisor.ts'

export interface ImageParts {
  /** All data of this layer are in the one file. */
  readonly oneFile: boolean
  /** The image beneath is named by a path that begins at the image's own directory. */
  readonly relativeBacking: boolean
}

const oneFileFormats = ['raw', 'qcow2', 'vpc', 'vhdx', 'vdi']
const magic = 0x514649fb
const headerBytes = 104
const externalDataFile = 4n
const maximumNameBytes = 1023

export async function imageParts(path: string, format: DiskImage['format']): Promise<ImageParts> {
  if (format !== 'qcow2') return { oneFile: oneFileFormats.includes(format), relativeBacking: false }
  const unknown = { oneFile: false, relativeBacking: true }
  await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  const header = Buffer.alloc(headerBytes)
  await file.read(header, 0, headerBytes, 0)
  if (header.readUInt32BE(0) !== magic) return unknown
  const oneFile = header.readUInt32BE(4) < 3 || (header.readBigUInt64BE(72) & externalDataFile) === 0n
  const nameOffset = Number(header.readBigUInt64BE(8))
  const nameBytes = header.readUInt32BE(16)
  if (nameOffset === 0) return { oneFile, relativeBacking: false }
  if (nameBytes > maximumNameBytes || !Number.isSafeInteger(nameOffset)) return unknown
  const name = Buffer.alloc(nameBytes)
  await file.read(name, 0, nameBytes, nameOffset)
  return { oneFile, relativeBacking: isRelative(name.toString()) }
}

/** QEMU takes what has a colon before its first slash for a protocol and not for a file beside the image. */
function isRelative(name: string): boolean {
  const hasProtocol = /^[^/]*:/.test(name) && !name.startsWith('file:')
  return !hasProtocol && resolve('/', name) !== name
}
