/**
 * What a pack holds, from the pack alone: its table of contents, or after damage the records that can still be proven.
 */
import { Failure } from '../../base/failure.ts'
import {
  check,
  encodeTocEntry,
  FormatError,
  packFooterBytes,
  packHeaderBytes,
  packSizeLimitBytes,
  readPackFooter,
  readPackHeader,
  recordBytes,
  recordHeaderBytes,
  scanPack,
  type TocEntry,
  visitToc,
} from '../format.ts'
import type { Seal } from '../keys/seal.ts'
import type { Backend } from '../storage/backend.ts'
import type { CodecThreads } from './codec-threads.ts'
import { freeNow } from './free-memory.ts'

/** The ends of usual packs: a footer and a table of contents of 300 records. */
const tailBytes = 16 * 1024
/** What a disk can not read is left out in pieces of this size. */
const pieceBytes = 64 * 1024

export interface PackPlace {
  readonly backend: Backend
  readonly seal: Seal
  readonly threads: CodecThreads
  readonly repositoryId: string
  readonly maxPlainBytes: number
}

/** `toc` lists what can be read of the pack; `damage` says why that may not be all. */
export interface ReadPack {
  readonly toc: Buffer
  readonly damage?: string
}

/** Undefined when the pack is gone, or was never one of this repository's. REPOSITORY_IO when nothing of it can be read. */
export async function readPackContents(
  place: PackPlace,
  key: string,
  sizeBytes: number,
): Promise<ReadPack | undefined> {
  try {
    if (sizeBytes > packSizeLimitBytes) return { toc: Buffer.alloc(0), damage: `it has ${sizeBytes} bytes` }
    if (await isForeign(place, key)) return undefined
    return { toc: await readToc(place, key, sizeBytes) }
  } catch (error) {
    if (isMissing(error)) return undefined
    if (!isDamage(error)) throw error
    return { toc: await scanToc(place, key, sizeBytes), damage: error.message }
  }
}

const isMissing = (error: unknown) => error instanceof Failure && error.code === 'REPOSITORY_OBJECT_MISSING'
const isDamage = (error: unknown): error is Error =>
  error instanceof FormatError || (error instanceof Failure && error.code === 'REPOSITORY_IO')

/** A pack with a sound header that names another repository: copied here by somebody. */
async function isForeign({ backend, repositoryId }: PackPlace, key: string): Promise<boolean> {
  const header = Buffer.alloc(packHeaderBytes)
  const length = await backend.read(key, 0, header)
  try {
    return readPackHeader(header.subarray(0, length)).repositoryId !== repositoryId
  } catch (error) {
    if (error instanceof FormatError) return false // damaged: its records and its end prove themselves
    throw error
  }
}

/** The table of contents, proven by the seal, and fit for this pack. */
async function readToc({ backend, seal, maxPlainBytes }: PackPlace, key: string, sizeBytes: number): Promise<Buffer> {
  check(sizeBytes >= packHeaderBytes + packFooterBytes, 'the pack is cut off')
  const tail = Buffer.alloc(Math.min(tailBytes, sizeBytes))
  check((await backend.read(key, sizeBytes - tail.length, tail)) === tail.length, 'the pack is cut off')
  const { tocOffset, digest } = readPackFooter(tail.subarray(tail.length - packFooterBytes), sizeBytes)
  const tocBytes = sizeBytes - packFooterBytes - tocOffset
  let toc = tail.subarray(Math.max(0, tail.length - packFooterBytes - tocBytes), tail.length - packFooterBytes)
  if (toc.length < tocBytes) {
    toc = Buffer.alloc(tocBytes)
    check((await backend.read(key, tocOffset, toc)) === tocBytes, 'the pack is cut off')
  }
  check(seal.digest('table of contents', [toc]).equals(digest), 'the table of contents is damaged')
  visitToc(toc, (_, offset, storedBytes, plainBytes) => {
    check(offset + recordBytes(storedBytes) <= tocOffset && plainBytes <= maxPlainBytes, 'a record beyond its end')
  })
  return toc
}

/** A table of contents of the records that have the bytes their ids say. */
async function scanToc(place: PackPlace, key: string, sizeBytes: number): Promise<Buffer> {
  const pack = await readTolerantly(place.backend, key, sizeBytes)
  try {
    const lines: Buffer[] = []
    for (const entry of scanPack(pack)) {
      if (await isProven(place, pack, entry)) lines.push(encodeTocEntry(entry))
    }
    return Buffer.concat(lines)
  } finally {
    freeNow(pack)
  }
}

async function isProven({ threads, maxPlainBytes }: PackPlace, pack: Buffer, entry: TocEntry): Promise<boolean> {
  if (entry.plainBytes > maxPlainBytes) return false
  const buffer = threads.takeBuffer()
  try {
    const storedAt = recordHeaderBytes
    buffer.set(pack.subarray(entry.offset, entry.offset + storedAt + entry.storedBytes))
    await threads.decode(buffer, { ...entry, id: Uint8Array.from(entry.id), storedAt })
    return true
  } catch (error) {
    if (!(error instanceof FormatError)) throw error
    return false
  } finally {
    threads.giveBuffer(buffer)
  }
}

/** The whole pack; zeros where the disk can not read it. */
async function readTolerantly(backend: Backend, key: string, sizeBytes: number): Promise<Buffer> {
  const pack = Buffer.allocUnsafeSlow(sizeBytes)
  const wholeLength = await backend.read(key, 0, pack).catch(damageOnly)
  if (wholeLength !== undefined) return pack.subarray(0, wholeLength)
  for (let at = 0; at < sizeBytes; at += pieceBytes) {
    const piece = pack.subarray(at, at + pieceBytes)
    const length = (await backend.read(key, at, piece).catch(damageOnly)) ?? 0
    piece.fill(0, length)
  }
  return pack
}

function damageOnly(error: unknown): undefined {
  if (!isDamage(error)) throw error
}
