/**
 * Host files of the simulated world that exist for real beneath one directory, so that code which renames, links or
 * removes them meets the world. Plain bytes are there as they are; an image or a memory image is a line that names it.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { FileTable, SimFile } from './host-files.ts'

const mark = 'umbra-simulated-file '

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
    if (!existsSync(path)) return undefined
    const bytes = readFileSync(path)
    const line = bytes.length < 64 ? bytes.toString() : ''
    return line.startsWith(mark) ? this.#named[Number(line.slice(mark.length))] : { bytes }
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
