/**
 * The files beneath a directory, kept in memory to be put back as they were: names, bytes, modes, symbolic links. What is put
 * back has other inodes; where a file names some by number, as a journal does, it then names the new ones.
 */
import { lstatSync, mkdirSync, readdirSync, readFileSync, readlinkSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

interface KeptFile {
  readonly path: string
  readonly mode: number
  readonly inode: number
  readonly bytes: Buffer
}

const inodeIn = /"inode":"(\d+)"/g

/** Keeps what is there now; `putBack` wants the directory empty. */
export function keepFiles(directory: string): { putBack(): void } {
  const files: KeptFile[] = []
  const deeds: (() => void)[] = []
  keepIn(directory, files, deeds)
  const named = files.filter(({ bytes }) => bytes.includes('"inode":"'))
  return {
    putBack: () => {
      for (const deed of deeds) deed()
      for (const { path, mode, bytes } of files) writeFileSync(path, bytes, { mode })
      for (const { path, bytes } of named) {
        const text = bytes.toString().replace(inodeIn, (_, number) => `"inode":"${nowOf(files, Number(number))}"`)
        writeFileSync(path, text)
      }
    },
  }
}

function nowOf(files: readonly KeptFile[], inode: number): number {
  const file = files.find((each) => each.inode === inode)
  return file === undefined ? inode : lstatSync(file.path).ino
}

function keepIn(directory: string, files: KeptFile[], deeds: (() => void)[]): void {
  for (const name of readdirSync(directory)) {
    const path = join(directory, name)
    const entry = lstatSync(path)
    const mode = entry.mode & 0o7777
    if (entry.isDirectory()) {
      deeds.push(() => mkdirSync(path, { mode }))
      keepIn(path, files, deeds)
    } else if (entry.isSymbolicLink()) {
      const target = readlinkSync(path)
      deeds.push(() => symlinkSync(target, path))
    } else files.push({ path, mode, inode: entry.ino, bytes: readFileSync(path) })
  }
}
