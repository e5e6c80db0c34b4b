/**
 * Host files of the simulated world that exist for real beneath one directory, so that code which renames, links or
 * removes them meets the world. Plain bytes are there as they are; an image or a memory image is a line that names it.
 */
import { closeSync, mkdirSync, openSync, readdirSync, readFileSync, readSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { copyOfFile, type FileTable, type SimFile } from './host-files.ts'

const mark = 'umbra-simulated-file '

const buffer = Buffer.alloc(64)

/** A line that names a file is shorter; undefined without a file. Asked for at every step of every guest. */
function firstBytes(path: string): string | undefined {
  const descriptor = tryOpen(path)
  if (descriptor === undefined) return undefined
  try {
    return buffer.toString('latin1', 0, readSync(descriptor, buffer, 0, buffer.length, 0))
  } finally {
    closeSync(descriptor)
  }
}

function tryOpen(path: string): number | undefined {
  try {
    return openSync(path, 'r')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}

export class RealFiles implements FileTable {
  readonly #directory: string
  /** What the lines name; kept for good, for a copy of the line is a copy of the file. */
  readonly #named: SimFile[] = []
  /** What is no file: NBD exports, RBD images. */
  readonly #elsewhere = new Map<string, SimFile>()

  constructor(directory: string) {
    this.#directory = directory
  }

  get(path: string): SimFile | undefined {
    if (!this.#isHere(path)) return this.#elsewhere.get(path)
    const line = firstBytes(path)
    if (line === undefined) return undefined
    return line.startsWith(mark) ? this.#named[Number(line.slice(mark.length))] : { bytes: readFileSync(path) }
  }

  set(path: string, file: SimFile): void {
    if (!this.#isHere(path)) {
      this.#elsewhere.set(path, file)
      return
    }
    mkdirSync(dirname(path), { recursive: true })
    writeFileSync(path, 'bytes' in file ? file.bytes : `${mark}${this.#named.push(file) - 1}\n`)
  }

  delete(path: string): void {
    if (this.#isHere(path)) rmSync(path, { force: true })
    this.#elsewhere.delete(path)
  }

  copy(): RealFiles {
    const copy = new RealFiles(this.#directory)
    for (const file of this.#named) copy.#named.push(copyOfFile(file))
    for (const [path, file] of this.#elsewhere) copy.#elsewhere.set(path, copyOfFile(file))
    return copy
  }

  paths(): string[] {
    const here = readdirSync(this.#directory, { recursive: true, withFileTypes: true })
      .filter((entry) => !entry.isDirectory())
      .map((entry) => join(entry.parentPath, entry.name))
    return [...here, ...this.#elsewhere.keys()].sort()
  }

  #isHere(path: string): boolean {
    return path.startsWith(`${this.#directory}/`)
  }
}
