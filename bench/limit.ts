/**
 * What this machine can do at most, as bare loops in two threads: `limit read DISK` reads every allocated chunk of a raw
 * disk, hashes it and compresses it (zstd -1), which is what a full backup can not do without; `limit write DISK TARGET`
 * writes the same chunks to a new file, past the kernel's cache where that is possible, and syncs it, which is what a
 * restore can not do without. No repository, no libvirt.
 */
import { execFileSync } from 'node:child_process'
import {
  closeSync,
  constants as files,
  fsyncSync,
  ftruncateSync,
  openSync,
  readSync,
  statSync,
  writeSync,
} from 'node:fs'
import { isMainThread, Worker, workerData } from 'node:worker_threads'
import { constants, zstdCompressSync } from 'node:zlib'
import { blake3 } from '@napi-rs/blake-hash'
import { AlignedBuffers } from '../src/repository/chunks/aligned-buffers.ts'

const chunkSizeBytes = 512 * 1024
const threads = 2

interface Work {
  readonly disk: string
  /** Undefined: hash and compress. */
  readonly target?: string
  readonly chunks: Uint32Array
  /** The next one nobody has taken. */
  readonly next: Int32Array
}

/** Chunks that hold data, as QEMU sees it. */
function dataChunks(disk: string): Uint32Array {
  const map = execFileSync('qemu-img', ['map', '-f', 'raw', '--output=json', disk], { maxBuffer: 1 << 28 })
  const chunks = new Set<number>()
  for (const { start, length, data } of JSON.parse(map.toString()) as {
    start: number
    length: number
    data: boolean
  }[]) {
    if (!data) continue
    const last = Math.ceil((start + length) / chunkSizeBytes)
    for (let chunk = Math.floor(start / chunkSizeBytes); chunk < last; chunk += 1) chunks.add(chunk)
  }
  return Uint32Array.from(chunks).sort()
}

function run({ disk, target, chunks, next }: Work): void {
  const source = openSync(disk, 'r')
  const sink = target === undefined ? undefined : openSync(target, files.O_WRONLY | files.O_DIRECT)
  const buffer = new AlignedBuffers(chunkSizeBytes, 0).take()
  for (let index = Atomics.add(next, 0, 1); index < chunks.length; index = Atomics.add(next, 0, 1)) {
    const offset = (chunks[index] ?? 0) * chunkSizeBytes
    const bytes = readSync(source, buffer, 0, chunkSizeBytes, offset)
    const data = buffer.subarray(0, bytes)
    if (sink !== undefined) writeSync(sink, data, 0, bytes, offset)
    else {
      blake3(data)
      zstdCompressSync(data, { chunkSize: bytes + 8192, params: { [constants.ZSTD_c_compressionLevel]: 1 } })
    }
  }
  closeSync(source)
  if (sink !== undefined) closeSync(sink)
}

async function main([mode, disk, target]: readonly string[]): Promise<void> {
  if (disk === undefined || (mode !== 'read' && mode !== 'write'))
    throw new Error('limit read DISK | limit write DISK TARGET')
  const sink = mode === 'write' && target !== undefined ? openSync(target, 'wx') : undefined
  if (sink !== undefined) ftruncateSync(sink, statSync(disk).size)
  const work: Work = {
    disk,
    chunks: dataChunks(disk),
    next: new Int32Array(new SharedArrayBuffer(4)),
    ...(sink === undefined || target === undefined ? {} : { target }),
  }
  const ends = Array.from({ length: threads }, () => {
    const worker = new Worker(new URL(import.meta.url), { workerData: work })
    return new Promise<void>((resolve, reject) => worker.on('exit', () => resolve()).on('error', reject))
  })
  await Promise.all(ends)
  if (sink === undefined) return
  fsyncSync(sink)
  closeSync(sink)
}

if (isMainThread) await main(process.argv.slice(2))
else run(workerData as Work)
