/**
 * A raw image that nobody writes to, read as the file that it is: no server, no socket, half the processor time. Only for
 * images at rest, beneath an overlay or of a VM that is off; what a running VM writes to is read through its QEMU.
 */
import { z } from 'zod'
import { Failure } from '../base/failure.ts'
import { runCommand } from '../base/run-command.ts'
import type { BlockSource, Extent } from '../disk/block-device.ts'
import { clipRanges, endOf, mergeExtents } from '../disk/extents.ts'
import { openHostFile } from '../disk/host-file.ts'
import { failure } from '../errors.ts'

const mapShape = z.array(
  z.object({ start: z.int().min(0), length: z.int().min(1), data: z.boolean(), zero: z.boolean() }),
)
const mapDeadlineMs = 60_000

/** Opens the image at `path`; the caller disposes it. Its holes are asked for once, by the first call of `extents`. */
export async function openRawImage(path: string): Promise<BlockSource> {
  const file = await openHostFile(path)
  let map: Promise<readonly Extent[]> | undefined
  return {
    sizeBytes: file.sizeBytes,
    read: (offset, target) => file.read(offset, target),
    ...(file.readParts && { readParts: file.readParts.bind(file) }),
    async *extents(offset, length): AsyncGenerator<Extent> {
      map ??= mapOf(path, file.sizeBytes)
      yield* clipRanges(await map, offset, length)
    },
    [Symbol.asyncDispose]: () => file[Symbol.asyncDispose](),
  }
}

/** Where the file has data; without a map (one of millions of pieces is longer than is read) all of it counts as data. */
async function mapOf(path: string, sizeBytes: number): Promise<Extent[]> {
  try {
    return await readMap(path, sizeBytes)
  } catch (error) {
    if (!(error instanceof Failure)) throw error
    return [{ offset: 0, length: sizeBytes, data: true }]
  }
}

/** What the map leaves out is data. */
async function readMap(path: string, sizeBytes: number): Promise<Extent[]> {
  const args = ['map', '--output=json', '-f', 'raw', '--force-share', '--', path]
  const { stdout } = await runCommand('qemu-img', args, { deadlineMs: mapDeadlineMs })
  const parsed = mapShape.safeParse(JSON.parse(stdout))
  if (!parsed.success) throw failure('DISK_IMAGE_INVALID', { path, reason: 'qemu-img map gives no valid answer' })
  const extents: Extent[] = []
  let next = 0
  for (const { start, length, data, zero } of parsed.data) {
    if (start < next || start >= sizeBytes) continue
    if (start > next) extents.push({ offset: next, length: start - next, data: true })
    const extent = { offset: start, length: Math.min(length, sizeBytes - start), data: data && !zero }
    extents.push(extent)
    next = endOf(extent)
  }
  if (next < sizeBytes) extents.push({ offset: next, length: sizeBytes - next, data: true })
  return mergeExtents(extents)
}
