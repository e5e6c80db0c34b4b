/**
 * How much a program has stored: the sizes of all files below a path, in bytes.
 */
import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'

export async function sizeOf(path: string): Promise<number> {
  const found = await stat(path)
  if (!found.isDirectory()) return found.size
  const sizes = await Promise.all((await readdir(path)).map((name) => sizeOf(join(path, name))))
  return sizes.reduce((sum, size) => sum + size, 0)
}
