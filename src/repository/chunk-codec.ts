/**
 * A chunk to its stored bytes and back: zstd unless that does not pay, and BLAKE3 of the plain bytes as its name.
 * The work runs on the threads of libuv's pool. See docs/repository-format.md, "Records".
 */
import { promisify } from 'node:util'
import { constants, createZstdCompress, zstdDecompress } from 'node:zlib'
import { invariant } from '../base/failure.ts'
import { blake3Digest } from './blake3.ts'
import { check, type Encoding, encodings, FormatError, type RecordHeader } from './format.ts'
import { inSlot, openSlots } from './slots.ts'

const decompress = promisify(zstdDecompress)

/** zstd levels a repository may be made with: -50 (fast) to 19; -1 is not one, because Node takes it as "not set". */
export const compressionLevels = { min: -50, default: 1, max: 19 }

/** Compressions at once: as many as libuv's pool has threads, unless UV_THREADPOOL_SIZE says otherwise. */
export const encodersAtOnce = 4

export interface StoredForm {
  readonly encoding: Encoding
  readonly storedBytes: number
  /** Together the stored bytes. */
  readonly parts: readonly Uint8Array[]
}

/** Compresses chunks, some at once. Disposal frees its contexts; no `encode` may be under way. */
export interface ChunkEncoder extends Disposable {
  /** The shorter of the compressed and the plain bytes. `plain` must not change while the answer is in use: it may be part of it. */
  encode(plain: Buffer): Promise<StoredForm>
}

export function openEncoder(level: number, maxPlainBytes: number): ChunkEncoder {
  const slots = openSlots(encodersAtOnce)
  const idle: Lane[] = []
  return {
    async encode(plain) {
      const raw = { encoding: encodings.raw, storedBytes: plain.length, parts: [plain] }
      if (looksIncompressible(plain)) return raw
      return inSlot(slots, async () => {
        const lane = idle.pop() ?? openLane(level, maxPlainBytes)
        const parts = await lane.compress(plain)
        idle.push(lane) // a lane that failed is not used again
        const storedBytes = parts.reduce((sum, part) => sum + part.length, 0)
        return storedBytes < plain.length ? { encoding: encodings.zstd, storedBytes, parts } : raw
      })
    },
    [Symbol.dispose]() {
      for (const lane of idle) lane.close()
      idle.length = 0
    },
  }
}

/** One zstd context used again and again: to make and drop one for every chunk costs an eighth of the processor time. */
interface Lane {
  compress(plain: Buffer): Promise<Uint8Array[]>
  close(): void
}

function openLane(level: number, maxPlainBytes: number): Lane {
  const outputBytes = 4 * Math.max(maxPlainBytes, 512 * 1024)
  const stream = createZstdCompress({
    flush: constants.ZSTD_e_end, // every write is one whole frame
    chunkSize: outputBytes, // of one output buffer; with Node's 16 KiB this takes two to three times as long
    params: { [constants.ZSTD_c_compressionLevel]: level },
  })
  let parts: Uint8Array[] = []
  let fail: ((error: unknown) => void) | undefined
  stream.on('data', (part: Buffer) => parts.push(part))
  stream.on('error', (error) => fail?.(error))
  return {
    compress(plain) {
      invariant(parts.length === 0, 'a lane compresses one chunk at a time')
      return new Promise((resolve, reject) => {
        fail = reject
        stream.write(plain, (error) => {
          const frame = parts
          parts = []
          if (error) reject(error)
          else resolve(frame)
        })
      })
    },
    close: () => stream.destroy(),
  }
}

/** The plain bytes of a record, proven by its id. FormatError when they are not what the id says. */
export async function decodeChunk(header: RecordHeader, stored: Buffer): Promise<Buffer> {
  check(stored.length === header.storedBytes, 'the record is cut off')
  const plain = header.encoding === encodings.raw ? stored : await expand(header, stored)
  check(plain.length === header.plainBytes, `${plain.length} bytes instead of ${header.plainBytes}`)
  check(blake3Digest(plain).equals(header.id), 'the data does not match its digest')
  return plain
}

async function expand(header: RecordHeader, stored: Buffer): Promise<Buffer> {
  try {
    return await decompress(stored, { chunkSize: header.plainBytes + 64, maxOutputLength: header.plainBytes })
  } catch (error) {
    throw new FormatError('the data does not decompress', { cause: error })
  }
}

const sampleCount = 16
const sampleBytes = 256
/** Chi-square of 255 degrees of freedom: random bytes stay below this but once in 10^7 times. */
const randomLimit = 390

/**
 * Whether samples of the data look like random bytes (encrypted, or compressed already), in a few microseconds. What it
 * takes for random and is not, is stored larger than it need be, nothing else.
 */
export function looksIncompressible(plain: Uint8Array): boolean {
  if (plain.length < sampleCount * sampleBytes * 2) return false
  const counts = new Uint32Array(256)
  const stride = Math.floor((plain.length - sampleBytes) / (sampleCount - 1))
  for (let sample = 0; sample < sampleCount; sample += 1) {
    const start = sample * stride
    for (let at = start; at < start + sampleBytes; at += 1) {
      const value = plain[at] ?? 0
      counts[value] = (counts[value] ?? 0) + 1
    }
  }
  const expected = (sampleCount * sampleBytes) / 256
  let chiSquare = 0
  for (const count of counts) chiSquare += (count - expected) ** 2 / expected
  return chiSquare < randomLimit
}
