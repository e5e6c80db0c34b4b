/**
 * Reads that a disk server could not answer, kept for whoever asks why a pull did not end: which disk, which offset, why.
 */
import { appendFile, readFile, stat } from 'node:fs/promises'
import * as z from 'zod'

const shape = z.object({ disk: z.string(), offset: z.number(), length: z.number(), reason: z.string() })
export type ReadFailure = z.infer<typeof shape>

/** A guest that tries again and again must not fill the host. */
const mostBytes = 64 * 1024

export async function noteFailure(path: string, failed: ReadFailure): Promise<void> {
  const { size } = await stat(path).catch(() => ({ size: 0 }))
  if (size < mostBytes) await appendFile(path, `${JSON.stringify(failed)}\n`, { mode: 0o600 })
}

/** The last one of that disk; undefined when there is none. */
export async function lastFailure(path: string, disk: string): Promise<ReadFailure | undefined> {
  const lines = (await readFile(path, 'utf8').catch(() => '')).split('\n').reverse()
  for (const line of lines) {
    const failed = shape.safeParse(parse(line))
    if (failed.success && failed.data.disk === disk) return failed.data
  }
  return undefined
}

function parse(line: string): unknown {
  try {
    return JSON.parse(line)
  } catch {
    return undefined // cut short by a crash
  }
}
