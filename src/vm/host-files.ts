/**
 * The small files of a VM on the host besides its disks: firmware variables and the state of an emulated TPM (W1). They
 * are stored by content, with their place and owner, so that a restored VM finds them as they were.
 */
import { readdir, readFile, stat } from 'node:fs/promises'
import { join, relative } from 'node:path'
import type { FileOwner } from '../vss/restore-plan.ts'
import type { ComponentFile } from '../vss/writer.ts'
import type { HostFile } from './hypervisor.ts'

/** A directory of TPM state holds a few files of some KiB; more is not TPM state. */
const maximumFiles = 64

export interface StoredHostFile {
  readonly role: HostFile['role']
  /** Name of the document in the recovery point. */
  readonly document: string
  readonly path: string
  readonly owner: FileOwner
}

export async function readHostFiles(
  files: readonly HostFile[],
): Promise<{ stored: StoredHostFile[]; contents: ComponentFile[] }> {
  const stored: StoredHostFile[] = []
  const contents: ComponentFile[] = []
  for (const { role, path } of files) {
    for (const file of await filesAt(path)) {
      const below = relative(path, file)
      const document = below === '' ? role : `${role}/${below}`
      const owner = await ownerOf(file)
      if (owner === undefined) continue // a firmware whose variables were never written has no file yet
      stored.push({ role, document, path: file, owner })
      contents.push({ name: document, content: new Uint8Array(await readFile(file)) })
    }
  }
  return { stored, contents }
}

/** Owner and mode of a file; undefined when there is none. */
export async function ownerOf(path: string): Promise<FileOwner | undefined> {
  const found = await stat(path).catch(() => undefined)
  return found?.isFile() ? { uid: found.uid, gid: found.gid, mode: found.mode & 0o7777 } : undefined
}

async function filesAt(path: string): Promise<string[]> {
  const found = await stat(path).catch(() => undefined)
  if (found?.isDirectory() !== true) return [path]
  const entries = await readdir(path, { recursive: true, withFileTypes: true })
  const files = entries.filter((entry) => entry.isFile() && !entry.name.startsWith('.lock'))
  return files.slice(0, maximumFiles).map((entry) => join(entry.parentPath, entry.name))
}
