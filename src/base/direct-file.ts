/**
 * Files past the kernel's cache (open(2), O_DIRECT): what is written there leaves the host's memory to whoever needs it. Takes
 * memory and offsets that are aligned to pages.
 */
import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'

/** What offsets and lengths must be a multiple of. */
export const pageBytes = 4096

/** An existing file, for writing; undefined where the file system knows no such way. */
export const openDirect = (path: string): Promise<FileHandle | undefined> =>
  open(path, constants.O_WRONLY | constants.O_DIRECT).catch(() => undefined)
