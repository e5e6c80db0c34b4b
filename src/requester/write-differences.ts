/**
 * The data path of a restore over a disk that is still there: on a clone of it only the chunks are written that differ.
 * Every chunk is compared, by its hash where the recovery point tells it, so that nothing needs to be known or trusted
 * about what the disk went through.
 */
import type { BlockSink, BlockSource, LendingSource } from '../disk/block-device.ts'
import { inLanes, type TransferOptions } from './transfer.ts'

/** Makes `target` what `source` is; answers how many bytes were written. */
export async function writeDifferences(
  source: LendingSource,
  target: BlockSource & BlockSink,
  { chunkSizeBytes, signal, onProgress }: TransferOptions,
): Promise<number> {
  const chunks = Math.ceil(source.sizeBytes / chunkSizeBytes)
  const spare: Buffer[] = []
  let writtenBytes = 0
  await inLanes(numbersUpTo(chunks), signal, async (chunk) => {
    const offset = chunk * chunkSizeBytes
    const length = Math.min(chunkSizeBytes, source.sizeBytes - offset)
    const buffer = spare.pop() ?? Buffer.allocUnsafeSlow(chunkSizeBytes)
    const present = buffer.subarray(0, length)
    await target.read(offset, present)
    const isSame = source.holds === undefined ? false : await source.holds(offset, present)
    if (!isSame) {
      await source.withBytes(offset, length, async (data) => {
        if (present.equals(data)) return
        await target.write(offset, data)
        writtenBytes += length
      })
    }
    spare.push(buffer)
    onProgress(length)
  })
  await target.flush()
  return writtenBytes
}

async function* numbersUpTo(end: number): AsyncGenerator<number, void> {
  for (let number = 0; number < end; number += 1) yield number
}
