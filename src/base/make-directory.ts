/**
 * Makes a directory with its parents. Node's own recursive mkdir never returns below /proc (seen in 24.21), where making
 * a directory answers ENOENT although the parent is there; this one asks each level once.
 */
import { mkdir } from 'node:fs/promises'
import { dirname } from 'node:path'

/** Directories that exist are left as they are; those that are made get `mode`. */
export async function makeDirectory(path: string, mode = 0o777): Promise<void> {
  try {
    await mkdir(path, { mode })
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EEXIST') return
    if (code !== 'ENOENT' || dirname(path) === path) throw error
    await makeDirectory(dirname(path), mode)
    await mkdir(path, { mode }).catch((again: NodeJS.ErrnoException) => {
      if (again.code !== 'EEXIST') throw again
    })
  }
}
